"""The recipes of docs/companions.md, as they stand there, with the real queues and a Redis of the test's own.

The tests take the configuration and the modules from the page. The tasks are the tests' own: their import waits at the
gate `import-GENERATION`, and each ends when its gate is open.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import CHECKOUT, Server, listens, wait_for
from test_companions import await_state, companion

PAGE = (CHECKOUT / "docs/companions.md").read_text()
PATIENCE = 60.0  # seconds: four interpreters that import a queue take a while on a busy machine

NO_REDIS = "redis-server is not installed (apt-get install redis-server)"
pytestmark = pytest.mark.skipif(not shutil.which("redis-server"), reason=NO_REDIS)

# Of each queue: its package, how its client writes a unix socket's URL, its companion that works, the module of tasks,
# what puts some into the queue, and how many of them the recipe's processes do at once.
TASK = """\
import json, os, time
GATES, GENERATION = os.environ["TEST_GATES"], os.environ.get("REUSEPORT_GENERATION", "0")
while GENERATION != "0" and not os.path.exists(f"{GATES}/import-{GENERATION}.open"):
    time.sleep(0.01)

def note(what, name):
    with open(f"{GATES}/tasks", "a") as file:
        file.write(json.dumps([what, name, int(GENERATION)]) + "\\n")

def do(name):
    note("begins", name)
    while not os.path.exists(f"{GATES}/{name}.open"):
        time.sleep(0.01)
    note("ends", name)
"""
QUEUES = {
    "Celery": (
        "celery",
        "redis+socket://{}",
        "worker",
        "from shop.celery import app\n@app.task\ndef work(name):\n    do(name)\n",
        "from shop.tasks import work\nfor name in {!r}: work.delay(name)",
        4,
    ),
    "Huey": (
        "huey",
        "unix://{}",
        "huey",
        "from shop.queue import huey\n@huey.task()\ndef work(name):\n    do(name)\n",
        "from shop.tasks import work\nfor name in {!r}: work(name)",
        5,  # the one that is periodic has a worker, too
    ),
    "RQ": (
        "rq",
        "unix://{}",
        "rq",
        "def work(name):\n    do(name)\n",
        "import os, redis, rq; from shop.tasks import work\n"
        "queue = rq.Queue('default', connection=redis.Redis.from_url(os.environ['REDIS_URL']))\n"
        "for name in {!r}: queue.enqueue(work, name)",
        4,
    ),
    "Dramatiq": (
        "dramatiq",
        "unix://{}",
        "dramatiq",
        "import shop.broker, dramatiq\n@dramatiq.actor(max_retries=0)\ndef work(name):\n    do(name)\n",
        "from shop.tasks import work\nfor name in {!r}: work.send(name)",
        4,
    ),
}


def blocks(kind: str, text: str = PAGE) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL)


def recipe(name: str) -> tuple[str, dict[str, str]]:
    """The configuration of a recipe, and its modules by their path."""
    section = PAGE.split(f"\n### {name}\n")[1].split("\n### ")[0]
    code = [block for block in blocks("python", section) + blocks("python") if block.startswith("# shop/")]
    modules = {block.partition("\n")[0].removeprefix("# "): block for block in code}
    own = {path: text for path, text in modules.items() if text in section or path == "shop/notify.py"}
    return "".join(blocks("toml", section)), own


class Shop:
    """A server with a queue's recipe."""

    def __init__(self, server: Server, name: str, redis: Path) -> None:
        self.package, url, self.companion, self.tasks, self.enqueue, self.capacity = QUEUES[name]
        self.configuration, self.modules = recipe(name)
        self.server = server
        server.env |= {"REDIS_URL": url.format(redis), "C_FORCE_ROOT": "1"}
        (server.root / "reuseport.toml").write_text(self.configuration)

    def write(self, version: str, tasks: str = "") -> None:
        directory = self.server.write(version, flip=False)
        (directory / "shop").mkdir()
        for path, text in {**self.modules, "shop/__init__.py": "", "shop/tasks.py": tasks or TASK + self.tasks}.items():
            (directory / path).write_text(text)
        self.server.flip(directory)

    def imports(self, generation: int) -> None:
        self.server.gate(f"import-{generation}").open()

    def start(self) -> Shop:
        self.write("one")
        self.imports(1)
        self.server.launch()
        self.server.settle(1, within=PATIENCE)
        return self

    def ask(self, *names: str) -> None:
        """Put tasks into the queue."""
        subprocess.run(
            [sys.executable, "-c", self.enqueue.format(names)],
            cwd=self.server.current,
            env=self.server.environment,
            check=True,
        )

    def await_task(self, what: str, name: str) -> int:
        """The generation that did so."""
        path = self.server.gates / "tasks"

        def told() -> list[int]:
            lines = path.read_text().splitlines() if path.exists() else []
            return [generation for *of, generation in map(json.loads, lines) if of == [what, name]]

        return wait_for(told, f"task {name} {what}", PATIENCE)[0]

    def workers(self, generation: int) -> list[dict]:
        """The companion's processes."""
        companions = self.server.status().generation(generation)["companions"]
        return [one for one in companions if one["name"] == self.companion]


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Path]:
    """The socket of a Redis that ends with the test, and keeps nothing."""
    directory = Path(f"/tmp/ru-redis-{os.getpid()}-{time.monotonic_ns()}")  # tmp_path is too long for a socket
    directory.mkdir(mode=0o755)
    path = directory / "s"
    words = ["--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(directory)]
    process = subprocess.Popen(["redis-server", *words], stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: listens(path), "Redis")
        yield path
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(directory)


@pytest.fixture
def open_shop(serve, redis: Path) -> Callable[[str], Shop]:
    def make(name: str) -> Shop:
        package = QUEUES[name][0]
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: it is in the extra `queue`")
        return Shop(serve(), name, redis)

    return make


def some(*names: str, more: tuple[bool, ...] = ()) -> list:
    """All queues as parameters of a test. A usual run tries these; each has its own test of some kind."""
    return [pytest.param(name, *more, marks=[] if name in names else pytest.mark.more) for name in QUEUES]


@pytest.mark.parametrize("name", some("Celery", "Dramatiq"))
def test_a_release_waits_for_a_slow_import_and_the_new_worker_takes_tasks(name: str, open_shop):
    shop = open_shop(name).start()
    server = shop.server
    server.gate("first").open()
    shop.ask("first")
    assert shop.await_task("ends", "first") == 1
    shop.write("two")
    command = server.begin("release")
    server.wait(lambda s: s.booting and any(c["pid"] for c in shop.workers(2)), "a new worker", PATIENCE)
    # A timer would have taken it for ready by now.
    server.wait(lambda s: all(c["age"] > 1.5 for c in shop.workers(2) if c["pid"]), "some time")
    assert not any(c["ready"] for c in shop.workers(2)) and server.status().serving == 1
    assert {c["state"] for c in shop.workers(1)} == {"running"}, "the old ones have got no TERM"
    shop.imports(2)
    assert server.end(command, within=PATIENCE).exit == 0
    assert all(c["ready"] for c in shop.workers(2))
    server.settle(2, within=PATIENCE)
    shop.ask("second")
    server.gate("second").open()
    assert shop.await_task("ends", "second") == 2


@pytest.mark.parametrize("name", some("Celery"))
def test_an_import_error_in_a_task_module_fails_the_release_and_the_old_worker_works_on(name: str, open_shop):
    shop = open_shop(name).start()
    server = shop.server
    before = [(c["id"], c["pid"]) for c in shop.workers(1)]
    shop.write("two", "import no_such_module\n")
    outcome = server.release(within=PATIENCE)
    assert outcome.exit == 1
    failure = rf"generation 2 failed: companion 2\.{shop.companion}\S* exited with status \d+.* before it was ready"
    assert re.search(failure, outcome.err)
    assert "No module named 'no_such_module'" in outcome.err
    server.settle(1, within=PATIENCE)
    assert [(c["id"], c["pid"]) for c in shop.workers(1)] == before
    assert {c["state"] for c in shop.workers(1)} == {"running"}
    shop.write("one again")  # the client needs the task's module
    server.gate("third").open()
    shop.ask("third")
    assert shop.await_task("ends", "third") == 1


def acknowledge_late(shop: Shop) -> None:
    """What the page recommends in the place of --disable-prefetch."""
    [settings] = [block for block in blocks("python") if "task_acks_late" in block]
    shop.modules["shop/celery.py"] += settings
    assert "--disable-prefetch " in shop.configuration
    (shop.server.root / "reuseport.toml").write_text(shop.configuration.replace("--disable-prefetch ", ""))


@pytest.mark.parametrize(("name", "late"), [*some("Huey", "RQ", more=(False,)), ("Celery", True)])
def test_the_new_version_does_a_task_that_waits_while_the_old_one_finishes_its_own(name: str, late: bool, open_shop):
    """A worker that reserves tasks would keep it until its longest task ends."""
    shop = open_shop(name)
    if late:
        acknowledge_late(shop)
    shop.start()
    server = shop.server
    long = [f"long{number}" for number in range(shop.capacity)]
    shop.ask(*long, "waits")
    assert {shop.await_task("begins", task) for task in long} == {1}
    shop.write("two")
    shop.imports(2)
    server.gate("waits").open()
    assert server.release(within=PATIENCE).exit == 0
    assert shop.await_task("ends", "waits") == 2
    assert server.status().draining == [1]
    for task in long:
        server.gate(task).open()
    assert {shop.await_task("ends", task) for task in long} == {1}, "each is done by the version that began it"
    server.settle(2, within=PATIENCE)


@pytest.mark.parametrize(
    ("name", "scheduler"), [("Celery", "beat"), pytest.param("Huey", "periodic", marks=pytest.mark.more)]
)
def test_a_scheduler_runs_once_and_says_when_it_is_ready(name: str, scheduler: str, open_shop):
    shop = open_shop(name).start()
    server = shop.server
    first = await_state(server, f"1.{scheduler}", "running")
    assert first["exclusive"] and first["readiness"] == "notify"
    shop.write("two")
    shop.imports(2)
    assert server.release("--wait", "drained", within=PATIENCE).exit == 0
    wait_for(lambda: companion(server, f"2.{scheduler}")["ready"], "the new one", PATIENCE)
    assert server.cli("status", "--check").out == "running\n"
    os.kill(companion(server, f"2.{scheduler}")["pid"], signal.SIGKILL)
    wait_for(lambda: (c := companion(server, f"2.{scheduler}"))["restarts"] and c["ready"], "another one", PATIENCE)
