"""`reuseport.serve(app)` in a plain script: the script's process becomes the master, and a release runs it again."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from harness import APPS, Server, title_of

SCRIPT = """\
import sys
sys.path.insert(0, {apps!r})
import gevent
import basic
import reuseport
VERSION = {version!r}
{code}
if __name__ == "__main__":
    basic.extra["argv"] = sys.argv
    reuseport.serve({app}, bind="127.0.0.1:0", {options})
    open("after", "w").close()
"""


class Embedding:
    """A server whose command is `python current/server.py`."""

    def __init__(self, serve) -> None:
        self.server: Server = serve("first", "--second", script="current/server.py")
        self.name = self.server.name

    def write(self, version: str, code: str = "", app: str = "basic.make(VERSION)", options: str = "workers=2") -> Path:
        directory = self.server.releases / version
        directory.mkdir(parents=True, exist_ok=True)
        text = SCRIPT.format(
            version=version, code=code, app=app, apps=str(APPS), options=f"name={self.name!r}, {options}"
        )
        (directory / "server.py").write_text(text)
        self.server.flip(directory)
        return directory


@pytest.fixture
def embedding(serve) -> Embedding:
    return Embedding(serve)


def test_the_script_s_process_is_the_master(embedding):
    embedding.write("one")
    server = embedding.server.start()
    status = server.status()
    assert status["master"]["pid"] == server.pid
    assert title_of(server.pid) == f"reuseport: master [{embedding.name}]"
    assert server.get().version == "one"
    assert server.get().json["argv"][1:] == ["first", "--second"]
    # The script imported gevent and the application; the master that it became has neither.
    assert not re.findall(r"/(?:gevent|greenlet|httptools)[^ ]*\.so", Path(f"/proc/{server.pid}/maps").read_text())
    assert not (server.root / "after").exists()


def test_hup_brings_the_script_s_new_code(embedding):
    embedding.write("one")
    server = embedding.server.start()
    slow = server.get_later("/gate?name=slow")
    server.gate("slow").await_entered()
    embedding.write("two")
    server.hup()
    server.wait(lambda s: s.serving == 2)
    assert server.get().version == "two"
    server.gate("slow").open()
    assert slow.result().version == "one"
    assert server.settle(2)["master"]["pid"] == server.pid


def test_the_script_may_say_another_number_of_workers_at_a_release(embedding):
    embedding.write("one", options="workers=1")
    server = embedding.server.start()
    assert len(server.status().workers()) == 1
    embedding.write("two", options="workers=3")
    server.renew()
    assert len(server.settle(2).workers("serving")) == 3


BROKEN = {
    "1 / 0": "ZeroDivisionError",
    "def x(:": "SyntaxError",
    "sys.exit(4)": "sys.exit(4)",
    "__name__ = 'other'": "without calling reuseport.serve",
}


def test_a_script_that_fails_changes_nothing(embedding):
    embedding.write("one")
    server = embedding.server.start()
    for number, (code, says) in enumerate(BROKEN.items()):
        embedding.write(f"broken-{number}", code)
        outcome = server.release()
        assert outcome.exit == 1
        assert says in outcome.err
        assert server.get().version == "one"
    server.settle(1)


def test_a_worker_that_is_killed_or_imports_for_itself(embedding):
    embedding.write("one", code="gevent.spawn(gevent.sleep, 1000)")
    server = embedding.server.start()
    answer = server.get().json
    assert answer["import_pid"] == answer["pid"], "a greenlet at import: each worker runs the script"
    victim = answer["pid"]
    os.kill(victim, 9)
    server.wait(lambda s: s.is_settled() and victim not in s.pids())
    assert {server.get().version for _ in range(10)} == {"one"}


def test_an_application_named_by_a_string(embedding):
    server = embedding.server
    server.write("one")
    embedding.write("one", app="'app:application'", options=f"workers=1, chdir={str(server.current)!r}")
    (server.releases / "one" / "app.py").write_text(
        f"import sys\nsys.path.insert(0, {str(APPS)!r})\nimport basic\napplication = basic.make('named')\n"
    )
    server.start()
    assert server.get().version == "named"
    assert server.status().current["app"] == "app:application"


def test_a_module_run_with_m(embedding):
    server = embedding.server
    directory = embedding.write("one")
    package = directory / "site"
    (package / "inner").mkdir(parents=True)
    (package / "inner" / "value.py").write_text("VERSION = 'inner'\n")
    text = SCRIPT.format(
        version="m", code="from .value import VERSION", app="basic.make(VERSION)", apps=str(APPS),
        options=f"name={embedding.name!r}, workers=1",
    )  # fmt: skip
    (package / "inner" / "__main__.py").write_text(text)
    server.env["PYTHONPATH"] = str(package)
    server.flags, server.script = ("-m",), "inner"
    server.start()
    assert server.get().version == "inner"
    (package / "inner" / "value.py").write_text("VERSION = 'changed'\n")
    server.renew()
    assert server.get().version == "changed"


def test_term_stops_it(embedding):
    embedding.write("one")
    server = embedding.server.start()
    assert server.cli("stop").exit == 0
    assert server.await_exit() == 0
    assert list(server.processes()) == []


CALL = "import reuseport\nreuseport.serve(lambda e, s: [], bind='127.0.0.1:0')\n"
IN_A_THREAD = """\
import threading, reuseport
def call():
    try:
        reuseport.serve(lambda e, s: [], bind='127.0.0.1:0')
    except Exception as error:
        print(type(error).__name__, error)
        raise SystemExit
thread = threading.Thread(target=call)
thread.start()
thread.join()
"""


def run_python(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], input=stdin, capture_output=True, text=True, timeout=20)


def test_it_is_refused_where_there_is_no_script_to_run_again(tmp_path):
    for outcome in (run_python("-c", CALL), run_python("-", stdin=CALL), run_python("-i", stdin=CALL)):
        assert "EmbeddingError" in outcome.stderr
        assert "Put it into a file" in outcome.stderr
    script = tmp_path / "script.py"
    script.write_text(IN_A_THREAD)
    outcome = run_python(str(script))
    assert "EmbeddingError" in outcome.stdout
    assert "main thread" in outcome.stdout


def test_an_option_that_does_not_exist_is_the_caller_s_error(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import reuseport\nreuseport.serve(print, wokers=3)\n")
    outcome = run_python(str(script))
    assert outcome.returncode == 1
    assert "OptionError" in outcome.stderr
    assert "workers" in outcome.stderr
