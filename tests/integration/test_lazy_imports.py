"""Lazy imports (PEP 810): carried out before a release succeeds. These tests need a Python 3.15 with gevent.

REUSEPORT_TEST_LAZY names one, where the tests' own interpreter is older.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from harness import APPS, Server
from test_embedding import SCRIPT

ASK = "import gevent, json, sys, types; print(json.dumps(hasattr(types, 'LazyImportType')))"
VIEWS = "import os\nIMPORT_PID = os.getpid()\n"
APP = """
lazy import views
import sys

def application(environ, start_response, plain=application):
    basic.extra["loaded"] = sorted({"views", "deeper", "models"} & set(sys.modules))
    if environ["PATH_INFO"] == "/views":
        basic.extra["views_pid"] = views.IMPORT_PID
    if environ["PATH_INFO"] == "/job":
        import reuseport
        basic.extra["job"] = reuseport.spawn(in_job, name="one", where="process").result(timeout=60)
    return plain(environ, start_response)

def in_job():
    return sorted({"views", "deeper", "models"} & set(sys.modules))
"""
MODES = [(), ("--threads", "2"), ("--preload", "never"), ("--preload", "always")]


@cache
def interpreter() -> str:
    for python in (sys.executable, os.environ.get("REUSEPORT_TEST_LAZY")):
        if python:
            done = subprocess.run([python, "-c", ASK], capture_output=True, text=True, check=False)
            if done.returncode == 0 and json.loads(done.stdout):
                return python
    pytest.skip("no Python 3.15 with gevent: REUSEPORT_TEST_LAZY names one")


def make(serve, *options: str, **fields) -> Server:
    checkout = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([checkout, *filter(None, [os.environ.get("PYTHONPATH")])])
    return serve(*options, python=interpreter(), env={"PYTHONPATH": path, **fields.pop("env", {})}, **fields)


def write(server: Server, version: str, code: str = APP, **modules: str) -> None:
    directory = server.write(version, code)
    for name, text in modules.items():
        (directory / f"{name}.py").write_text(text)


@pytest.mark.parametrize("mode", MODES, ids=" ".join)
def test_a_release_has_carried_out_its_lazy_imports(serve, mode):
    server = make(serve, *mode)
    write(server, "one", views=VIEWS + "lazy import deeper\n", deeper="lazy from models import Shop\n", models="Shop=1")
    server.start()
    assert server.get().json["loaded"] == ["deeper", "models", "views"]
    answer = server.get("/views").json
    shared = server.status().current["zygote"]["pid"]
    assert answer["views_pid"] == (answer["pid"] if "never" in mode else shared)
    assert server.get("/job").json["job"] == ["deeper", "models", "views"]


@pytest.mark.parametrize(
    ("mode", "modules", "error"),
    [
        *((mode, {"views": "1 / 0\n"}, "ZeroDivisionError") for mode in MODES),
        ((), {"views": "def broken(:\n"}, "SyntaxError"),
        ((), {}, "No module named 'views'"),
        ((), {"views": "lazy from models import Shop\n", "models": ""}, "cannot import name 'Shop'"),
        ((), {"views": "raise SystemExit(4)\n"}, "SystemExit"),
    ],
)
def test_a_broken_lazy_import_fails_the_release_with_its_traceback(serve, mode, modules, error):
    server = make(serve, *mode)
    write(server, "one", views=VIEWS)
    server.start()
    write(server, "two", **modules)
    outcome = server.release()
    assert outcome.exit == 1
    assert error in outcome.err
    assert "Traceback" in outcome.err
    assert "the lazy import of " in outcome.err
    assert server.get().version == "one"


def test_lazy_imports_can_be_kept(serve):
    server = make(serve, "--lazy-imports", "keep", workers=1)
    write(server, "one", views="1 / 0\n")
    server.start()
    assert server.get().json["loaded"] == []
    assert server.get("/views").status == 500


def test_modules_that_import_each_other_lazily_are_no_mistake(serve):
    server = make(serve)
    write(server, "one", views="lazy from models import Shop\nIMPORT_PID = 1\nTitle = 'views'\n",
          models="from views import Title\nShop = Title\n")  # fmt: skip
    server.start()
    assert server.get("/views").json["views_pid"] == 1


def test_a_lazy_import_of_a_library_may_fail(serve):
    server = make(serve)
    packages = server.root / "site-packages"
    packages.mkdir()
    (packages / "library.py").write_text("lazy import not_installed_anywhere\nlazy from models import Shop\n")
    code = f"import sys\nsys.path.append({str(packages)!r})\nimport library\n{APP}"
    write(server, "one", code, views=VIEWS, models="Shop = 1\n")
    server.start()
    assert server.get().json["loaded"] == ["models", "views"]


def test_a_name_for_type_checkers_may_be_imported(serve):
    server = make(serve)
    write(server, "one", views=VIEWS + "lazy from _typeshed import SupportsRead\n")
    server.start()
    assert server.get().json["loaded"] == ["views"]


def test_what_a_lazy_import_leaves_behind_is_seen(serve):
    server = make(serve)
    thread = "import threading, time\nthreading.Thread(target=time.sleep, args=(3600,), daemon=True).start()\n"
    write(server, "one", views=VIEWS + thread)
    server.launch().settle(within=60)  # it is loaded twice, and no bytecode is kept
    answer = server.get("/views").json
    assert answer["views_pid"] == answer["pid"] == answer["import_pid"], "each worker imports"


def test_a_lazy_import_that_the_warm_up_brings(serve):
    code = "\ndef application(environ, start_response, plain=application):\n"
    code += "    import late\n    return plain(environ, start_response)\n"
    server = make(serve, "--warmup", "/")
    write(server, "one", code, late="")
    server.start()
    write(server, "two", code, late="lazy import nowhere_at_all\n")
    outcome = server.release()
    assert outcome.exit == 1
    assert "the lazy import of nowhere_at_all" in outcome.err


def test_a_script_that_embeds_the_server(serve):
    server = make(serve, script="current/server.py")

    def release(version: str, views: str) -> None:
        directory = server.releases / version
        directory.mkdir(parents=True)
        options = f"workers=1, name={server.name!r}"
        code = "lazy import views\n"
        text = SCRIPT.format(version=version, code=code, app="basic.make(VERSION)", apps=str(APPS), options=options)
        (directory / "server.py").write_text(text)
        (directory / "views.py").write_text(views)
        server.flip(directory)

    release("one", VIEWS)
    server.start()
    release("two", "1 / 0\n")
    outcome = server.release()
    assert outcome.exit == 1
    assert "the lazy import of views" in outcome.err
    assert server.get().version == "one"


def test_the_doctor_finds_a_broken_one(serve):
    server = make(serve)
    write(server, "one", views="1 / 0\n")
    command = [interpreter(), "-m", "reuseport", "doctor", "--json", "--chdir", str(server.current)]
    command += ["--pythonpath", str(APPS), "app:application"]
    done = subprocess.run(command, env=server.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert any("the lazy import of views" in one["text"] for one in json.loads(done.stdout))


def test_a_server_whose_every_import_is_lazy(serve):
    server = make(serve, env={"PYTHON_LAZY_IMPORTS": "all"})
    write(server, "one", APP.replace("lazy import", "import"), views=VIEWS + "import models\n", models="")
    server.start()
    assert server.get().json["loaded"] == ["models", "views"]
    write(server, "two", APP.replace("lazy import", "import"), views=VIEWS + "import nowhere_at_all\n")
    outcome = server.release()
    assert outcome.exit == 1
    assert "No module named 'nowhere_at_all'" in outcome.err
