"""Two versions of the server in one run directory: one that is older than this, and ones that cannot be understood.

The older one is a commit of this repository, the oldest that can be gone on from and taken over from. Who breaks that
raises the number that says so (`estate.VERSION`, `roster.VERSION`, `succession.PROTOCOL`, `channel.VERSION`), and
names a later commit here.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from harness import CHECKOUT, Background, Server, make_venv, wait_for
from test_upgrading import JOBBING, PACKAGE, Installed

EARLIER = "7f5f2554605733054e870eb08f8756f2a3b79e5a"
OPTIONS = ("--tenant", "header:X-Tenant", "--metrics", "127.0.0.1:0", "--standby", "600")
COMPANIONS = """\
[[companion]]
name = "queue"
command = "sleep 600"
processes = 2

[[companion]]
name = "cron"
command = "sleep 600"
exclusive = true
"""
JOBS = ("computed", "waited", "asked")


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as it was then."""
    home = tmp_path_factory.mktemp("earlier")
    archive = subprocess.run(["git", "-C", CHECKOUT, "archive", EARLIER, "reuseport"], capture_output=True)
    if archive.returncode:
        pytest.skip(f"this checkout has no commit {EARLIER}: {archive.stderr.decode().strip()}")
    subprocess.run(["tar", "-x", "-C", home], input=archive.stdout, check=True)
    return home / "reuseport"


class Busy:
    """A server of the earlier version: generation 1 drains with jobs of all kinds, generation 2 serves."""

    def __init__(self, serve, earlier: Path) -> None:
        self.installed = Installed(serve, source=earlier)
        self.server = server = self.installed.server
        server.options = (*OPTIONS, "-c", configuration(server))
        server.write("one", whole=JOBBING.format(version="one"))
        server.start()
        assert server.address
        server.get("/begin?name=computed")  # in a process of its own
        server.get("/spawn?name=waited")  # in a worker
        self._asked = Background(lambda: server.get("/block?name=asked", timeout=600))
        for name in JOBS:
            server.gate(name).await_entered()
        server.write("two", whole=JOBBING.format(version="two"))
        assert server.release().exit == 0
        self.jobs = jobs_of(server)
        assert sum(self.jobs.values()) >= len(JOBS)

    def end_jobs(self) -> None:
        for name in JOBS:
            self.server.gate(name).open()
        for name in ("computed", "waited"):
            self.server.gate(f"{name}-ended").await_entered()
        assert self._asked.result().status == 200


def configuration(server: Server) -> str:
    path = server.root / "companions.toml"
    path.write_text(COMPANIONS)
    return str(path)


def jobs_of(server: Server) -> dict[str, int]:
    """How many each worker of the generation that drains has."""
    return {worker["id"]: worker["jobs"] for worker in server.status().generation(1)["workers"]}


def check(server: Server, *packages: Path) -> None:
    """The command lines of these versions understand the master, and it has met with no defect."""
    for package in packages:
        environment = {**server.environment, "PYTHONPATH": str(package.parent)}
        for word in ("status", "tenants", "history"):
            command = [sys.executable, "-m", "reuseport", word]
            done = subprocess.run(command, capture_output=True, text=True, cwd=server.root, env=environment)
            assert (done.returncode, done.stderr) == (0, ""), done
    log = server.log.read_text()
    assert not [word for word in ("a defect", "nonsense", "Traceback") if word in log], log


def test_an_earlier_version_becomes_this_one_in_place_and_goes_back(serve, earlier):
    busy = Busy(serve, earlier)
    installed, server = busy.installed, busy.server
    before = server.status()
    with server.load(one_shot=2, keep_alive=2) as load:
        for number, source in (("0.2.0", PACKAGE), ("0.1.2", earlier), ("0.2.1", PACKAGE)):
            installed.install(number, source)
            installed.upgrade()
            assert installed.version == number
            assert server.status().pids() == before.pids() and jobs_of(server) == busy.jobs
            check(server, earlier, PACKAGE)
            load.more(20)
        server.write("three", whole=JOBBING.format(version="three"))
        assert server.release().exit == 0
        busy.end_jobs()
        server.settle(3)
        assert server.cli("rollback", "--wait", "drained").exit == 0  # to a zygote of the earlier version
        load.more(20)
    assert load.failures == [] and load.versions[-1] == "two"
    assert server.status()["lost"]["count"] == 0
    check(server, earlier, PACKAGE)


def test_this_version_takes_over_from_an_earlier_one_and_back(serve, earlier):
    busy = Busy(serve, earlier)
    masters = [busy.server]
    with busy.server.load(one_shot=2, keep_alive=2) as load:
        for version, source in (("three", PACKAGE), ("four", earlier)):
            one = Installed(serve, "--takeover", source=source, run_dir=busy.server.run_dir, bind=()).server
            one.name = busy.server.name
            one.options += (*OPTIONS, "-c", configuration(one))
            one.write(version, whole=JOBBING.format(version=version))
            one.launch()
            one.wait(lambda s, pid=one.pid: s["master"]["pid"] == pid, "the takeover")
            load.more(20)
            assert one.get().version == version and jobs_of(one) == busy.jobs
            check(one, earlier, PACKAGE)
            masters.append(one)
        busy.end_jobs()
        assert [one.await_exit() for one in masters[:-1]] == [0, 0]
        load.more(20)
    assert load.failures == [] and load.versions[-1] == "four"
    assert masters[-1].settle(4)["lost"]["count"] == 0
    for one in masters:
        check(one)


def test_what_an_earlier_version_left_is_adopted_by_this_one_and_back(serve, earlier):
    busy = Busy(serve, earlier)
    installed, server = busy.installed, busy.server
    before = server.status()
    server.bind = (server.address,)
    with server.load(one_shot=2, keep_alive=2) as load:
        for number, source in (("0.2.0", PACKAGE), ("0.1.2", earlier), ("0.2.1", PACKAGE)):
            server.process.kill()
            server.process.wait()
            load.more(10)
            installed.install(number, source)
            server.launch()
            server.wait(lambda s: s.serving == 2 and s.draining == [1] and s.pids() == before.pids(), "the adoption")
            wait_for(lambda: jobs_of(server) == busy.jobs, "the jobs")
            check(server, earlier, PACKAGE)
        busy.end_jobs()
        server.settle(2)
        load.more(20)
    assert load.failures == []
    assert server.status()["lost"]["count"] == 0


def test_an_interpreter_whose_messages_the_master_does_not_understand_fails_the_release(serve):
    installed = Installed(serve)
    server = installed.server.start()
    with server.load() as load:
        installed.install("0.2.0", ipc_channel=("VERSION = 1 ", "VERSION = 2 "))
        outcome = server.release()
        assert outcome.exit == 1
        assert "its reuseport sends messages of number 2, and this master is reuseport 0.1.1, which und" in outcome.err
        load.more(20)
    assert load.failures == []
    before = server.settle(1)
    installed.install("0.2.1")
    assert server.renew() == 3 and not before.pids() & server.status().pids()


def test_a_master_that_speaks_otherwise_of_takeovers_takes_nothing_over(serve):
    server = Installed(serve).server.start()
    before = server.status()
    other = Installed(serve, "--takeover", run_dir=server.run_dir, bind=())
    other.server.name = server.name
    other.install("0.2.0", master_succession=("PROTOCOL = 1", "PROTOCOL = 2"))
    other.server.write("two")
    outcome = other.server.run()
    assert outcome.exit == 1
    assert f"master {server.pid} (reuseport 0.1.1) takes part in takeovers of protocol 1, not 2" in outcome.err
    assert server.settle(1).pids() == before.pids()


def test_a_master_that_cannot_read_the_other_one_s_books_leaves_the_release_to_it(serve):
    server = Installed(serve).server.start()
    with server.load(one_shot=2, keep_alive=2) as load:
        other = Installed(serve, "--takeover", run_dir=server.run_dir, bind=())
        other.server.name = server.name
        other.install("0.2.0", master_numbers=('left["looks"]', 'left["glances"]'))
        other.server.write("two")
        outcome = other.server.run()
        assert outcome.exit == 1 and "Traceback" not in outcome.err
        assert f"what master {server.pid} leaves of its numbers is not what this version reads" in outcome.err
        server.settle(2)
        load.more(20)
        server.write("three")
        assert server.renew() == 3
        load.more(20)
    assert load.failures == [] and load.versions[-1] == "three"


@pytest.mark.parametrize(
    "more", ["", "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"]
)
def test_an_environment_with_an_earlier_version_is_served_by_that(serve, earlier, tmp_path, more):
    """At once, and after the import has turned out not to survive a fork."""
    python = make_venv(tmp_path / "venv", with_reuseport=False)
    (packages,) = (tmp_path / "venv").glob("lib/python3*/site-packages")
    borrowed = [str(earlier.parent), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    (packages / "borrowed.pth").write_text("\n".join(dict.fromkeys(borrowed)) + "\n")
    server = serve("--python", python, workers=1)
    server.write(
        "one",
        code=more
        + f"""
import reuseport
assert reuseport.__file__.startswith({str(earlier.parent)!r}), reuseport.__file__
""",
    )
    server.start()
    assert server.get().version == "one"
    assert server.release("--wait", "drained").exit == 0
    assert server.get().version == "one"
