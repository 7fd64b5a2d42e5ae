"""The master becomes another version of itself, in place, and nobody notices; or it does not, and says why.

What is "installed" is a copy of the package behind a link, which PYTHONPATH names and the test flips.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
from harness import PATIENCE, Background, Server, ask, make_venv, parent_of, title_of, wait_for
from test_embedding import SCRIPT
from test_supervision import launch_with, listener, name_of, supervisor  # noqa: F401

import reuseport

PACKAGE = Path(reuseport.__file__).parent
APPS = Path(__file__).parent.parent / "apps"
JOBBING = "import jobbing\napplication = jobbing.make({version!r})\n"


INOTIFY = "self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)"
WITHOUT_INOTIFY = (INOTIFY, "[ctypes.set_errno(24), -1][1]")

TENANTED = "import tenanted\napplication = tenanted.make(VERSION)\n"


class Installed:
    """A server whose version of reuseport can be replaced."""

    def __init__(self, serve, *options: str, source: Path = PACKAGE, **fields) -> None:
        self.server: Server = serve(*options, **fields)
        self.link = self.server.root / "installed"
        self.server.env["PYTHONPATH"] = str(self.link)
        self.install("0.1.1", source)

    def install(self, number: str, source: Path = PACKAGE, **changes: tuple[str, str]) -> None:
        """Copy the package, as this version of it, and flip the link. `master_estate=(old, new)` changes that file."""
        home = self.server.root / f"reuseport-{number}"
        shutil.copytree(source, home / "reuseport")
        (home / "reuseport" / "version.py").write_text(f'__version__ = "{number}"\n')
        for name, (old, new) in changes.items():
            path = home / "reuseport" / (name.replace("_", "/") + ".py")
            text = path.read_text()
            assert old in text
            path.write_text(text.replace(old, new))
        new = self.server.root / "installed.new"
        new.symlink_to(home)
        new.rename(self.link)

    def upgrade(self) -> str:
        outcome = self.server.cli("upgrade")
        assert outcome.exit == 0, outcome.err
        return outcome.out.splitlines()[-1]

    @property
    def version(self) -> str:
        return self.server.status()["master"]["version"]


@pytest.fixture
def installed(serve) -> Installed:
    one = Installed(serve)
    one.server.start()
    return one


def descriptors(server: Server) -> Counter[str]:
    """What the master has open, in kinds, when it has closed the connections of those who asked it something."""
    with socket.socket(socket.AF_UNIX) as last:
        last.settimeout(PATIENCE)
        last.connect(str(server.run_dir / "control.sock"))
        last.sendall(b'{"do": "history"}\n')
        while last.recv(65536):
            pass
    return opened_by(server.pid)


def opened_by(pid: int) -> Counter[str]:
    links = [os.readlink(entry.path) for entry in os.scandir(f"/proc/{pid}/fd")]
    return Counter(link if link.startswith(("/", "anon_inode")) else link.partition(":[")[0] for link in links)


def test_the_new_version_goes_on_with_the_same_process_and_children_and_fails_no_request(installed):
    server = installed.server
    before = server.status()
    idle = server.client()
    first = ask(idle, "/")
    with server.load(one_shot=2, keep_alive=2) as load:
        installed.install("0.2.0")
        python = sys.version.split()[0]
        text = installed.upgrade()
        assert text == f"upgraded from 0.1.1 (Python {python}) to 0.2.0 (Python {python})"
        load.more(50)
        after = server.settle(1)
        assert after["master"]["version"] == "0.2.0"
        assert after["master"]["started"] == before["master"]["started"]
        assert after["master"]["addresses"] == before["master"]["addresses"]
        assert after.pids() == before.pids()
        assert after.current["zygote"]["pid"] == before.current["zygote"]["pid"]
        assert {parent_of(pid) for pid in after.pids()} == {server.pid}
        server.write("two")
        assert server.release("--wait", "drained").exit == 0
        load.more(50)
    assert load.failures == [] and load.versions[-1] == "two"
    assert ask(idle, "/").version == "two" and first.version == "one"
    assert title_of(server.pid) == f"reuseport: master [{server.name}]"
    assert server.alive


def test_usr2_does_the_same(installed):
    installed.install("0.2.0")
    installed.server.signal(signal.SIGUSR2)
    wait_for(lambda: installed.version == "0.2.0", "the new version")
    assert "upgraded from 0.1.1" in installed.server.log_end()
    server = installed.server
    words = [*server.command, "--run-dir", str(server.run_dir)]
    other = subprocess.run(words, env=server.environment, cwd=server.root, capture_output=True, text=True)
    assert other.returncode == 1 and "belongs to a running master" in other.stderr, "it has kept the lock"


AWAY = """\
__version__ = "0.2.0"
import os, time
said = os.environ.get("REUSEPORT_UPGRADE", "answer")
gates = os.environ["TEST_GATES"]
if "answer" not in said:  # not the trial: between the exec and the master
    open(f"{gates}/exec.{os.getpid()}.0.entered", "w").close()
    while not os.path.exists(f"{gates}/exec.open"):
        time.sleep(0.01)
"""


def test_what_happens_between_the_exec_and_the_new_master_is_not_lost(serve):
    installed = Installed(serve, "--release-file", "restart.txt")
    server = installed.server
    server.write("one", whole=JOBBING.format(version="one"))
    server.start()
    before, address = server.status(), server.address
    server.get("/begin?name=ended")
    server.gate("ended").await_entered()
    installed.install("0.2.0", version=('__version__ = "0.2.0"\n', AWAY))
    asker = server.begin("upgrade")
    server.gate("exec").await_entered()
    victim = min(before.pids())
    os.kill(victim, signal.SIGKILL)
    server.signal(signal.SIGTTIN)
    server.gate("ended").open()
    curious = server.begin("status", "--json")
    told = Background(lambda: server.get("/begin?name=begun&wait=1", address=address))
    (server.current / "restart.txt").touch()
    assert {server.get(address=address).status for _ in range(10)} == {200}
    server.gate("begun").open()
    server.gate("exec").open()
    assert server.end(asker).exit == 0
    assert server.end(curious).json["master"]["version"] == "0.2.0"
    assert told.result().json["result"].startswith("one in "), "the job has been made known, and run"
    status = server.settle(2)
    assert status["master"]["workers_wanted"] == 3, "the signal"
    first = next(line for line in server.question(do="history")["history"] if line["event"] == "release")
    assert (first["number"], first["outcome"]) == (1, "serving")
    assert f"worker 1.{[w['pid'] for w in before.workers()].index(victim) + 1} was killed" in server.log_end()


DYING = """\
__version__ = "0.2.0"
import os, sys
if "answer" not in os.environ.get("REUSEPORT_UPGRADE", "answer"):
    sys.exit("only now")
"""


def test_a_new_master_that_dies_behind_the_exec_leaves_workers_that_the_next_one_adopts(serve):
    """What no trial can find out."""
    installed = Installed(serve)
    server = installed.server.start()
    before, address = server.status(), server.address
    slow = server.get_later("/gate?name=slow")
    server.gate("slow").await_entered()
    installed.install("0.2.0", version=('__version__ = "0.2.0"\n', DYING))
    outcome = server.cli("upgrade")
    assert outcome.exit == 1 and "died before it had answered" in outcome.err
    assert server.await_exit() == 1 and "only now" in server.log_end()
    assert {server.get(address=address).pid for _ in range(20)} <= before.pids()
    installed.install("0.3.0")
    server.start()
    assert server.status().pids() == before.pids() and server.address == address
    server.gate("slow").open()
    assert slow.result().status == 200


MEDDLING = """\
__version__ = "0.2.0"
import os
if "answer" in os.environ.get("REUSEPORT_UPGRADE", ""):
    {}
"""


@pytest.mark.parametrize(
    ("meddle", "reason"),
    [
        ("os.unlink({link!r} + '/bin/python')", "cannot execute {link}/bin/python: No such file or directory"),
        ("os.unlink({link!r}); os.symlink({other!r}, {link!r})", "leads elsewhere by now than when it was tried out"),
    ],
)
def test_what_changes_between_the_trial_and_the_exec_changes_nothing_else(serve, meddle, reason):
    installed = Installed(serve)
    server, link = installed.server, installed.server.root / "venv"
    for name in ("venv-1", "venv-2"):
        make_venv(server.root / name)
    link.symlink_to(server.root / "venv-1")
    server.python = str(link / "bin" / "python")
    before = server.start().status()
    names = {"link": str(link), "other": str(server.root / "venv-2")}
    installed.install("0.2.0", version=('__version__ = "0.2.0"\n', MEDDLING.format(meddle.format(**names))))
    opened, first = descriptors(server), opened_by(before.current["zygote"]["pid"]).total()
    command = subprocess.run(
        [sys.executable, "-m", "reuseport", "upgrade"], env=server.environment, cwd=server.root, capture_output=True,
        text=True,
    )  # fmt: skip
    assert command.returncode == 1 and reason.format(**names) in command.stderr, command.stderr
    assert descriptors(server) == opened
    make_venv(server.root / "venv-1")
    link.unlink()
    link.symlink_to(server.root / "venv-1")
    installed.install("0.3.0")
    assert server.renew() == 2
    assert opened_by(server.status().current["zygote"]["pid"]).total() == first, "nothing is inherited"
    installed.upgrade()
    assert installed.version == "0.3.0"


def test_jobs_and_drains_go_on_and_their_askers_are_told(serve):
    installed = Installed(serve)
    server = installed.server
    server.write("one", whole=JOBBING.format(version="one"))
    server.start()
    server.get("/begin?name=computed")  # in a process of its own
    server.get("/spawn?name=waited")  # in a worker
    slow = server.get_later("/block?name=asked")
    for name in ("computed", "waited", "asked"):
        server.gate(name).await_entered()
    server.write("two", whole=JOBBING.format(version="two"))
    patient = server.begin("release", "--wait", "drained")
    before = server.wait(
        lambda s: s.serving == 2 and s.draining == [1] and all(w["jobs"] for w in s.generation(1)["workers"]),
        "those who have nothing to do have left",
    )
    installed.install("0.2.0")
    installed.upgrade()
    after = server.status()
    assert after.draining == [1]
    old, new = before.generation(1), after.generation(1)
    assert {w["pid"] for w in new["workers"]} == {w["pid"] for w in old["workers"]}
    named = lambda g: sorted((job["name"], job["where"]) for job in g["waits_for"]["jobs"])  # noqa: E731
    assert named(new) == named(old) and len(named(new)) == 3
    assert new["since"] > old["since"], "the drain has not begun anew"
    assert patient.poll() is None
    for name in ("computed", "waited", "asked"):
        server.gate(name).open()
    assert slow.result().status == 200
    assert server.end(patient).exit == 0
    assert server.settle(2)["lost"]["count"] == 0
    (line,) = [line for line in server.question(do="history")["history"] if line["event"] == "drained"]
    assert sorted(job["name"] for job in line["jobs"]) == ["export", "export", "in the request"]


def test_a_release_under_way_goes_on_and_its_asker_is_told(installed):
    server = installed.server
    server.write("two", code="basic.pass_gate('import')\n")
    asker = server.begin("release")
    server.gate("import").await_entered()
    installed.install("0.2.0")
    installed.upgrade()
    assert asker.poll() is None and server.status().booting["number"] == 2
    server.gate("import").open()
    outcome = server.end(asker)
    assert outcome.exit == 0, outcome.err
    assert server.settle(2) and server.get().version == "two"


def test_a_release_that_fails_after_the_upgrade_shows_what_it_printed(installed):
    server = installed.server
    server.write("two", code="print('so far')\nbasic.pass_gate('import')\nraise LookupError('no such colour')\n")
    asker = server.begin("release")
    server.gate("import").await_entered()
    installed.upgrade()
    server.gate("import").open()
    outcome = server.end(asker)
    assert outcome.exit == 1
    assert "so far" in outcome.err and "no such colour" in outcome.err
    assert server.settle(1)


def test_hups_in_a_tight_loop_do_not_end_it_and_none_is_lost(installed):
    server = installed.server
    ending = threading.Event()

    def hurry() -> None:
        while not ending.is_set():
            server.hup()

    sender = threading.Thread(target=hurry)
    sender.start()
    try:
        for number in range(2):
            installed.install(f"0.2.{number}")
            server.signal(signal.SIGUSR2)
            wait_for(lambda number=number: installed.version == f"0.2.{number}", "the upgrade")
            assert server.alive
        server.write("two")
    finally:
        ending.set()
        sender.join()
    server.hup()
    server.wait(lambda s: s.is_settled() and s.current["directory"].endswith("/two"), within=3 * PATIENCE)
    assert server.get().version == "two"


SILENT = "import os\nif 'REUSEPORT_UPGRADE' in os.environ: os._exit(0)\n"
BROKEN = {
    "syntax": ({"cli_serve": ("def run(", "def run((")}, "SyntaxError"),
    "import": ({"master_main": ("class Master:", "raise LookupError('of no use')\nclass Master:")}, "of no use"),
    "silent": ({"cli_main": ("import importlib", SILENT + "import importlib")}, "has not said whether it could go on"),
    "state": ({"master_estate": ("VERSION = 1", "VERSION = 2")}, "is number 1, this reads 2"),
    "part": ({"master_switchboard": ('in left["queues"]', 'in left["ways"]')}, "of its switchboard is not what"),
    "cluster": ({"core_model": ("    wanted: int\n", "    wanted: int\n    hue: str\n")}, "of its cluster is not what"),
    "core": ({"core_machine": ("    turn = Turn(state, now)", "    raise LookupError('lost')")}, "lost"),
    "options": ({"options_declared_clients": ('"backlog", ', '"backlogged", ')}, "--backlog"),
}


def test_a_new_version_that_is_broken_changes_nothing_and_says_why(serve):
    installed = Installed(serve, "--backlog", "100")
    server = installed.server.start()
    before, opened = server.status(), descriptors(server)
    with server.load() as load:
        for name, (changes, reason) in BROKEN.items():
            installed.install(f"0.2-{name}", **changes)
            outcome = server.cli("upgrade")
            assert outcome.exit == 1
            assert reason in outcome.err, outcome.err
            assert "upgrade failed: " in outcome.err
        load.more(20)
    assert load.failures == []
    after = server.settle(1)
    assert after["master"]["version"] == "0.1.1" and after.pids() == before.pids()
    assert descriptors(server) == opened
    assert server.log.read_text().count("no upgrade, and nothing has changed") == len(BROKEN)
    installed.install("0.3.0")
    installed.upgrade()
    assert installed.version == "0.3.0"


HANGING = "__version__ = '0.2.0'\nimport os, time\nif 'REUSEPORT_UPGRADE' in os.environ: time.sleep(600)\n"


def test_a_new_version_that_hangs_is_given_up(serve):
    installed = Installed(serve, "--boot-timeout", "6")
    server = installed.server.start()
    installed.install("0.2.0", version=('__version__ = "0.2.0"\n', HANGING))
    outcome = server.cli("upgrade")
    assert outcome.exit == 1
    assert "has not ended within 6 s (--boot-timeout)" in outcome.err
    assert installed.version == "0.1.1"


def test_while_one_is_tried_out_another_is_refused_and_a_stop_ends_it(installed):
    server = installed.server
    installed.install("0.2.0", version=('__version__ = "0.2.0"\n', HANGING))
    first = server.begin("upgrade")
    wait_for(lambda: "trying the new version out" in server.log_end(), "the trial")
    assert "is under way already" in server.cli("upgrade").err
    assert server.cli("stop").exit == 0
    outcome = server.end(first)
    assert outcome.exit == 1 and "the server was stopped" in outcome.err
    wait_for(lambda: list(server.processes()) == [], "the trial has ended, too")


def test_a_server_that_stops_is_not_upgraded(installed):
    server = installed.server
    slow = server.get_later("/gate?name=slow")
    server.gate("slow").await_entered()
    server.signal(signal.SIGTERM)
    server.wait(lambda s: s["master"]["state"] == "stopping")
    outcome = server.cli("upgrade")
    assert outcome.exit == 1 and "the server is stopping" in outcome.err
    server.gate("slow").open()
    assert slow.result().status == 200
    assert server.await_exit() == 0


def test_eight_upgrades_leave_nothing_behind(installed):
    server = installed.server
    installed.upgrade()
    before, opened = server.status(), descriptors(server)
    with server.load() as load:
        for _ in range(8):
            assert server.question(do="upgrade")["ok"]
        load.more(20)
    assert load.failures == []
    assert server.settle(1).pids() == before.pids()
    wait_for(lambda: descriptors(server) == opened, f"as many descriptors as before: {opened}")
    server.write("two")
    first = opened_by(before.current["zygote"]["pid"]).total()
    assert server.renew() == 2
    now = opened_by(server.status().current["zygote"]["pid"]).total()
    assert now == first, "it has inherited nothing of the master's"
    assert "REUSEPORT_UPGRADE" not in server.get("/facts").json["facts"]["environment"]


def test_a_canary_holds_and_losses_are_what_they_were(serve):
    installed = Installed(serve, "--tenant", "header:X-Tenant", "--standby", "600")
    server = installed.server.start()
    os.kill(min(server.status().pids()), signal.SIGKILL)
    server.settle(1)
    server.write("two")
    assert server.renew() == 2
    assert server.cli("hold", "initech").exit == 0
    server.write("three")
    assert server.release("--canary", "acme,10%", "--label", "try").exit == 0
    before, tenants = server.status(), server.question(do="tenants")
    installed.install("0.2.0")
    installed.upgrade()
    after = server.status()
    facts = lambda s: [(g["number"], g["stage"], g["label"], g["wanted"]) for g in s["generations"]]  # noqa: E731
    assert facts(after) == facts(before)
    assert [stage for _, stage, _, _ in facts(after)] == ["standby", "serving", "canary"]
    assert server.question(do="tenants") == tenants
    assert after["releases"] == before["releases"] and after["lost"] == before["lost"]
    connection = server.client()
    connection.request("GET", "/", headers={"X-Tenant": "acme"})
    assert json.loads(connection.getresponse().read())["version"] == "three"
    assert server.get().version == "two"
    assert server.cli("move", "initech").exit == 0
    assert server.cli("promote", "--wait", "drained").exit == 0
    assert server.get().version == "three"


def test_it_brings_another_rule_for_tenants_and_says_what_it_does_not_bring(serve):
    server = serve("-c", "conf.toml")
    config = server.root / "conf.toml"
    config.write_text("")
    server.write("one", TENANTED)
    server.start()

    def tenant() -> str | None:
        with contextlib.closing(server.client()) as connection:
            connection.request("GET", "/", headers={"X-A": "acme"})
            return json.loads(connection.getresponse().read())["tenant"]

    config.write_text('tenant = "header:X-A"\nbacklog = 99\nlog-json = true\n')
    server.write("two", TENANTED)
    outcome = server.release("--wait", "drained")
    assert outcome.exit == 0 and tenant() is None
    lines = {line.split()[2]: line for line in outcome.err.splitlines()}
    assert set(lines) == {"--backlog", "--log-json", "--tenant"}
    assert "`reuseport upgrade`" in lines["--tenant"] and "start it anew" in lines["--backlog"]
    assert "--takeover" in lines["--log-json"] and "--takeover" not in lines["--backlog"]
    assert not server.question(do="tenants")["ok"]

    outcome = server.cli("upgrade")
    assert outcome.exit == 0 and "--tenant: the next release brings the new value" in outcome.err
    assert "--log-json changed" in outcome.err
    assert tenant() is None and not server.question(do="tenants")["ok"]
    assert "Release to everybody first" in server.release("--canary", "acme").err
    server.write("three", TENANTED)
    outcome = server.release("--json")
    assert not any("--tenant" in warning for warning in outcome.json["warnings"])
    assert tenant() == "acme" and server.question(do="tenants")["ok"]
    server.settle(3)
    # The zygotes that stand by do not know tenants, so a rollback loads its version.
    assert server.cli("rollback").exit == 0
    assert tenant() == "acme" and server.get().version == "two"

    config.write_text('tenant = "header:X-A"\ntenant-isolation = "strict"\npin-max = "1h"\n')
    outcome = server.cli("upgrade")
    assert outcome.exit == 1 and "strict isolation forbids" in outcome.err
    assert tenant() == "acme"


def test_a_rollback_after_it_loads_nothing(installed):
    server = installed.server
    server.write("two")
    assert server.release("--wait", "drained").exit == 0
    (server.releases / "one" / "app.py").write_text("raise SystemError('nobody may import this again')\n")
    installed.upgrade()
    outcome = server.cli("rollback")
    assert outcome.exit == 0, outcome.err
    assert server.get().version == "one"


def test_the_supervisor_hears_nothing_new_and_keeps_the_slots(serve, supervisor):  # noqa: F811
    variables = {"NOTIFY_SOCKET": supervisor.address, "WATCHDOG_USEC": "100000", "FDSTORE": "16"}
    installed = Installed(serve, env=variables)
    server = installed.server.start()
    wait_for(lambda: len(supervisor.hear() and supervisor.stored) == 2, "two slots in the store")
    supervisor.await_words("READY")
    supervisor.told.clear()
    installed.install("0.2.0")
    installed.upgrade()
    beats = lambda: sum("WATCHDOG" in told for told in supervisor.hear())  # noqa: E731
    before = beats()
    wait_for(lambda: beats() > before + 2, "beats of the new master")
    assert supervisor.words() == [] and len(supervisor.stored) == 2
    server.signal(signal.SIGTTIN)
    wait_for(lambda: len(supervisor.hear() and supervisor.stored) == 3, "the new slot is stored, too")
    stop = server.begin("stop")
    supervisor.await_words("STOPPING")  # heard meanwhile: its socket has no room for many beats (max_dgram_qlen)
    assert server.end(stop).exit == 0


def test_passed_sockets_stay_slots_and_stay_the_supervisor_s(serve, tmp_path):
    path = tmp_path / "web.sock"
    with listener() as sock, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(path))
        unix.listen()
        installed = Installed(serve, bind=())
        server = launch_with(installed.server, [sock.fileno(), unix.fileno()], ["web", "local"])
        before, addresses = server.settle(), [name_of(sock), f"unix:{path}"]
        opened = descriptors(server)
        for number in range(2):
            installed.install(f"0.2.{number}")
            installed.upgrade()
            assert server.status()["master"]["addresses"] == addresses
            assert descriptors(server) == opened
        server.signal(signal.SIGTTIN)
        server.wait(lambda s: s.is_settled() and len(s.workers()) == 3, "a worker beside")
        server.write("two")
        assert server.renew() == 2 and not before.pids() & server.status().pids()
        for address in addresses:
            assert {server.get(address=address).version for _ in range(10)} == {"two"}
        assert server.cli("stop").exit == 0
        assert path.exists()


def test_unix_sockets_and_their_clients_stay_and_go_with_the_stop(serve, tmp_path):
    path = tmp_path / "web.sock"
    installed = Installed(serve, bind=(f"unix:{path}", "127.0.0.1:0"))
    server = installed.server.start()
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(str(path))
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
        installed.upgrade()
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
    assert len(server.status()["master"]["addresses"]) == 2
    assert server.cli("stop").exit == 0
    assert not path.exists()


def test_the_master_of_a_script_is_upgraded_like_any_other(serve):
    installed = Installed(serve, script="current/server.py")
    server = installed.server
    for version in ("one", "two"):
        directory = server.releases / version
        directory.mkdir(parents=True)
        options = f"workers=2, name={server.name!r}"
        text = SCRIPT.format(apps=str(APPS), version=version, code="", app="basic.make(VERSION)", options=options)
        (directory / "server.py").write_text(text)
    server.flip(server.releases / "one")
    server.start()
    before = server.status().pids()
    installed.install("0.2.0")
    installed.upgrade()
    assert installed.version == "0.2.0" and server.status().pids() == before
    server.flip(server.releases / "two")
    assert server.renew() == 2
    assert server.get().version == "two"


def newer_python() -> str | None:
    """The interpreter of a newer Python than this one, in the PATH or beside this one (pyenv, uv)."""
    beside = sorted(Path(sys._base_executable).resolve().parents[2].glob("*/bin"))
    for minor in range(sys.version_info.minor + 1, 15):
        for path in (shutil.which(f"python3.{minor}"), *(str(bin / f"python3.{minor}") for bin in beside)):
            if path and os.path.exists(path) and subprocess.run([path, "-c", ""], capture_output=True).returncode == 0:
                return path
    return None


def test_a_virtual_environment_that_was_flipped_brings_another_python(serve):
    interpreter = newer_python()
    if interpreter is None:
        pytest.skip("there is no newer Python here")
    root = Server.__dataclass_fields__["root"].default_factory()
    link = root / "venv"
    make_venv(root / "old")
    link.symlink_to(root / "old")
    server = serve("--python", sys.executable, python=str(link / "bin" / "python"), root=root).start()
    make_venv(root / "new", interpreter)
    packages = next((root / "new").glob("lib/python3*/site-packages"))
    # The real one is compiled for this test's own Python.
    (packages / "setproctitle.py").write_text("def setproctitle(title): pass\n")
    (packages / "borrowed.pth").write_text(f"{PACKAGE.parent}\n")
    before = server.status()
    new = root / "venv.new"
    new.symlink_to(root / "new")
    new.rename(link)
    outcome = server.cli("upgrade")
    assert outcome.exit == 0, outcome.err
    after = server.status()
    assert after["master"]["python"] != before["master"]["python"]
    assert f"(Python {after['master']['python']})" in outcome.out
    assert after.pids() == before.pids()
    server.write("two")
    assert server.renew() == 2
    link.unlink()
    outcome = server.cli("upgrade")
    assert outcome.exit == 1
    assert f"cannot execute {link}/bin/python: No such file or directory" in outcome.err
    assert server.renew() == 3


@pytest.mark.parametrize("has_inotify", [True, False])
def test_a_file_that_was_saved_during_the_exec_releases(serve, has_inotify):
    installed = Installed(serve, "--reload")
    server = installed.server
    directory = server.write("one", "import shop.prices\n")
    (directory / "shop").mkdir()
    prices = directory / "shop" / "prices.py"
    prices.write_text("")
    if not has_inotify:
        installed.install("0.1.2", master_inotify=WITHOUT_INOTIFY)
    server.start()
    assert ("no inotify" in server.log.read_text()) is not has_inotify
    without = {} if has_inotify else {"master_inotify": WITHOUT_INOTIFY}
    installed.install("0.2.0", version=('__version__ = "0.2.0"\n', AWAY), **without)
    asker = server.begin("upgrade")
    server.gate("exec").await_entered()
    prices.write_text("SAVED = True\n")
    server.gate("exec").open()
    assert server.end(asker).exit == 0
    server.settle(2)
    assert f"{prices if has_inotify else prices.parent} has changed: releasing (--reload)" in server.log.read_text()
    # And what is saved later is noticed as before.
    prices.write_text("SAVED = 'twice'\n")
    server.settle(3)
