"""multiprocessing in an application: a child process gets nothing of the server, whichever way and moment it starts.

The start methods spawn and forkserver import the parent's main module again in each child.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from harness import APPS, Background, Server, title_of, wait_for

CHILD = {"patched": False, "server": [], "main": ""}
METHODS = ("spawn", "forkserver")
OF_GREENLETS = METHODS if sys.version_info < (3, 14) else ("spawn",)
# Each of these uses multiprocessing where a request, a job or an import runs.
CODE = """\
import json, traceback
import parallel, reuseport
from urllib.parse import parse_qs

at_import = {at_import}

def application(environ, start_response):
    query = {{key: values[-1] for key, values in parse_qs(environ["QUERY_STRING"]).items()}}
    try:
        if environ["PATH_INFO"] == "/request":
            answer = parallel.use(query["what"], query["method"])
        elif environ["PATH_INFO"] == "/job":
            answer = reuseport.spawn(parallel.use, query["what"], query["method"], where="process").result(60)
        else:
            answer = {{"at_import": at_import, **parallel.of_this_process()}}
    except Exception as error:
        traceback.print_exc()
        answer = {{"error": repr(error)}}
    body = json.dumps(answer).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


def child(found: dict) -> dict:
    return {key: found[key] for key in CHILD} if "pid" in found else found


@pytest.fixture
def parallel(serve):
    """Starts a server of one worker whose application uses multiprocessing; `at_import` is evaluated at its import."""

    def make(*options: str, at_import: str = "None", **fields) -> Server:
        server = serve(*options, **{"workers": 1, **fields})
        server.write("one", whole=CODE.format(at_import=at_import))
        return server.start()

    return make


@pytest.mark.parametrize("where", ["request", "job"])
def test_children_of_native_threads_are_not_patched_and_no_server(parallel, where):
    server = parallel("--threads", "2")
    for method in METHODS:
        for what in ("executor", "pool", "manager", "queue", "command"):
            found = server.get(f"/{where}?what={what}&method={method}", timeout=60).json
            assert child(found) == CHILD, (what, method)


@pytest.mark.parametrize("where", ["request", "job"])
def test_children_of_greenlets_are_not_patched_and_no_server(parallel, where):
    """Pool, Manager and (from Python 3.14) forkserver do not work with gevent: docs/frameworks.md."""
    server = parallel()
    for method in OF_GREENLETS:
        for what in ("executor", "queue", "command"):
            found = server.get(f"/{where}?what={what}&method={method}", timeout=60).json
            assert child(found) == CHILD, (what, method)


@pytest.mark.parametrize("threads", [(), ("--threads", "2")], ids=["greenlets", "threads"])
@pytest.mark.parametrize("preload", ["always", "never"])
def test_children_of_an_import_are_not_patched_and_no_server(parallel, threads, preload):
    methods = METHODS if threads else OF_GREENLETS
    at_import = f"[parallel.use('executor', method) for method in {methods}]"
    server = parallel(*threads, "--preload", preload, at_import=at_import)
    answer = server.get().json
    assert [child(one) for one in answer["at_import"]] == [CHILD] * len(methods)
    assert answer["main"] == "", "the application's own __main__ is empty, too"


def test_children_made_by_fork_work(parallel):
    for options, whats in (((), ("executor", "queue")), (("--threads", "2"), ("executor", "pool", "manager", "queue"))):
        server = parallel(*options)
        for what in whats:
            found = server.get(f"/request?what={what}&method=fork", timeout=60).json
            assert found["pid"] != server.get().json["pid"], (what, found)


SHARED = {
    "an executor": """\
executor = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
def answer():
    return executor.submit(parallel.double, os.getpid()).result() // 2
""",
    "a forkserver": """\
parallel.use("queue", "forkserver")
def answer():
    return os.getpid() if parallel.use("queue", "forkserver")["server"] == [] else 0
""",
    "a pool": """\
pool = multiprocessing.get_context("spawn").Pool(1)
def answer():
    return pool.apply(parallel.double, (os.getpid(),)) // 2
""",
    "a manager": """\
manager = multiprocessing.get_context("spawn").Manager()
kept = manager.dict()
def answer():
    kept[os.getpid()] = os.getpid()
    return sum(kept.values())  # of this worker alone: each has a manager of its own
""",
    "an event loop": """\
import asyncio
loop = asyncio.new_event_loop()
def answer():
    return loop.run_until_complete(loop.run_in_executor(None, os.getpid))
""",
}


@pytest.mark.parametrize("what", SHARED)
def test_what_an_import_makes_answers_in_each_of_several_workers(serve, what):
    server = serve("--threads", "1", workers=3)
    server.write(
        "one",
        "import multiprocessing, os, parallel\nfrom concurrent.futures import ProcessPoolExecutor\n"
        f"{SHARED[what]}"
        "def application(environ, start_response):\n"
        "    start_response('200 OK', [])\n"
        "    return [str(answer() == os.getpid()).encode()]\n",
    )
    server.launch()
    server.settle(within=60)

    def ask_often() -> set[bytes]:
        return {server.get("/", timeout=60).body for _ in range(8)}

    for client in [Background(ask_often) for _ in range(3)]:
        assert client.result(120) == {b"True"}


@pytest.mark.parametrize("moment", ["import", "start hook"])
def test_a_manager_is_refused_with_the_remedy_where_it_cannot_work(serve, moment):
    server = serve(workers=1)
    code = "import multiprocessing, reuseport\n"
    begin = "multiprocessing.get_context('spawn').Manager().dict()\n"
    server.write("one", code + ("kept = " if moment == "import" else "@reuseport.on_start\ndef begin(): ") + begin)
    outcome = server.run()
    assert outcome.exit == 1
    failed = [line for line in outcome.err.splitlines() if "generation 1 failed" in line]
    assert failed and "--threads" in failed[0]


def test_a_command_that_repeats_the_zygote_s_own_is_told_what_to_do(parallel):
    """As a reloader does that runs `sys.orig_argv` again."""
    for module in ("zygote", "probe"):
        outcome = subprocess.run([sys.executable, "-P", "-m", f"reuseport.{module}"], capture_output=True, text=True)
        assert outcome.returncode == 1
        assert outcome.stderr.count("\n") == 1
        assert "reuseport serve" in outcome.stderr


def test_a_process_that_imports_all_of_the_package_is_not_patched_and_no_server():
    code = """\
import importlib, json, pkgutil, reuseport
for found in pkgutil.walk_packages(reuseport.__path__, "reuseport."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
from gevent import monkey
handle = reuseport.spawn(str.upper, "a", where="process")  # a thread, as outside a server
print(json.dumps([sorted(monkey.saved), handle.result(20)]))
"""
    output = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert json.loads(output) == [[], "A"]


ENDED = """\
import os, time
from gevent import monkey
monkey.patch_all()
import multiprocessing
from reuseport.worker import children

def begin(method, target, *arguments):
    process = multiprocessing.get_context(method).Process(target=target, args=arguments)
    process.start()
    return process

processes = [begin("fork", time.sleep, 600), begin("spawn", time.sleep, 600), begin("fork", int)]
os.waitid(os.P_PID, processes[-1].pid, os.WEXITED | os.WNOWAIT)
children.end()
print(multiprocessing.active_children(), flush=True)  # the exit handler joins these
os._exit(0)
"""


def test_no_exit_handler_waits_for_the_processes_that_have_ended_with_their_zygote():
    assert subprocess.check_output([sys.executable, "-c", ENDED], text=True) == "[]\n"


COMPANION = """\
import json, os, sys, time
sys.path.insert(0, {apps!r})
import parallel
import app  # as a queue worker imports the application whose tasks it runs
if __name__ == "__main__":
    found = [parallel.of_this_process(), *(parallel.use("executor", method) for method in {methods})]
    with open({result!r} + ".new", "w") as file:
        json.dump(found, file)
    os.rename({result!r} + ".new", {result!r})
    time.sleep(1000)
"""


def test_companions_and_their_children_are_not_patched_and_no_server(serve):
    server = serve("-c", "conf.toml", workers=1)
    result = server.root / "found.json"
    directory = server.write("one", whole=CODE.format(at_import="None"))
    (directory / "tasks.py").write_text(COMPANION.format(apps=str(APPS), methods=METHODS, result=str(result)))
    (server.root / "conf.toml").write_text(f"[[companion]]\nname = 'tasks'\ncommand = '{sys.executable} tasks.py'\n")
    server.start()
    wait_for(result.exists, "the companion's answer")
    own, *children = json.loads(result.read_text())
    assert [child(one) for one in children] == [{**CHILD, "main": "tasks.py"}] * len(METHODS)
    assert not own["patched"] and "reuseport.zygote" not in own["server"]


# --- a script that calls reuseport.serve ------------------------------------------------------------------------------

SCRIPT = """\
import multiprocessing, os, sys
sys.path.insert(0, {apps!r})
from concurrent.futures import ProcessPoolExecutor
import json, parallel, reuseport

WHERE = os.environ["TEST_GATES"]
open(os.path.join(WHERE, f"{{__name__}}.{{os.getpid()}}.imported"), "w").close()

def triple(number):
    return [3 * number, __name__, parallel.of_this_process()]

def application(environ, start_response):
    try:
        if environ["PATH_INFO"] == "/job":
            answer = reuseport.spawn(triple, 5, where="process").result(60)
        else:
            context = multiprocessing.get_context(environ["QUERY_STRING"])
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                answer = pool.submit(triple, 5).result()
    except Exception as error:
        answer = repr(error)
    body = json.dumps(answer).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]

{guard}
    reuseport.serve(application, bind="127.0.0.1:0", name={name!r}, workers=1, {options})
"""


@pytest.fixture
def script(serve):
    def make(guard: str = 'if __name__ == "__main__":', options: str = "", flags: tuple[str, ...] = ()) -> Server:
        server = serve(script="current/server.py", flags=flags)
        directory = server.releases / "one"
        directory.mkdir(parents=True)
        text = SCRIPT.format(apps=str(APPS), guard=guard, name=server.name, options=options)
        (directory / "server.py").write_text(text)
        server.flip(directory)
        return server.start()

    return make


@pytest.mark.parametrize("options", ["", "threads=2", "preload='never'"])
def test_functions_of_a_script_that_serves_itself_reach_its_children(script, options):
    server = script(options=options)
    for method in METHODS if "threads" in options else OF_GREENLETS:
        number, name, found = server.get(f"/?{method}", timeout=60).json
        assert (number, name) == (15, "__mp_main__")
        assert child(found) == {**CHILD, "main": "server.py"}
    number, name, _ = server.get("/job", timeout=60).json
    assert (number, name) == (15, "__main__")


def test_a_script_that_serves_itself_without_a_guard_makes_no_server_in_its_children(script):
    server = script(guard="if True:")
    answer = server.get("/?spawn", timeout=60).json
    assert "BrokenProcessPool" in answer
    wait_for(lambda: 'Put the call below `if __name__ == "__main__":`' in server.log.read_text(), "the reason is said")
    titles = [title_of(pid) for pid in server.processes()]
    assert sum(title.startswith("reuseport: master") for title in titles) == 1, titles
    assert server.settle(1)["master"]["pid"] == server.pid


def test_a_child_of_multiprocessing_is_no_script_that_could_be_run_again(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(
        "import multiprocessing, sys, reuseport\n"
        "def begin():\n"
        "    reuseport.serve(print, bind='127.0.0.1:0')\n"
        "if __name__ == '__main__':\n"
        "    process = multiprocessing.get_context(sys.argv[1]).Process(target=begin)\n"
        "    process.start()\n"
        "    process.join()\n"
        "    sys.exit(process.exitcode)\n"
    )
    for method in ("fork", "spawn", "forkserver"):
        outcome = subprocess.run([sys.executable, str(path), method], capture_output=True, text=True, timeout=60)
        assert outcome.returncode == 1
        assert "EmbeddingError" in outcome.stderr and "child process" in outcome.stderr, method


def test_a_directory_with_a_main_module_serves_itself(serve):
    server = serve(script="current")
    directory = server.releases / "one"
    directory.mkdir(parents=True)
    text = SCRIPT.format(apps=str(APPS), guard='if __name__ == "__main__":', name=server.name, options="")
    (directory / "__main__.py").write_text(text)
    server.flip(directory)
    server.start()
    assert server.get("/?spawn", timeout=60).json[:2] == [15, "__mp_main__"]
