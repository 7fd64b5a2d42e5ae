"""Where the application is imported: once in the zygote, or in each worker when it does not survive a fork."""

from __future__ import annotations

import contextlib
import socket

import pytest
from harness import ask, proportional_memory, resident_memory, wait_for

TICKS = """\
def tick():
    while True:
        basic.extra['ticks'] = basic.extra.get('ticks', 0) + 1
        basic.time.sleep(0.01)
"""
UNSAFE = {
    "thread": TICKS + "import threading\nthreading.Thread(target=tick, daemon=True).start()\n",
    "greenlet": TICKS + "import gevent\ngevent.spawn(tick)\n",
    "executor": TICKS + "from concurrent.futures import ThreadPoolExecutor\nThreadPoolExecutor(1).submit(tick)\n",
    "native thread": """\
from gevent import monkey
lock = monkey.get_original('_thread', 'allocate_lock')()
lock.acquire()
monkey.get_original('_thread', 'start_new_thread')(lock.acquire, ())
""",
    "busy thread pool": """\
import gevent
from gevent import monkey
lock = monkey.get_original('_thread', 'allocate_lock')()
lock.acquire()
gevent.get_hub().threadpool.spawn(lock.acquire)
""",
    "connection": """\
import socket
kept = socket.create_connection(('127.0.0.1', int(basic.os.environ['TEST_PORT'])))
""",
}
# Descriptors that processes cannot share, and what the log says has made them.
DESCRIPTORS = {
    "event loop": ("import asyncio\nloop = asyncio.new_event_loop()\n", "an asyncio event loop"),
    "event loop that has run": (
        "import asyncio\nloop = asyncio.new_event_loop()\nloop.run_until_complete(asyncio.sleep(0))\n",
        "an asyncio event loop",
    ),
    "executor": (
        "from concurrent.futures import ProcessPoolExecutor\nexecutor = ProcessPoolExecutor(1)\n",
        "a ProcessPoolExecutor",
    ),
    "queue": (
        "import multiprocessing\nqueue = multiprocessing.get_context('spawn').Queue()\n",
        "a multiprocessing queue",
    ),
    "process": ("import subprocess\nkept = subprocess.Popen(['cat'], stdin=subprocess.PIPE)\n", "(cat)"),
    "eventfd": ("kept = basic.os.eventfd(0)\n", "eventfd"),
    "socketpair": ("import socket\nkept = socket.socketpair()\n", "socketpair (2)"),
    "database": (
        "import sqlite3\nkept = sqlite3.connect('data')\nkept.execute('create table if not exists a (b)')\n"
        "kept.commit()\n",
        "SQLite database",
    ),
}
SAFE = """\
import asyncio, logging.handlers, multiprocessing, multiprocessing.shared_memory, socket, subprocess, tempfile
import threading, gevent
lock, local = threading.Lock(), threading.local()
asyncio.run(asyncio.sleep(0))
subprocess.run(["cat"], input=b"", capture_output=True, check=True)
context = multiprocessing.get_context("spawn")
shared, memory = context.Lock(), multiprocessing.shared_memory.SharedMemory(create=True, size=10)
memory.unlink()
log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
log.bind(path := tempfile.mktemp())
handler = logging.handlers.SysLogHandler(path)
basic.os.unlink(path)
listener = socket.create_server(("127.0.0.1", 0))
kept = open("application.log", "a"), tempfile.TemporaryFile(), open("/dev/urandom", "rb"), socket.socket()
one, other = basic.os.pipe()
basic.os.close(one)
basic.os.close(other)
"""


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def where(server) -> str:
    """Which process had imported the code that answers now."""
    answer = server.get().json
    zygote = server.status().current["zygote"]["pid"]
    if answer["import_pid"] == zygote:
        return "zygote"
    assert answer["import_pid"] == answer["pid"]
    return "worker"


def test_auto_falls_back_to_importing_in_each_worker_and_comes_back(serve, listener):
    server = serve("-e", f"TEST_PORT={listener.getsockname()[1]}").start()
    assert where(server) == "zygote"
    for number, (name, code) in enumerate(UNSAFE.items()):
        server.write(f"v{number}", code)
        server.renew()
        assert server.get().version == f"v{number}"
        assert where(server) == "worker", name
        if "tick" in code:
            ticks = server.get().json["ticks"]
            wait_for(lambda ticks=ticks: server.get().json["ticks"] > ticks, f"the {name} runs in the workers")
    server.write("safe", "import threading, gevent\nlock = threading.Lock()\nlocal = threading.local()\n")
    server.renew()
    assert where(server) == "zygote"


@pytest.mark.parametrize(
    "mode", [pytest.param((), id="greenlets"), pytest.param(("--threads", "2"), id="threads", marks=pytest.mark.more)]
)
def test_auto_falls_back_for_descriptors_that_processes_cannot_share(serve, mode):
    server = serve(*mode).start()
    for number, (name, (code, maker)) in enumerate(DESCRIPTORS.items()):
        server.write(f"v{number}", code)
        server.renew()
        assert where(server) == "worker", name
        [line] = [one for one in server.log.read_text().splitlines() if f"generation {number + 2}: the import" in one]
        assert maker in line, name
    server.write("safe", SAFE)
    server.renew()
    assert where(server) == "zygote", server.log_end(5)


def test_auto_falls_back_for_a_forkserver(serve):
    """It serves the process that has started it, and not those that were forked from that one."""
    server = serve("--threads", "2")
    server.write("one", "import parallel\nparallel.use('executor', 'forkserver')\n")
    server.start()
    assert where(server) == "worker"
    assert "a multiprocessing forkserver" in server.log.read_text()


def test_always_preloads_descriptors_that_processes_cannot_share(serve):
    server = serve("--preload", "always")
    server.write("one", "import asyncio\nloop = asyncio.new_event_loop()\n")
    server.start()
    assert where(server) == "zygote"


def test_a_connection_that_was_closed_before_the_import_ended_does_no_harm(serve, listener):
    """Nor does gevent's own idle thread pool, which has looked up the name."""
    code = UNSAFE["connection"] + "kept.close()\n"
    server = serve("-e", f"TEST_PORT={listener.getsockname()[1]}")
    server.write("one", code)
    server.start()
    assert where(server) == "zygote"


def test_a_failing_import_in_the_workers_fails_the_release(server):
    # Raises only where it is imported for the second time: in a worker.
    marker = server.root / "imported"
    code = f"import pathlib\nif pathlib.Path({str(marker)!r}).exists(): 1 / 0\npathlib.Path({str(marker)!r}).touch()\n"
    server.write("two", code + UNSAFE["greenlet"])
    outcome = server.release()
    assert outcome.exit == 1
    assert "ZeroDivisionError" in outcome.err
    assert server.get().version == "one"


def test_always_preloads_whatever_was_left_behind(serve):
    server = serve("--preload", "always")
    server.write("one", UNSAFE["native thread"])
    server.start()
    assert where(server) == "zygote"


def test_never_imports_in_each_worker(serve):
    server = serve("--preload", "never").start()
    assert where(server) == "worker"
    imports = {server.get().json["import_pid"] for _ in range(20)}
    assert imports <= server.status().pids()


def test_preload_is_a_release_s_to_change(serve):
    server = serve("-c", "conf.toml")
    config = server.root / "conf.toml"
    config.write_text('preload = "never"\n')
    server.start()
    assert where(server) == "worker"
    config.write_text('preload = "always"\n')
    server.renew()
    assert where(server) == "zygote"


def test_a_factory_is_called_once_in_each_generation(serve):
    server = serve(app="app:create()")
    server.write("one", "def create():\n    basic.enter('factory')\n    return application\n")
    server.start()
    assert server.get().version == "one"
    assert server.gate("factory").entered() == [server.status().current["zygote"]["pid"]]


def test_start_hooks_run_in_each_worker_and_not_in_the_zygote(server):
    server.write("two", "import reuseport\nreuseport.on_start(lambda: basic.enter('hook'))\n")
    server.renew()
    assert set(server.gate("hook").entered()) == server.settle(2).pids()


def test_warm_up_paths_are_requested_in_each_worker_before_it_is_ready(serve):
    server = serve("--warmup", "/gate?name=warm", workers=2).launch()
    gate = server.gate("warm")
    gate.await_entered(2)
    assert server.status().serving is None
    gate.open()
    assert set(gate.entered()) == server.settle().pids()


def test_the_workers_share_the_memory_of_what_was_imported(serve):
    server = serve(workers=4)
    server.write("one", "heap = [{'number': n, 'text': str(n)} for n in range(200_000)]\n")
    server.start()
    pids = server.status().pids()
    collected: set[int] = set()
    # A collection would write to every object that it looks at, if they were not frozen.
    with contextlib.ExitStack() as stack:

        def collect() -> bool:
            connection = stack.enter_context(contextlib.closing(server.client()))
            collected.add(ask(connection, "/collect").pid)
            return collected == pids

        wait_for(collect, "a collection in each worker")
        zygote = server.status().current["zygote"]["pid"]
        single = resident_memory(zygote)
        assert single > 60 << 20, "the heap is large enough to be seen"
        together = sum(proportional_memory(pid) for pid in (zygote, *pids))
    assert together < 1.5 * single, f"{together >> 20} MiB for all, {single >> 20} MiB for one"


def test_a_warm_up_asks_for_the_host_that_was_said_and_an_answer_that_warms_nothing_is_told(serve):
    server = serve("--warmup", "//shop.example:81/a?b", workers=1)
    server.write(
        "one",
        "def application(environ, start_response):\n"
        "    print('asked', environ['HTTP_HOST'], environ['PATH_INFO'], environ['QUERY_STRING'], flush=True)\n"
        "    start_response('404 Not Found', [])\n"
        "    return []\n",
    )
    server.start()
    log = server.log.read_text()
    assert "asked shop.example:81 /a b\n" in log
    assert "--warmup //shop.example:81/a?b: answered with 404: " in log


SEES = """
import sys
basic.extra.update(told=sys._xoptions.get("faulthandler"), warned=sys.warnoptions)
"""


def test_options_of_the_interpreter_that_are_for_the_application_reach_it(serve):
    """Also a zygote that starts again, because its import has left a thread behind."""
    thread = "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    flags = ("-X", "faulthandler", "-W", "error::UserWarning", "-s")
    server = serve(workers=1, flags=flags)
    server.write("one", code=SEES)
    server.start()
    answer = server.get().json
    assert (answer["told"], answer["warned"]) == (True, ["error::UserWarning"])
    server.write("two", code=SEES + thread)
    server.renew()
    again = server.get().json
    assert again["import_pid"] == again["pid"], "each worker imports"
    assert (again["told"], again["warned"]) == (answer["told"], answer["warned"])
