"""Exit handlers of an import: which process runs them, and when."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from harness import CHECKOUT, is_gone, wait_for

# Each entry of FILES is removed by a handler that the import registers, each in another way.
APP = """
import atexit, functools, json, multiprocessing.util, os, pathlib, shutil, tempfile
import basic, reuseport

ROOT = pathlib.Path(os.environ["TEST_GATES"])
FILES = []

def directory():
    FILES.append(tempfile.mkdtemp(dir=ROOT, prefix="dir-"))
    return FILES[-1]

TEMPORARY = tempfile.TemporaryDirectory(dir=ROOT, prefix="dir-")
NAMED = tempfile.NamedTemporaryFile(dir=ROOT, prefix="dir-")
FILES += [TEMPORARY.name, NAMED.name]
atexit.register(shutil.rmtree, directory())
atexit.register(functools.partial(shutil.rmtree, path=directory()))
atexit.register(pathlib.Path(directory()).rmdir)
MINE = directory()

@atexit.register
def remove():
    shutil.rmtree(MINE)

# multiprocessing removes these: a semaphore (sem_overview(7)) and the directory of its sockets.
tempfile.tempdir = str(ROOT)
LOCK = multiprocessing.get_context("spawn").Lock()
SEMAPHORE = "/dev/shm/sem." + LOCK._semlock.name.lstrip("/")
FILES += [multiprocessing.util.get_temp_dir(), SEMAPHORE]
(ROOT / f"of-{os.path.basename(SEMAPHORE)}").symlink_to(SEMAPHORE)

IMPORTED = os.getpid()

@atexit.register
def start_a_program():
    if os.getpid() == IMPORTED:
        os.system(f"grep SigIgn /proc/self/status >{ROOT}/ignored-{VERSION}")

@atexit.register
def flush():
    with open(ROOT / "flushed", "a") as file:
        file.write(f"{VERSION} {os.getpid()}\\n")

inner = basic.make(VERSION)
def application(environ, start_response):
    if environ["PATH_INFO"] == "/missing":
        start_response("200 OK", [])
        return [json.dumps([path for path in FILES if not os.path.exists(path)]).encode()]
    if environ["PATH_INFO"] == "/job":
        reuseport.spawn(os.getpid, name="pid", where="process").result(60)
    return inner(environ, start_response)
"""


HANGS = """
import atexit, os, threading

@atexit.register
def waits_for_nothing():
    if os.getpid() == basic.IMPORT_PID:
        threading.Event().wait(600)
"""


def code(version: str) -> str:
    return f"VERSION = {version!r}\n{APP}"


def files_of(server) -> set[str]:
    return {path.name for path in server.gates.glob("dir-*")}


def of_multiprocessing(server) -> list[Path]:
    return [*server.gates.glob("pymp-*"), *(path for path in server.gates.glob("of-*") if path.exists())]


def flushed(server) -> list[str]:
    path = server.gates / "flushed"
    return path.read_text().splitlines() if path.exists() else []


def replace_a_worker(server) -> int:
    """Have one worker end, and its place taken. Its pid."""
    (worker, *_) = server.status().workers()
    os.kill(worker["pid"], signal.SIGTERM)
    server.wait(lambda s: s.is_settled() and worker["pid"] not in s.pids(), "another worker in its place")
    wait_for(lambda: not Path(f"/proc/{worker['pid']}").exists(), "the end of the worker")
    return worker["pid"]


def test_files_of_an_import_live_as_long_as_its_generation(serve):
    """Over a replaced worker, a standby and a rollback that copies its zygote. A flush runs in each process. An import
    that fails leaves nothing, and a handler that hangs does not keep a zygote."""
    server = serve()
    server.write("one", whole=code("one"))
    server.start()
    zygote, first = server.status().zygote, files_of(server)
    ended = replace_a_worker(server)
    assert server.get("/missing").json == []
    assert flushed(server) == [f"one {ended}"]
    assert server.get("/job").status == 200
    wait_for(lambda: len(flushed(server)) == 2, "the end of the job's process")
    assert server.get("/missing").json == []
    server.write("fails", whole=code("fails") + "1 / 0\n")
    outcome = server.release()
    assert outcome.exit == 1 and "ZeroDivisionError" in outcome.err
    assert files_of(server) == first and flushed(server)[-1].startswith("fails ")
    ignored = int((server.gates / "ignored-fails").read_text().split()[1], 16)
    assert not ignored >> (signal.SIGTERM - 1) & 1, "of a program that an exit handler starts"
    server.write("two", HANGS)
    assert server.release("--wait", "drained").exit == 0
    assert files_of(server) == first, "the version before stands by"
    assert server.cli("rollback", "--wait", "drained").exit == 0
    wait_for(lambda: is_gone(zygote), "the end of the zygote that was copied")
    assert server.get().version == "one" and server.get("/missing").json == []
    server.write("three", whole=code("three"))
    assert server.renew() == 5  # the first zygote has gone: the last one to stand by is its copy
    server.wait(lambda s: [g["number"] for g in s["generations"]] == [4, 5], "the end of the generations before")
    assert files_of(server) > first
    left = server.status()
    pids = {w["pid"] for g in left["generations"] for w in g["workers"]}
    assert server.cli("stop").exit == 0
    assert server.await_exit() == 0
    assert files_of(server) == set() and of_multiprocessing(server) == []
    lines = flushed(server)
    assert {int(line.split()[1]) for line in lines} >= {zygote, ended, *pids}
    assert len(lines) == len(set(lines)), "no process ran it twice"


def test_files_of_an_import_that_each_worker_repeats(serve):
    """The first import leaves a greenlet, so its process executes itself again, and its files go."""
    server = serve("--standby", "0")
    server.write("one", whole=code("one") + "import gevent\nAWAKE = gevent.spawn(gevent.sleep, 3600)\n")
    server.start()
    each = len(files_of(server)) // 2
    assert each == 6
    replace_a_worker(server)
    assert server.get("/missing").json == []
    assert len(files_of(server)) == 2 * each
    server.cli("stop")
    assert server.await_exit() == 0
    assert files_of(server) == set()


METRICS = """
import glob, os
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest, multiprocess
import basic

VISITS = Counter("visits", "")
LIVE = Gauge("live", "", multiprocess_mode="livesum")
LIVE.set(1)
inner = basic.make(VERSION)
def application(environ, start_response):
    VISITS.inc()
    LIVE.set(1)
    return inner(environ, start_response)

{recipe}
"""


def test_the_recipe_for_the_files_of_prometheus_client(serve, tmp_path):
    """Dead processes leave no live gauge, and zygotes leave no file. Workers leave their counters, which are totals."""
    pytest.importorskip("prometheus_client")
    section = (CHECKOUT / "docs" / "running.md").read_text().partition("### Exit handlers")[2]
    recipe = section.partition("```python\n")[2].partition("```")[0]
    body = METRICS.format(recipe=recipe)
    server = serve("--standby", "0", workers=1, env={"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)})
    server.write("one", whole=f"VERSION = 'one'\n{body}")
    server.start()
    zygote, worker = server.status().zygote, server.get().pid
    assert (tmp_path / f"gauge_livesum_{worker}.db").exists()
    server.write("two", whole=f"VERSION = 'two'\n{body}")
    server.renew()
    left = {path.name for path in tmp_path.iterdir() if path.stem.rpartition("_")[2] in (str(zygote), str(worker))}
    assert left == {f"counter_{worker}.db"}
