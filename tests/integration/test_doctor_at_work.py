"""The doctor with a real application, a real interpreter and a real master."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from harness import make_venv

APP = "def app(environ, start_response):\n    start_response('200 OK', [])\n    return [b'']\n"


ABOUT = ("The configuration", "The application", "The running server")  # the machine is whose it is


def examine(
    directory: Path, *argv: str, about: tuple[str, ...] | None = ABOUT, **environ: str
) -> tuple[int, list[dict[str, Any]]]:
    """The exit status and the findings, those about the machine only with `about=None`."""
    # Nobody can know who has the usual port here.
    command = [sys.executable, "-m", "reuseport", "doctor", "--json", "--bind", "127.0.0.1:0", *argv]
    with tempfile.TemporaryDirectory(prefix="ru-", dir="/tmp") as run:  # a test's own may be too long for a socket
        environ = {"PATH": "/usr/bin:/bin", "XDG_RUNTIME_DIR": run, "PYTHONDONTWRITEBYTECODE": "1", **environ}
        done = subprocess.run(
            command, cwd=directory, env=environ, capture_output=True, text=True, timeout=120, check=False
        )
    assert done.stderr == ""
    return done.returncode, [one for one in json.loads(done.stdout) if about is None or one["about"] in about]


def bad(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one for one in found if one["grade"] != "fine"]


def test_an_application_that_is_well(tmp_path: Path):
    (tmp_path / "shop.py").write_text(APP)
    _, found = examine(tmp_path, "shop:app")
    assert not bad(found)
    assert any(one["text"].startswith("the application loads in ") for one in found)


def test_what_an_import_leaves_behind_and_which_drivers_it_brings(tmp_path: Path):
    (tmp_path / "psycopg2").mkdir()
    (tmp_path / "psycopg2/__init__.py").write_text("__version__ = '2.9.9'")
    (tmp_path / "psycopg2/extensions.py").write_text("wait = None\ndef get_wait_callback():\n    return wait\n")
    code = f"import threading, psycopg2.extensions\n{APP}"
    (tmp_path / "shop.py").write_text(code + "threading.Thread(target=threading.Event().wait, daemon=True).start()\n")
    _, found = examine(tmp_path, "shop:app")
    left, driver = bad(found)
    assert "1 running greenlet" in left["text"] and "psycopg2" in driver["text"]
    assert "psycogreen" in driver["remedy"]
    (tmp_path / "shop.py").write_text(code + "psycopg2.extensions.wait = print\n")
    _, found = examine(tmp_path, "shop:app")
    assert not bad(found)


def test_connections_that_django_would_keep(tmp_path: Path):
    sqlite = {"ENGINE": "django.db.backends.sqlite3"}
    kept = {**sqlite, "CONN_MAX_AGE": None}
    pooled = {**sqlite, "CONN_MAX_AGE": 60, "OPTIONS": {"pool": {"max_size": 9}}}
    databases = {"default": kept, "other": pooled}
    settle = f"from django.conf import settings\nsettings.configure(DATABASES={databases!r})\n"
    (tmp_path / "shop.py").write_text(settle + APP)
    _, found = examine(tmp_path, "shop:app")
    [one] = bad(found)
    assert "Django keeps its connections to 'default' (CONN_MAX_AGE=None)" in one["text"]
    assert not bad(examine(tmp_path, "shop:app", "--threads", "2")[1])


def test_what_was_imported_before_the_patches(tmp_path: Path):
    """By a .pth file. A sitecustomize.py is deferred (test_instrumentation.py)."""
    python = make_venv(tmp_path / "venv")
    (packages,) = (tmp_path / "venv").glob("lib/python3*/site-packages")
    (packages / "grabby.py").write_text("from socket import socket\nimport ssl\n")
    (packages / "zzz_grabby.pth").write_text("import grabby\n")
    (tmp_path / "shop.py").write_text(APP)
    status, found = examine(tmp_path, "shop:app", "--python", python)
    assert status == 1
    assert [one["grade"] for one in bad(found)] == ["problem", "warning"]
    assert "grabby (socket.socket)" in bad(found)[0]["text"]
    _, found = examine(tmp_path, "shop:app", "--threads", "2", "--python", python)
    assert not bad(found), "with threads nothing is patched"


@pytest.mark.parametrize(
    ("code", "text", "detail"),
    [
        ("import nowhere", "No module named 'nowhere'", "line 1, in <module>"),
        ("print('so far', flush=True)\nimport os; os._exit(3)", "ended with status 3", "so far"),
        ("import time\ntime.sleep(600)", "was not loaded within 10 s", "time.sleep(600)"),
        ("raise SystemExit(1)", "sys.exit(1)", "line 1, in <module>"),
    ],
)
def test_an_application_that_does_not_load(tmp_path: Path, code: str, text: str, detail: str):
    (tmp_path / "shop.py").write_text(code)
    patience = "10" if "sleep" in code else "60"  # enough to begin with the import
    status, found = examine(tmp_path, "shop:app", "--boot-timeout", patience)
    assert status == 1
    [one] = bad(found)
    assert text in one["text"] and detail in one["detail"]


def test_a_configuration_that_is_refused(tmp_path: Path):
    (tmp_path / "reuseport.toml").write_text("workes = 3")
    status, found = examine(tmp_path)
    assert status == 1
    assert [one["text"] for one in bad(found)] == [
        f"{tmp_path}/reuseport.toml: unknown key 'workes'; did you mean workers?"
    ]


def test_a_running_server_with_a_blocked_worker(serve):
    server = serve("--timeout", "1").start()
    server.get_later("/burn?name=burn")
    server.gate("burn").await_entered()
    server.wait(lambda s: any(w["state"] == "blocked" for w in s.current["workers"]), "it is known to be blocked")
    status, found = examine(server.root, "--run-dir", str(server.run_dir))
    assert status == 1
    [blocked] = [one for one in bad(found) if "is blocked" in one["text"]]
    assert blocked["remedy"].startswith("reuseport stacks 1.")
    server.gate("burn").open()


def test_parts_of_multiprocessing_that_greenlets_cannot_use(tmp_path: Path):
    (tmp_path / "shop.py").write_text(f"import tasks\n{APP}")
    (tmp_path / "tasks.py").write_text("from multiprocessing import Pool as Workers\n")
    _, found = examine(tmp_path, "shop:app")
    [one] = bad(found)
    assert one["text"].startswith("tasks can use multiprocessing")
    assert not bad(examine(tmp_path, "shop:app", "--threads", "2")[1])
    (tmp_path / "tasks.py").write_text("from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor\n")
    assert not bad(examine(tmp_path, "shop:app")[1])


def test_an_event_loop_of_the_import_is_named(tmp_path: Path):
    (tmp_path / "shop.py").write_text(f"import asyncio\nloop = asyncio.new_event_loop()\n{APP}")
    for options in ((), ("--threads", "2")):
        _, found = examine(tmp_path, "shop:app", *options)
        [one] = bad(found)
        assert "an asyncio event loop" in one["text"]


def test_a_pool_of_the_import_is_told_with_the_remedy(tmp_path: Path):
    (tmp_path / "shop.py").write_text(f"import multiprocessing\npool = multiprocessing.Pool(1)\n{APP}")
    _, found = examine(tmp_path, "shop:app", "--boot-timeout", "5")
    [one] = bad(found)
    assert "stops all greenlets" in one["detail"] and "--threads" in one["detail"]


def test_what_a_start_would_find_in_the_way(tmp_path: Path):
    """An address, a log's daemon and a companion's program, of which nothing in the options tells."""
    (tmp_path / "shop.py").write_text(APP)
    (tmp_path / "reuseport.toml").write_text('[[companion]]\nname = "mail"\ncommand = "no-such-worker"\n')
    with socket.create_server(("127.0.0.1", 0)) as other:
        name = f"127.0.0.1:{other.getsockname()[1]}"
        words = ("shop:app", "-b", name, "--log-file", f"syslog:{tmp_path}/none", "--log-config", "none.json")
        status, found = examine(tmp_path, *words, about=None)
    assert status == 1
    texts = [one["text"] for one in found if one["grade"] == "problem"]
    assert any(f"--bind {name}: Address already in use (pid " in text for text in texts)
    assert any("--log-file: syslog:" in text and "No such file or directory" in text for text in texts)
    assert any("companion mail: there is no such program" in text for text in texts)
    assert any("cannot be loaded: --log-config" in text and "none.json" in text for text in texts)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_what_the_workers_user_cannot_reach(tmp_path: Path):
    """It is told as what it is, and not by a failure of the doctor's own or of an import that seems to be missing."""
    with tempfile.TemporaryDirectory(prefix="ru-", dir="/tmp") as name:  # all of a test's own is root's alone
        home = Path(name)
        home.chmod(0o755)
        (home / "shop.py").write_text(APP)
        python = make_venv(home / "venv")
        (home / "venv").chmod(0o700)
        words = ("shop:app", "--user", "nobody", "--python", python)
        status, found = examine(home, *words)
        assert status == 1
        [one] = bad(found)
        assert "the application cannot be loaded: --user: uid 65534 cannot read" in one["text"]
        assert one["detail"] == ""

        (home / "reuseport.toml").write_text(f'[[companion]]\nname = "mail"\ncommand = "{python} -m tasks"\n')
        (home / "private").mkdir(mode=0o700)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
            daemon.bind(str(home / "private/log"))
            _, found = examine(home, *words, "--log-file", f"syslog:{home}/private/log", about=None)
        who = "as the user of the workers (nobody)"
        texts = [one["text"] for one in found if one["grade"] == "problem"]
        assert any(f"private/log: {who}: Permission denied: the daemon gets nothing" in text for text in texts)
        assert any(f"companion mail: {who}: there is no such file, or it cannot be seen" in text for text in texts)
