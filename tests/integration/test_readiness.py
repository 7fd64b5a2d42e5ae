"""Companions that show when they are ready, as real processes: what waits for that, and what fails without it.

tests/apps/companion.py is ready when its gate NAME-GENERATION-imported is open.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from harness import APPS, Server, is_gone, wait_for
from test_companions import SCRIPT, await_event, await_state, companion, declare, events
from test_metrics import scrape
from test_takeover import await_log, await_owner, second  # noqa: F401

UP = "sh -c 'test -e $TEST_GATES/$REUSEPORT_COMPANION-$REUSEPORT_GENERATION-up'"
WAYS = {  # a companion for each way in which one can show that it is ready
    "notify": "ready = 'notify'; env = {READY = 'notify'}",
    "line": "ready_line = '@line is ready[.]$'; env = {READY = 'line'}",
    "command": f'ready_command = "{UP}"; ready_interval = 0.1; env = {{READY = \'file\'}}',
}
NOTIFY = WAYS["notify"]
SOON = 5  # seconds that a companion has where it must get ready before one is not


def imported(server: Server, name: str) -> None:
    """Let the companion "2.mail" get ready."""
    number, _, word = name.partition(".")
    server.gate(f"{word}-{number}-imported").open()


def start(server: Server, **companions: str) -> Server:
    """It serves, with companions that are ready."""
    declare(server, **companions)
    for name in companions:
        imported(server, f"1.{name}")
    server.write("one")
    return server.start()


def script(server: Server, name: str, text: str) -> str:
    """A key for a companion: the command is this, in Python (NAME.py) or for a shell (NAME.sh)."""
    path = server.root / name
    path.write_text(text + "\n")
    return f"'{'python' if name.endswith('.py') else 'sh'} {path}'"


def begin_release(server: Server, *words: str) -> subprocess.Popen[str]:
    server.write(f"version after {server.status().serving}")
    return server.begin("release", *words)


def all_imported(server: Server, generation: int) -> None:
    """Let a companion of each way get ready."""
    for way in WAYS:
        imported(server, f"{generation}.{way}")


def await_each(server: Server, **wanted: object) -> list[dict]:
    """What the companion of each way tells first."""
    return [await_event(server, name=way, **wanted) for way in WAYS]


@pytest.fixture
def various(serve) -> Server:
    """A server with a companion for each way."""
    return start(serve(), **WAYS)


@pytest.fixture
def notified(serve) -> Server:
    return start(serve(), mail=NOTIFY)


# --- a release waits --------------------------------------------------------------------------------------------------


def test_a_release_waits_until_all_are_ready_and_the_old_ones_hear_nothing_before(various):
    command = begin_release(various)
    await_each(various, what="imports", generation=2)
    for way in WAYS:
        # A timer would have taken it for ready by now.
        various.wait(lambda s, way=way: companion(various, f"2.{way}")["age"] > 1.2, "some time")
        two = companion(various, f"2.{way}")
        assert (two["state"], two["ready"], two["failing"]) == ("starting", False, "")
        assert various.status().serving == 1 and command.poll() is None
        assert not events(various, what="signalled")
        imported(various, f"2.{way}")
        wait_for(lambda way=way: companion(various, f"2.{way}")["ready"], f"{way} to be ready")
    assert various.end(command).exit == 0
    await_each(various, what="signalled", generation=1)
    log = various.log.read_text()
    for way in WAYS:
        said = [f"companion 2.{way} is ready", "generation 2 serves", f"companion 1.{way} got its TERM"]
        assert said == sorted(said, key=log.index)


@pytest.mark.parametrize("late", WAYS)
def test_one_that_is_not_ready_in_time_fails_the_release_with_its_last_lines(late, serve):
    server = start(serve(), **{late: WAYS[late]})
    before = companion(server, f"1.{late}")["pid"]
    text = (server.root / "reuseport.toml").read_text()
    (server.root / "reuseport.toml").write_text(text + f"ready_timeout = {SOON}\n")
    outcome = server.release()
    assert outcome.exit == 1
    assert f"generation 2 failed: companion 2.{late} was not ready within {SOON} s (ready_timeout): it" in outcome.err
    assert "generation 1 serves on" in outcome.err and f"[2.{late}] a word before it is ready" in outcome.err
    server.settle(1)
    one = companion(server, f"1.{late}")
    assert (one["pid"], one["ready"]) == (before, True)
    assert not events(server, what="signalled", generation=1)
    (two,) = events(server, what="imports", generation=2)
    wait_for(lambda: is_gone(two["pid"]), "the end of the failed release's companion")
    assert not list(Path(server.run_dir).glob("notify-2.*"))


def test_one_that_ends_before_it_is_ready_fails_the_release_however_it_ends(notified):
    cases = [(status, restart) for status in (0, 1) for restart in ("always", "on-failure", "never")]
    for number, (status, restart) in enumerate(cases, 2):
        command = script(notified, "bye.sh", f"echo bye; exit {status}")
        declare(notified, mail=f"ready = 'notify'; restart = '{restart}'; command = {command}")
        outcome = notified.release()
        assert outcome.exit == 1, (status, restart)
        assert f"companion {number}.mail exited" in outcome.err and "before it was ready" in outcome.err
        assert f"[{number}.mail] bye" in outcome.err
        notified.settle(1)
        assert not events(notified, what="signalled")


def test_a_first_start_without_readiness_is_no_start(serve):
    server = serve()
    declare(server, mail=f"{NOTIFY}; ready_timeout = 0.5")
    outcome = server.run()
    assert outcome.exit == 1
    assert "generation 1 failed: companion 1.mail was not ready within 0.5 s" in outcome.err


def test_each_of_several_processes_has_to_be_ready(notified):
    once = f"test $REUSEPORT_COMPANION_NUMBER = 2 && exec sleep 600\nexec python {SCRIPT}"
    command = script(notified, "one.sh", once)
    declare(notified, mail=f"{NOTIFY}; processes = 2; ready_timeout = {SOON}; command = {command}")
    imported(notified, "2.mail")
    outcome = notified.release()
    assert outcome.exit == 1 and "companion 2.mail:2 was not ready" in outcome.err
    notified.gate("mail-2").open()
    notified.settle(1)


def test_it_may_take_longer_than_the_boot_of_the_workers(serve):
    server = start(serve("--boot-timeout", "8"), mail=NOTIFY)
    command = begin_release(server)
    await_event(server, what="imports", generation=2)
    server.wait(lambda s: s.booting["age"] > 8.5, "more than the boot's own time")
    imported(server, "2.mail")
    assert server.end(command).exit == 0


def test_a_canary_is_promoted_when_its_companion_is_ready(serve):
    server = start(serve("--tenant", "header:X-Tenant"), mail=NOTIFY)
    assert server.release("--canary", "acme").exit == 0
    command = server.begin("promote")
    await_event(server, what="imports", generation=2)
    server.wait(lambda s: companion(server, "2.mail")["age"] > 1.2, "some time")
    assert [g["state"] for g in server.status()["generations"]] == ["serving", "canary"]
    imported(server, "2.mail")
    assert server.end(command).exit == 0
    await_event(server, what="signalled", generation=1)


def test_a_rollback_to_what_stands_by_does_not_wait_for_it(notified):
    imported(notified, "2.mail")
    notified.gate("mail-1").open()
    assert notified.release("--wait", "drained").exit == 0
    assert notified.cli("rollback").exit == 0
    assert notified.status().serving == 3 and not companion(notified, "3.mail")["ready"]
    await_event(notified, what="signalled", generation=2)
    imported(notified, "3.mail")
    notified.wait(lambda _: companion(notified, "3.mail")["ready"], "a companion that is ready after the switch")


def test_a_rollback_that_loads_waits_for_it_too(notified):
    imported(notified, "2.mail")
    notified.gate("mail-1").open()
    assert notified.release("--wait", "drained").exit == 0
    os.kill(notified.status().generation(1)["zygote"]["pid"], signal.SIGKILL)
    notified.wait(lambda s: [g["number"] for g in s["generations"]] == [2], "no version that stands by")
    command = notified.begin("rollback", "1")
    await_event(notified, what="imports", generation=3)
    assert notified.status().serving == 2 and not events(notified, what="signalled", generation=2)
    imported(notified, "3.mail")
    assert notified.end(command).exit == 0
    assert companion(notified, "3.mail")["ready"]


def test_a_newer_release_ends_one_that_is_not_ready(notified):
    first = begin_release(notified)
    await_event(notified, what="imports", generation=2)
    imported(notified, "3.mail")
    assert notified.release().exit == 0
    assert notified.status().serving == 3
    notified.end(first)
    (two,) = events(notified, what="imports", generation=2)
    wait_for(lambda: is_gone(two["pid"]), "the end of the superseded release's companion")


# --- who says it, and how ---------------------------------------------------------------------------------------------


def test_a_process_of_somebody_else_is_not_believed(notified):
    command = begin_release(notified)
    path = await_event(notified, what="imports", generation=2)["socket"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"READY=1", path)
    await_log(notified, f"companion 2.mail: process {os.getpid()} is none of its processes")
    assert companion(notified, "2.mail")["ready"] is False and command.poll() is None
    imported(notified, "2.mail")
    assert notified.end(command).exit == 0


def test_a_process_that_it_has_started_is_believed(notified):
    for number, how in ((2, "child"), (3, "detached")):
        declare(notified, mail=f"ready = 'notify'; env = {{READY = '{how}'}}")
        imported(notified, f"{number}.mail")
        assert notified.release().exit == 0, how


@pytest.mark.skipif(not shutil.which("systemd-notify"), reason="systemd-notify is not installed")
def test_a_shell_script_can_use_systemds_own_command(notified):
    command = script(notified, "ready.sh", "systemd-notify --ready --status=up; exec sleep 600")
    declare(notified, mail=f"ready = 'notify'; command = {command}; ready_timeout = 15")
    assert notified.release().exit == 0
    wait_for(lambda: companion(notified, "2.mail")["status"] == "up", "its status")


BARRIER = """\
import array, os, select, socket, sys, time
reading, writing = os.pipe()
sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
sock.connect(os.environ["NOTIFY_SOCKET"])
sock.send(b"READY=1")
sock.sendmsg([b"BARRIER=1"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [writing]))])
os.close(writing)
print("answered", select.select([reading], [], [], 20)[0] == [reading], flush=True)
time.sleep(600)
"""


def test_a_barrier_is_answered_when_what_came_before_has_been_heard(notified):
    declare(notified, mail=f"ready = 'notify'; command = {script(notified, 'barrier.py', BARRIER)}")
    assert notified.release().exit == 0
    await_log(notified, "[2.mail] [output] answered True")


def test_what_it_says_of_itself_is_shown_and_it_may_ask_for_more_time(notified):
    more = "STATUS = 'loading the model', EXTEND = '60000000'"
    declare(notified, mail=f"ready = 'notify'; ready_timeout = {SOON}; env = {{READY = 'notify', {more}}}")
    command = begin_release(notified)
    await_event(notified, what="imports", generation=2)
    wait_for(lambda: companion(notified, "2.mail")["status"] == "loading the model", "its status")
    assert "loading the model" in notified.cli("status").out
    notified.wait(lambda s: companion(notified, "2.mail")["age"] > SOON + 0.5, "more than ready_timeout")
    imported(notified, "2.mail")
    assert notified.end(command).exit == 0
    wait_for(lambda: companion(notified, "2.mail")["status"] == "at work", "its status")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_it_may_be_another_user_than_the_master(serve, interpreter_for_all):
    server = serve("--user", "nobody", python=interpreter_for_all)
    start(server, **WAYS)
    assert [one["uid"] for one in await_each(server, what="begins")] == [65534] * len(WAYS)
    for path in Path(server.run_dir).glob("notify-*"):
        assert (path.stat().st_uid, path.stat().st_mode & 0o777) == (65534, 0o600)


# --- a command that is asked ------------------------------------------------------------------------------------------


def test_a_command_that_hangs_is_ended_and_run_again(notified):
    hangs = "test -e $TEST_GATES/mail-2-up && exit 0\necho $$ >> $TEST_GATES/runs\nsleep 600"
    keys = f"ready_command = {script(notified, 'hangs.sh', hangs)}; ready_command_timeout = 0.2; ready_interval = 0.1"
    declare(notified, mail=f"{keys}; env = {{READY = 'file'}}")
    command = begin_release(notified)
    runs = notified.gates / "runs"
    wait_for(lambda: runs.exists() and len(runs.read_text().split()) >= 3, "several runs")
    assert companion(notified, "2.mail")["why"] == "its ready_command did not end within 0.2 s"
    imported(notified, "2.mail")
    assert notified.end(command).exit == 0
    for pid in map(int, runs.read_text().split()):
        wait_for(lambda pid=pid: is_gone(pid), "the end of a run")
    assert companion(notified, "2.mail")["why"] == ""


def test_why_its_command_fails_is_told_to_who_waits(notified):
    cases = {
        "['sh', '-c', 'echo a && echo no broker >&2 && exit 3']": "its ready_command exited with status 3: no broker",
        "'no-such-program'": "its ready_command cannot execute 'no-such-program': no such file or directory",
        "['sh', '-c', 'kill -9 $$']": "its ready_command was killed by SIGKILL",
    }
    for command, why in cases.items():
        keys = f"ready_command = {command}; ready_timeout = {SOON}; ready_interval = 0.1"
        declare(notified, mail=f"{keys}; env = {{READY = 'file'}}")
        outcome = notified.release()
        assert outcome.exit == 1 and f"within {SOON} s (ready_timeout): {why}" in outcome.err
        notified.settle(1)


def test_a_command_prints_as_much_as_it_likes_and_ends_with_the_boot(notified):
    floods = script(notified, "floods.sh", "echo $$ >> $TEST_GATES/runs\nexec yes")
    keys = f"ready_command = {floods}; ready_timeout = {SOON}; ready_command_timeout = 60"
    declare(notified, mail=f"{keys}; env = {{READY = 'file'}}")
    assert notified.release().exit == 1
    (pid,) = map(int, (notified.gates / "runs").read_text().split())
    wait_for(lambda: is_gone(pid), "the end of the run")
    notified.settle(1)


def test_a_command_runs_where_its_companion_does(notified):
    command = script(
        notified,
        "where.py",
        "import json, os\n"
        "keys = ('ODD', 'REUSEPORT_GENERATION', 'REUSEPORT_COMPANION', 'REUSEPORT_COMPANION_NUMBER')\n"
        f"json.dump([os.getcwd(), *(os.environ[key] for key in keys)], open('{notified.gates}/where', 'w'))\n",
    )
    imported(notified, "2.mail")
    declare(notified, mail=f"ready_command = {command}; env = {{READY = 'file', ODD = 'special'}}")
    release = notified.write("two")
    assert notified.release().exit == 0
    assert json.loads((notified.gates / "where").read_text()) == [str(release), "special", "2", "mail", "1"]


# --- another master ---------------------------------------------------------------------------------------------------


def test_the_next_master_hears_from_those_that_were_not_ready(serve):
    server = start(serve(), **{way: f"{keys}; ready_timeout = 600" for way, keys in WAYS.items()})
    again = {}
    for way in WAYS:
        server.gate(f"{way}-1-imported").close()
        (server.gates / f"{way}-1-up").unlink(missing_ok=True)
        os.kill(await_event(server, what="begins", name=way)["pid"], signal.SIGKILL)
        another = wait_for(lambda way=way: events(server, what="imports", name=way)[1:], "another one")[0]
        again[way] = another["pid"]
        assert companion(server, f"1.{way}")["ready"] is False
    server.process.kill()
    server.process.wait()
    server.start()
    for way in WAYS:
        two = companion(server, f"1.{way}")
        assert (two["pid"], two["ready"]) == (again[way], False)
    all_imported(server, 1)
    assert {way: await_state(server, f"1.{way}", "running")["pid"] for way in WAYS} == again


def test_a_master_that_dies_in_the_boot_leaves_those_that_are_stopped_and_no_command(various):
    begin_release(various)
    begun = await_each(various, what="imports", generation=2)
    various.process.kill()
    various.process.wait()
    various.start()
    await_each(various, what="signalled", generation=2)
    for two in begun:
        wait_for(lambda two=two: is_gone(two["pid"]), "the end of the lost release's companion")
    various.settle(1)
    assert [companion(various, f"1.{way}")["ready"] for way in WAYS] == [True] * len(WAYS)
    assert not events(various, what="signalled", generation=1)
    assert not list(Path(various.run_dir).glob("notify-2.*"))


def test_a_run_of_its_command_dies_with_the_master(notified):
    hangs = script(notified, "hangs.sh", "echo $$ >> $TEST_GATES/runs\nexec sleep 600")
    keys = f"ready_command = {hangs}; ready_command_timeout = 600"
    declare(notified, mail=f"{keys}; env = {{READY = 'file'}}")
    begin_release(notified)
    runs = notified.gates / "runs"
    wait_for(lambda: runs.exists() and runs.read_text().endswith("\n"), "a run")
    notified.process.kill()
    notified.process.wait()
    wait_for(lambda: is_gone(int(runs.read_text())), "the end of the run")


def test_a_boot_goes_on_behind_an_upgrade_in_place(various):
    command = begin_release(various)
    begun = await_each(various, what="imports", generation=2)
    for _ in range(2):
        assert various.question(do="upgrade")["ok"]
    assert command.poll() is None and various.status().serving == 1
    assert [companion(various, f"2.{way}")["pid"] for way in WAYS] == [two["pid"] for two in begun]
    all_imported(various, 2)
    assert various.end(command).exit == 0
    assert [companion(various, f"2.{way}")["ready"] for way in WAYS] == [True] * len(WAYS)


def test_a_takeover_waits_until_all_are_ready(various, second):  # noqa: F811
    one, two = various, second(various)
    declare(two, **WAYS)
    two.launch()
    await_each(two, what="imports", generation=2)
    for way in WAYS:
        wait_for(lambda way=way: companion(one, f"2.{way}")["age"] > 1.2, "some time")
        assert one.status().serving == 1 and companion(one, f"2.{way}")["ready"] is False
        assert not events(one, what="signalled")
        imported(two, f"2.{way}")
    await_owner(two, 2)
    await_each(one, what="signalled", generation=1)
    for way in WAYS:
        assert companion(two, f"2.{way}")["ready"] is True
        # The new master hears what is said from now on.
        os.kill(await_event(two, what="begins", name=way)["pid"], signal.SIGKILL)
        wait_for(lambda way=way: len(events(two, what="begins", name=way)) == 2, "another one")
        assert await_state(two, f"2.{way}", "running")["restarts"] == 1
        one.gate(f"{way}-1").open()
    two.settle(2)


def test_a_takeover_without_readiness_fails_and_both_say_why(serve, second):  # noqa: F811
    one = start(serve(), mail=NOTIFY)
    two = second(one)
    declare(two, mail=f"{NOTIFY}; ready_timeout = {SOON}")
    outcome = two.run()
    assert outcome.exit == 1
    for said in (outcome.err, one.log.read_text()):
        assert f"companion 2.mail was not ready within {SOON} s (ready_timeout): it has not sent READY=1" in said
    assert "a word before it is ready" in outcome.err
    one.settle(1)
    assert not events(one, what="signalled") and companion(one, "1.mail")["ready"]
    wait_for(lambda: not list(Path(one.run_dir).glob("notify-2.*")), "its socket to be gone")


# --- after the switch -------------------------------------------------------------------------------------------------


def await_failing(server: Server, name: str, how: str) -> None:
    wait_for(lambda: companion(server, name)["failing"] == how, f"{name} {how}")
    outcome = server.cli("status", "--check")
    assert (outcome.exit, outcome.out) == (1, "degraded\n")
    assert f"companion {name}: {how}" in outcome.err
    assert how in server.cli("status").out


def test_a_crash_loop_shows_in_status_check_and_metrics(serve):
    server = start(serve("--metrics", "127.0.0.1:0"), mail=NOTIFY)
    assert server.cli("status", "--check").out == "running\n"
    # It gets ready, and then it crashes: nothing could have failed the release.
    crashes = f"""\
import os, sys, time
sys.path.insert(0, '{APPS}')
import companion
companion.notify('READY=1')
while not os.path.exists('{server.gates}/crash.open'): time.sleep(0.01)
sys.exit(3)
"""
    declare(server, mail=f"ready = 'notify'; command = {script(server, 'crashes.py', crashes)}")
    assert server.release().exit == 0
    assert companion(server, "2.mail")["ready"]
    server.gate("crash").open()
    await_failing(server, "2.mail", "crash-looping")
    found, mail = scrape(server), (("companion", "mail"), ("generation", "2"))
    assert found["reuseport_companions_failing", *mail] == 1
    assert found["reuseport_companion_restarts_total", *mail] >= 2
    assert sum(value for (name, *_), value in found.items() if name == "reuseport_companions") == 2
    server.gate("crash").close()
    await_state(server, "2.mail", "running")


def test_one_that_has_ended_for_good_with_a_failure_shows(serve):
    server = start(serve(), mail=f"{NOTIFY}; restart = 'never'")
    os.kill(companion(server, "1.mail")["pid"], signal.SIGKILL)
    await_failing(server, "1.mail", "failed")


def test_one_that_is_started_again_and_not_ready_in_time_shows_and_is_not_ended(serve):
    server = start(serve(), mail=f"{NOTIFY}; ready_timeout = {SOON}")
    server.gate("mail-1-imported").close()
    os.kill(companion(server, "1.mail")["pid"], signal.SIGKILL)
    await_failing(server, "1.mail", "not ready")
    (_, again) = events(server, what="imports")
    assert not is_gone(again["pid"]) and not events(server, what="signalled")
    imported(server, "1.mail")
    assert await_state(server, "1.mail", "running")["pid"] == again["pid"]
    assert server.cli("status", "--check").out == "running\n"


def test_an_exclusive_one_that_does_not_get_ready_shows(serve):
    server = start(serve(), cron=f"{NOTIFY}; exclusive = true; ready_timeout = {SOON}")
    await_state(server, "1.cron", "running")
    server.write("two")
    assert server.release().exit == 0, "nobody can wait for it: the old one has not ended"
    server.gate("cron-1").open()
    await_failing(server, "2.cron", "not ready")
    imported(server, "2.cron")
    await_state(server, "2.cron", "running")


def test_an_exclusive_one_that_does_not_get_ready_is_taken_back_on_probation(serve):
    server = start(serve("--probation", "60"), cron=f"{NOTIFY}; exclusive = true; ready_timeout = {SOON}")
    await_state(server, "1.cron", "running")
    for gate in ("cron-1", "cron-2", "cron-3-imported"):
        server.gate(gate).open()
    server.write("two")
    outcome = server.release()
    assert outcome.exit == 1
    assert f"failed its probation: companion 2.cron was not ready within {SOON} s" in outcome.err
    server.wait(lambda s: s.serving == 3, "the version before")
    assert await_state(server, "3.cron", "running")["ready"]


def test_a_crash_loop_on_probation_is_taken_back(serve):
    server = start(serve("--probation", "60"), mail=NOTIFY)
    crashes = f"""\
import os, sys, time
sys.path.insert(0, '{APPS}')
import companion
companion.notify('READY=1')
while not os.path.exists('{server.gates}/crash.open'): time.sleep(0.01)
sys.exit(3)
"""
    declare(server, mail=f"ready = 'notify'; command = {script(server, 'crashes.py', crashes)}")
    imported(server, "3.mail")
    server.write("two")
    command = server.begin("release")
    server.wait(lambda s: s.serving == 2, "the new version")
    server.gate("crash").open()
    outcome = server.end(command)
    assert outcome.exit == 1
    assert "generation 2 failed its probation: 2 of its processes have crashed; generation 3 brings" in outcome.err
    server.wait(lambda s: s.serving == 3 and companion(server, "3.mail")["ready"], "the version before")
