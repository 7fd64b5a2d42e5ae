"""A sitecustomize on PYTHONPATH, as instrumentations bring it: it imports ssl, patches with gevent, starts a thread.

The master and the command line stay without it. Each process that loads the application has it, behind the patches of
the server.
"""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme
from harness import Server, make_venv, wait_for
from test_embedding import Embedding, embedding  # noqa: F401

IMPORTS = "import ssl, urllib3, urllib3.util.ssl_\n"
PATCHES = "from gevent import monkey\nmonkey.patch_all()\n"
THREAD = """\
import threading, time
def tick():
    while True:
        time.sleep(0.01)
        sys.ticks = getattr(sys, "ticks", 0) + 1
threading.Thread(target=tick, daemon=True).start()
"""
LEAVES = """\
here = os.path.dirname(os.path.abspath(__file__))
entries = os.environ["PYTHONPATH"].split(os.pathsep)
os.environ["PYTHONPATH"] = os.pathsep.join(entry for entry in entries if entry != here)
"""
REPORT = """
import os, subprocess, sys
from gevent import monkey
import urllib3

URL, AUTHORITY = os.environ.get("TEST_URL"), os.environ.get("TEST_AUTHORITY")

def told():
    return {
        "customized": getattr(sys, "customized", []),
        "ticks": getattr(sys, "ticks", 0),
        "patched": sorted(monkey.saved),
        "pythonpath": os.environ.get("PYTHONPATH"),
        "startup": os.environ.get("REUSEPORT_STARTUP"),
    }

def application(environ, start_response, plain=application):
    basic.extra.update(told())
    if environ["PATH_INFO"] == "/https":
        with urllib3.PoolManager(ca_certs=AUTHORITY) as pool:
            basic.extra["https"] = pool.request("GET", URL, retries=False).data.decode()
    if environ["PATH_INFO"] == "/child":
        out = subprocess.check_output([sys.executable, "-c", "import sys; print(len(sys.customized))"])
        basic.extra["child"] = int(out)
    if environ["PATH_INFO"] == "/job":
        import reuseport
        basic.extra["job"] = reuseport.spawn(told, name="told", where="process").result(timeout=60)
    return plain(environ, start_response)
"""


def customize(server: Server, *parts: str, where: str = "instrumentation") -> Path:
    """Put a sitecustomize.py of these parts on the server's PYTHONPATH; its directory."""
    directory = server.root / where
    directory.mkdir(parents=True, exist_ok=True)
    counted = "import os, sys\nsys.customized = [*getattr(sys, 'customized', []), os.getpid()]\n"
    (directory / "sitecustomize.py").write_text(counted + "".join(parts))
    before = [entry for entry in (server.env.get("PYTHONPATH"), os.environ.get("PYTHONPATH")) if entry]
    server.env["PYTHONPATH"] = os.pathsep.join([str(directory), *before])
    return directory


@pytest.fixture
def secure(tmp_path):
    """The address of an HTTPS server, and the file of the authority that it is to be trusted by."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "6")
            self.end_headers()
            self.wfile.write(b"secure")

        def log_message(self, *args):
            pass

    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield {
            "TEST_URL": f"https://127.0.0.1:{server.server_address[1]}/",
            "TEST_AUTHORITY": str(tmp_path / "authority.pem"),
        }
        server.shutdown()
        thread.join()


def tasks(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def modules_on_path(pid: int) -> str:
    """PYTHONPATH, as the process was started with it."""
    entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next((os.fsdecode(entry) for entry in entries if entry.startswith(b"PYTHONPATH=")), "")


MODES = [pytest.param((), id="greenlets"), pytest.param(("--threads", "2"), id="threads", marks=pytest.mark.more)]


@pytest.mark.parametrize("mode", [(), ("--threads", "2")], ids=["greenlets", "threads"])
@pytest.mark.parametrize("preload", ["auto", pytest.param("always", marks=pytest.mark.more), "never"])
def test_https_works_in_a_view_whatever_a_sitecustomize_has_imported(serve, secure, mode, preload):
    server = serve("--preload", preload, *mode, workers=1, env=secure)
    customize(server, IMPORTS)
    server.write("one", REPORT)
    server.start()
    assert server.get("/https").json["https"] == "secure"
    assert len(server.get().json["customized"]) == 1


@pytest.mark.parametrize("mode", MODES)
def test_a_sitecustomize_that_patches_and_starts_a_thread(serve, secure, mode):
    server = serve(*mode, env=secure)
    directory = customize(server, PATCHES, IMPORTS, THREAD, LEAVES)
    server.write("one", REPORT)
    server.start()
    assert tasks(server.pid) == 1, "the master has nothing of it"
    for number in (2, 3):
        answer = server.get("/https").json
        assert answer["https"] == "secure"
        # The thread does not survive a fork, so each worker imports, and the sitecustomize runs there.
        assert answer["customized"] == [answer["pid"]] == [answer["import_pid"]]
        assert bool(answer["patched"]) == (not mode)
        assert answer["startup"] is None
        ticks = answer["ticks"]
        wait_for(lambda: server.get().json["ticks"] != ticks, "the thread runs")  # noqa: B023 - waited for here
        assert server.cli("status", "--json").json["serving"] == number - 1
        assert server.renew() == number
    assert tasks(server.pid) == 1
    assert str(directory) in modules_on_path(server.pid), "the next master starts with the same"


def test_children_of_the_application_have_the_sitecustomize_once(serve):
    server = serve(workers=1)
    customize(server)
    server.write("one", REPORT)
    server.start()
    answer = server.get("/child").json
    assert answer["child"] == 1
    assert answer["pythonpath"] == server.env["PYTHONPATH"]
    assert answer["startup"] is None
    zygote = server.status().current["zygote"]["pid"]
    assert answer["customized"] == [zygote], "it leaves nothing behind, so it is shared by the fork"


@pytest.mark.parametrize("mode", MODES)
def test_the_process_of_a_job_has_the_sitecustomize_once(serve, mode):
    server = serve(*mode, workers=1)
    customize(server, THREAD, LEAVES)
    server.write("one", REPORT)
    server.start()
    answer = server.get("/job").json
    (pid,) = answer["job"]["customized"]
    assert pid != answer["pid"]
    assert bool(answer["job"]["patched"]) == (not mode)


def test_an_upgrade_a_takeover_and_a_rollback_keep_the_sitecustomize(serve):
    server = serve()
    customize(server, PATCHES, THREAD, LEAVES)
    server.write("one", REPORT)
    server.start()
    outcome = server.cli("upgrade")
    assert outcome.exit == 0, outcome.err
    assert tasks(server.pid) == 1
    server.write("two", REPORT)
    assert server.renew() == 2
    answer = server.get().json
    assert (answer["version"], answer["customized"]) == ("two", [answer["pid"]])
    assert server.cli("rollback").exit == 0
    server.settle(3)
    answer = server.get().json
    assert (answer["version"], answer["customized"]) == ("one", [answer["pid"]])

    second = serve("--takeover", run_dir=server.run_dir, bind=(server.address,), env=server.env)
    second.name = server.name
    second.write("three", REPORT)
    second.launch()
    second.wait(lambda s: s["master"]["pid"] == second.pid and s.is_settled(), "the second master owns all")
    answer = second.get().json
    assert (answer["version"], answer["customized"]) == ("three", [answer["pid"]])
    assert tasks(second.pid) == 1


def test_an_embedding_script_that_was_patched_starts_an_unpatched_master(embedding):  # noqa: F811
    server = embedding.server
    customize(server, PATCHES, THREAD, LEAVES)
    embedding.write("one", REPORT, app="application", options="workers=1")
    text = (server.current / "server.py").read_text()
    (server.current / "server.py").write_text(text.replace("VERSION =", "application = basic.make('one')\nVERSION ="))
    server.start()
    answer = server.get().json
    assert answer["customized"] == [answer["pid"]]
    assert tasks(server.pid) == 1
    outcome = server.cli("upgrade")
    assert outcome.exit == 0, outcome.err
    assert tasks(server.pid) == 1
    assert server.renew() == 2
    answer = server.get().json
    assert answer["customized"] == [answer["pid"]]


@pytest.mark.parametrize("preload", ["auto", "never"])
def test_an_application_that_patches_does_not_patch_native_threads(serve, preload):
    server = serve("--threads", "2", "--preload", preload, workers=1)
    server.write("one", PATCHES + REPORT)
    server.start()
    assert server.get().json["patched"] == []
    assert "gevent.monkey.patch_all does nothing here: --threads" in server.log.read_text()


@pytest.mark.parametrize("mode", [(), ("--threads", "2")], ids=["greenlets", "threads"])
def test_an_instrumentation_that_removes_modules_leaves_the_patches(serve, mode):
    """As ddtrace does at the end of its sitecustomize: it expects that the patches come behind it."""
    server = serve(*mode, workers=1)
    removes = "import time, threading, socket\nfor name in ('time', 'threading', 'socket'): del sys.modules[name]\n"
    customize(server, removes, where="ddtrace/bootstrap")
    server.write("one", "import time, threading, socket\n" + REPORT + "basic.extra['sleep'] = time.sleep.__module__\n")
    server.start()
    answer = server.get().json
    assert answer["sleep"] == ("time" if mode else "gevent.hub")
    assert len(answer["customized"]) == 1
    assert "gevent's patches" not in server.log.read_text()


def test_a_sitecustomize_that_fails_is_told_and_stops_nothing(serve):
    server = serve(workers=1)
    customize(server, "raise RuntimeError('no collector')\n")
    server.write("one", REPORT)
    server.start()
    assert "RuntimeError: no collector" in server.log.read_text()
    assert len(server.get().json["customized"]) == 1


def test_a_sitecustomize_that_exits_fails_the_release_with_that(serve):
    server = serve(workers=1)
    directory = customize(server, "raise SystemExit(3)\n")
    server.env.clear()
    server.options = ("-e", f"PYTHONPATH={directory}")
    outcome = server.run()
    assert outcome.exit == 1
    assert "running sitecustomize: it called sys.exit(3)" in outcome.err


def test_the_application_s_own_directory_does_not_take_the_place_of_the_sitecustomize(serve):
    server = serve("--preload", "never", workers=1)
    customize(server)
    (server.write("one", REPORT) / "sitecustomize.py").write_text("raise RuntimeError('mine')\n")
    server.start()
    assert len(server.get().json["customized"]) == 1
    assert "mine" not in server.log.read_text()


@pytest.fixture
def environment_with_early_urllib3(tmp_path):
    python = make_venv(tmp_path / "venv")
    (packages,) = (tmp_path / "venv").glob("lib/python3*/site-packages")
    (packages / "zzz_early.pth").write_text("import urllib3.util.ssl_\n")
    return python


def test_what_a_pth_file_imports_before_the_patches_is_told_at_the_release(serve, environment_with_early_urllib3):
    server = serve("--python", environment_with_early_urllib3, workers=1)
    server.start()
    log = server.log.read_text()
    assert log.count("came before gevent's patches") == 1
    assert "urllib3.util.ssl_ (ssl.SSLContext)" in log
    threads = serve("--python", environment_with_early_urllib3, "--threads", "2", workers=1).start()
    assert "gevent's patches" not in threads.log.read_text()


def test_a_master_that_a_pth_file_has_patched_does_not_start(serve, tmp_path):
    python = make_venv(tmp_path / "venv")
    (packages,) = (tmp_path / "venv").glob("lib/python3*/site-packages")
    (packages / "zzz_early.pth").write_text("import gevent.monkey; gevent.monkey.patch_all()\n")
    outcome = serve(python=python, workers=1).run()
    assert outcome.exit == 1
    assert "gevent had patched this process before the server began" in outcome.err
    outcome = serve("--python", python, "--threads", "2", workers=1).run()
    assert outcome.exit == 1
    assert "--threads: gevent had patched this process before the server began" in outcome.err
    server = serve("--python", python, workers=1).start()
    assert server.get().status == 200


def test_the_doctor_loads_behind_its_own_patches_and_has_none_itself(serve, secure):
    server = serve(env=secure)
    customize(server, PATCHES, IMPORTS, THREAD, LEAVES)
    server.write("one", REPORT)
    outcome = server.cli("doctor", "--json", "--chdir", str(server.current), "--pythonpath",
                         os.path.join(os.path.dirname(__file__), "..", "apps"), "app:application")  # fmt: skip
    said = {one["text"] for one in outcome.json}
    assert "nothing that waits was imported before gevent's patches" in said
    assert any("1 running greenlet" in text for text in said)


@pytest.mark.parametrize("flag", ["-E", "-I"])
def test_an_interpreter_that_ignores_pythonpath_still_starts(serve, flag):
    program = "import sys; sys.path.insert(0, {!r}); from reuseport.cli.main import main; sys.exit(main())"
    checkout = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": "/nonexistent"}
    command = [sys.executable, flag, "-c", program.format(checkout), "--version"]
    assert subprocess.run(command, env=environment, check=True, capture_output=True).stdout.startswith(b"reuseport ")
