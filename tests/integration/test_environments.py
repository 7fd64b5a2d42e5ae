"""Releases whose own environment lacks what the server's code needs, has it in an old version, or in its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from harness import APPS, CHECKOUT, Server, another_python, environment, make_venv, title_of

from reuseport.version import __version__

CODE = """\
import borrowing
VERSION = {version!r}
application = borrowing.make(VERSION)
"""
OLD = ("gevent==23.7.0", "greenlet==2.0.2") if sys.version_info < (3, 12) else ("gevent==24.10.1", "greenlet==3.1.1")
NAMES = ("reuseport", "gevent", "greenlet")
MODES = [(), ("--threads", "2"), ("--preload", "never")]


@pytest.fixture(scope="module")
def servers(tmp_path_factory) -> str:
    """The interpreter of the server's environment, which is not that of the tests."""
    return make_venv(tmp_path_factory.mktemp("server") / "venv")


@pytest.fixture
def lending(serve, servers):
    """Makes servers in whose environment the package lies, and whose releases run in that of `python`."""

    def make(python: Path | str, *options: str, **fields) -> Server:
        interpreter = python / "bin" / "python" if isinstance(python, Path) else python
        # A PYTHONPATH of the tests' own would be part of the application's environment.
        env = {"PYTHONPATH": "", **fields.pop("env", {})}
        server = serve("--python", str(interpreter), *options, python=servers, env=env, **fields)
        server.write("one", whole=CODE.format(version="one"))
        return server

    return make


def packages(server: Server, number: int | None = None) -> dict:
    status = server.status()
    return status.generation(number or status.serving)["packages"]


def whose(server: Server, number: int | None = None) -> dict[str, str]:
    return {name: packages(server, number)[name]["from"] for name in NAMES}


def seen(server: Server, path: str = "/seen") -> dict:
    return server.get(path).json["seen"]


# --- an environment that has nothing


@pytest.mark.parametrize("options", MODES)
def test_a_release_from_an_empty_environment_runs_on_the_server_s_packages(lending, options):
    empty = environment()
    server = lending(empty, *options).start()
    assert whose(server) == dict.fromkeys(NAMES, "server")
    assert packages(server)["reuseport"]["version"] == __version__
    here = seen(server)
    assert here["prefix"] == str(empty)
    assert here["reuseport"] == str(CHECKOUT / "reuseport" / "__init__.py")
    assert here["gevent"] and here["greenlet"] and here["setproctitle"]
    assert here["pytest"] is None, "the application can import nothing else of the server's environment"
    # sys.path is as this interpreter makes it, but for the application's own directory.
    program = "import json, sys; print(json.dumps(sys.path))"
    own = subprocess.run(
        [empty / "bin" / "python", "-P", "-c", program], capture_output=True, text=True, check=True, env={}
    )
    assert here["path"] == [str(server.releases / "one"), *json.loads(own.stdout)]
    assert [w["pid"] for w in server.status().workers() if title_of(w["pid"]).startswith("reuseport: worker")]


@pytest.mark.parametrize("options", MODES)
def test_processes_of_the_application_find_the_same_reuseport_or_none(lending, options):
    server = lending(environment(), *options).start()
    here = seen(server)
    job = seen(server, "/job")
    assert {name: job[name] for name in NAMES} == {name: here[name] for name in NAMES}
    assert job["pid"] not in server.status().pids()
    for method in ("/spawn", "/forkserver"):
        child = seen(server, method)
        assert {name: child[name] for name in NAMES} == {name: here[name] for name in NAMES}, method
        assert not child["patched"] and not child["is_server"], method
    # A program that the application executes runs in its own environment, which has no reuseport.
    plain = seen(server, "/subprocess")
    assert plain["status"] == 1 and "No module named 'reuseport'" in plain["said"]
    environ = server.get("/facts").json["facts"]["environment"]
    assert not environ.get("PYTHONPATH")


def test_a_child_of_an_application_with_its_own_packages_hears_of_no_others(serve):
    server = serve().start()
    assert "REUSEPORT_SERVER" not in server.get("/facts").json["facts"]["environment"]
    assert whose(server) == dict.fromkeys(NAMES, "application")


def test_releases_and_rollbacks_between_the_server_s_packages_and_own_ones(lending, tmp_path):
    own = make_venv(tmp_path / "own")
    link = tmp_path / "current"
    link.symlink_to(environment())
    server = lending(link).start()
    steps = []
    with server.load(one_shot=1, keep_alive=1) as load:
        for target in (Path(own).parent.parent, environment(*OLD), environment()):
            new = tmp_path / "new"
            new.symlink_to(target)
            new.rename(link)
            server.renew()
            steps.append(whose(server))
        load.more(10)
        assert server.cli("rollback", "--wait", "drained").exit == 0
        load.more(10)
    assert load.failures == []
    server_s, mixed = dict.fromkeys(NAMES, "server"), {"reuseport": "server", **dict.fromkeys(NAMES[1:], "application")}
    assert steps == [dict.fromkeys(NAMES, "application"), mixed, server_s]


def test_what_a_generation_runs_on_is_known_after_an_upgrade_and_to_the_next_master(lending):
    server = lending(environment()).start()
    before = packages(server)
    assert before["reuseport"]["from"] == "server"
    outcome = server.cli("upgrade")
    assert outcome.exit == 0, outcome.err
    assert packages(server, 1) == before
    pids = server.status().pids()
    server.bind = (server.address,)
    server.process.kill()
    server.process.wait()
    server.start()
    assert packages(server, 1) == before and server.status().pids() == pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    server.wait(lambda s: s.is_settled() and not pids & s.pids(), "workers that replace them")
    assert seen(server)["reuseport"]


def test_a_zygote_that_died_comes_back_on_the_server_s_packages(lending):
    server = lending(environment()).start()
    pid = server.status().current["zygote"]["pid"]
    os.kill(pid, signal.SIGKILL)
    server.wait(lambda s: s.is_settled() and (s.current["zygote"] or {}).get("pid", pid) != pid, "another zygote")
    server.wait(lambda s: s.current["packages"], "what it runs on")
    assert whose(server) == dict.fromkeys(NAMES, "server")


def test_a_script_that_embeds_the_server_runs_in_an_empty_environment(serve):
    script = "import reuseport, sys\nsys.path.insert(0, {apps!r})\nimport borrowing\n"
    script += "reuseport.serve(borrowing.make('script'), python={python!r}, bind='127.0.0.1:0', workers=1)\n"
    server = serve(script="server.py")
    python = str(environment() / "bin" / "python")
    (server.root / "server.py").write_text(script.format(apps=str(APPS), python=python))
    server.start()
    assert seen(server)["prefix"] == str(environment())
    assert server.get().version == "script"


# --- an environment that has some of it


def test_an_old_gevent_of_the_application_is_taken_before_the_server_s(lending):
    old = environment(*OLD)
    server = lending(old).start()
    assert whose(server) == {"reuseport": "server", "gevent": "application", "greenlet": "application"}
    found = packages(server)
    assert [f"{name}=={found[name]['version']}" for name in ("gevent", "greenlet")] == list(OLD)
    here = seen(server)
    assert here["gevent"].startswith(str(old)) and here["greenlet"].startswith(str(old))
    assert f"the application's gevent {found['gevent']['version']}" in server.cli("status").out


def test_reuseport_of_the_application_s_own_is_taken_before_the_server_s(lending, tmp_path):
    python = make_venv(tmp_path / "venv")
    mine = next((tmp_path / "venv").glob("lib/python3*/site-packages")) / "reuseport"
    shutil.copytree(CHECKOUT / "reuseport", mine, ignore=shutil.ignore_patterns("__pycache__"))
    (mine / "version.py").write_text('__version__ = "0.0.9"\n')
    server = lending(python).start()
    assert packages(server)["reuseport"] == {"version": "0.0.9", "from": "application"}
    assert seen(server)["reuseport"] == str(mine / "__init__.py")
    # A package that the master cannot talk to fails the release. The message says what to do.
    channel = mine / "ipc" / "channel.py"
    text = channel.read_text()
    assert "\nVERSION = 1 " in text
    channel.write_text(text.replace("\nVERSION = 1 ", "\nVERSION = 99 "))
    outcome = server.release()
    assert outcome.exit == 1
    assert "or remove reuseport from it, and the release runs on the server's" in outcome.err
    shutil.rmtree(mine)
    server.renew()
    assert seen(server)["reuseport"] == str(CHECKOUT / "reuseport" / "__init__.py")


def test_another_python_with_its_own_gevent_runs_the_server_s_reuseport(lending):
    interpreter = another_python()
    if interpreter is None:
        pytest.skip("there is no other Python here")
    server = lending(environment("gevent", interpreter=interpreter)).start()
    assert whose(server) == {"reuseport": "server", "gevent": "application", "greenlet": "application"}
    with server.load(one_shot=1, keep_alive=1) as load:
        server.renew()
    assert load.failures == []


# --- environments that do not fit


def refused(server: Server, *words: str) -> None:
    """A first start, a release and the doctor say the same, and a release changes nothing."""
    outcome = server.run()
    assert outcome.exit == 1
    assert all(word in outcome.err for word in words), outcome.err
    assert "Traceback" not in outcome.err
    python = server.options[1]
    options = (*server.options[:1], str(environment() / "bin" / "python"), *server.options[2:])
    server.options = ("-c", str(configuration(server, options[1])))
    server.start()
    configuration(server, python)
    outcome = server.release()
    assert outcome.exit == 1
    assert all(word in outcome.err.splitlines()[-1] for word in words), outcome.err
    server.settle()
    assert server.get().version == "one"
    doctor = server.cli("doctor", "--json", "-c", str(server.root / "conf.toml"), "--chdir", str(server.current))
    assert doctor.exit == 1
    assert any(all(word in finding["text"] for word in words) for finding in doctor.json), doctor.out


def configuration(server: Server, python: str) -> Path:
    path = server.root / "conf.toml"
    path.write_text(f'app = "app:application"\npython = "{python}"\n')
    return path


def test_another_python_without_gevent_is_refused_with_what_to_install(lending):
    interpreter = another_python()
    if interpreter is None:
        pytest.skip("there is no other Python here")
    empty = environment(interpreter=interpreter)
    refused(lending(empty), "has no gevent", f"{empty}/bin/python -m pip install gevent", "compiled for Python")


def test_a_greenlet_that_the_server_s_gevent_cannot_use_is_refused(lending, tmp_path):
    make_venv(tmp_path / "venv", with_reuseport=False)
    packages = next((tmp_path / "venv").glob("lib/python3*/site-packages"))
    (packages / "greenlet.py").write_text("__version__ = '0.4'\nclass greenlet: pass\n")
    refused(lending(tmp_path / "venv"), "the server's gevent cannot be used with the application's greenlet")


def test_a_python_that_is_too_old_is_refused(lending, tmp_path):
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\necho 'Unknown option: -P' >&2\necho 'usage: python [option]' >&2\nexit 2\n")
    old.chmod(0o755)
    refused(lending(str(old)), "its Python is too old", "3.11 or newer")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_user_who_cannot_read_the_server_s_package_is_told(serve, interpreter_for_all, tmp_path_factory):
    private = tmp_path_factory.mktemp("private")
    private.chmod(0o700)
    shutil.copytree(CHECKOUT / "reuseport", private / "reuseport")
    server = serve("--user", "nobody", "--python", interpreter_for_all, env={"PYTHONPATH": str(private)})
    server.write("one")
    outcome = server.run()
    assert outcome.exit == 1
    assert f"--user: uid 65534 cannot read {private / 'reuseport'}, which it must import from" in outcome.err


def test_no_bytecode_is_written_into_the_server_s_environment(lending, tmp_path):
    """The interpreter of a release may be of another version, or run as another user."""
    package = tmp_path / "server" / "reuseport"
    shutil.copytree(CHECKOUT / "reuseport", package, ignore=shutil.ignore_patterns("__pycache__"))
    python = make_venv(tmp_path / "venv")
    borrowed = next((tmp_path / "venv").glob("lib/python3*/site-packages")) / "borrowed.pth"
    *others, _ = borrowed.read_text().splitlines()
    borrowed.write_text("\n".join([*others, str(package.parent), ""]))
    server = lending(environment(), env={"PYTHONDONTWRITEBYTECODE": ""})
    server.python = python
    server.start()
    assert seen(server)["reuseport"] == str(package / "__init__.py")
    written = {path.name.partition(".")[0] for path in package.rglob("*.pyc")}
    assert "switchboard" in written, "the master writes its own"
    assert not {"zygote", "engine", "connection"} & written
