"""Companions: commands that belong to a generation, as real processes. tests/apps/companion.py tells what it meets."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest
from harness import APPS, Server, is_gone, make_venv, parent_of, title_of, wait_for

from reuseport.core.model import FIRST_COMPANION

SCRIPT = str(APPS / "companion.py")


def declare(server: Server, **companions: str) -> None:
    """The configuration from now on: NAME="more keys". A key of its own replaces one that is usual here."""
    usual = {"command": f"'python {SCRIPT}'", "ready_after": "0.2"}
    text = ""
    for name, keys in companions.items():
        own = dict(line.split(" = ", 1) for line in keys.split("; ") if line)
        text += f'[[companion]]\nname = "{name}"\n'
        text += "".join(f"{key} = {value}\n" for key, value in {**usual, **own}.items())
    (server.root / "reuseport.toml").write_text(text)


def events(server: Server, **wanted: object) -> list[dict]:
    """What companions have told, in order, as far as it is as wanted."""
    try:
        lines = (server.gates / "events").read_text().splitlines()
    except FileNotFoundError:
        return []
    told = [json.loads(line) for line in lines]
    return [one for one in told if all(one.get(key) == value for key, value in wanted.items())]


def await_event(server: Server, **wanted: object) -> dict:
    return wait_for(lambda: events(server, **wanted), f"a companion's {wanted}")[0]


def companion(server: Server, name: str) -> dict:
    """The status of "1.mail"."""
    (number, _, _) = name.partition(".")
    return next(c for c in server.status().generation(int(number))["companions"] if c["id"] == name)


def await_state(server: Server, name: str, state: str) -> dict:
    return wait_for(lambda: c if (c := companion(server, name))["state"] == state else None, f"{name} {state}")


def start(server: Server, **companions: str) -> Server:
    """Have it serve, with these companions, which hear signals by now."""
    declare(server, **companions)
    server.write("one")
    server.start()
    for name in companions:
        await_event(server, what="begins", name=name)
    return server


def release(server: Server, *words: str) -> None:
    """A new version serves; its companions that are not exclusive hear signals by now."""
    server.write(f"version of {server.status().serving}")
    assert server.release(*words).exit == 0
    serving = server.status().current
    for one in serving["companions"]:
        if not one["exclusive"]:
            await_event(server, what="begins", name=one["name"], generation=serving["number"])


@pytest.fixture
def accompanied(serve) -> Server:
    """A server whose generation 1 has a companion, mail."""
    return start(serve(), mail="")


# --- its beginning ----------------------------------------------------------------------------------------------------


def test_it_begins_in_the_generations_directory_with_its_interpreter_and_in_a_session_of_its_own(serve):
    server = serve()
    server.options = ("--python", "venv/bin/python", "-e", "ODD=general", "-e", "ODD2=general")
    release = server.write("one")
    python = make_venv(release / "venv")
    declare(server, mail="env = {ODD = 'special'}; processes = 2")
    server.start()
    wait_for(lambda: len(events(server, what="begins")) == 2, "both")
    one, two = sorted(events(server, what="begins"), key=lambda e: e["environment"]["REUSEPORT_COMPANION_NUMBER"])
    assert (one["directory"], one["python"], one["venv"]) == (str(release), python, str(release / "venv"))
    assert one["session"] == one["pid"] and parent_of(one["pid"]) == server.pid
    assert one["environment"] == {
        "REUSEPORT_GENERATION": "1",
        "REUSEPORT_RUN_DIR": str(server.run_dir),
        "REUSEPORT_COMPANION": "mail",
        "REUSEPORT_COMPANION_NUMBER": "1",
        "ODD": "special",
        "ODD2": "general",
    }
    assert two["pid"] != one["pid"]
    assert {c["id"]: c["pid"] for c in server.status().current["companions"]} == {
        "1.mail:1": one["pid"],
        "1.mail:2": two["pid"],
    }


def test_what_it_prints_is_in_the_log_with_its_generation_and_name(accompanied):
    wait_for(lambda: "[1.mail] [output] mail begins" in accompanied.log.read_text(), "its words in the log")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_it_runs_as_the_user_that_workers_run_as(serve, interpreter_for_all):
    server = serve("--user", "nobody", python=interpreter_for_all, env={"HOME": "/root", "USER": "root"})
    script = server.root / "who.py"
    told = "os.getuid(), os.getgroups(), os.environ['USER'], os.environ['HOME']"
    script.write_text(f"import os, time\nprint('I am', {told}, flush=True)\ntime.sleep(3600)\n")
    declare(server, mail=f"command = 'python {script}'")
    server.write("one")
    server.start()
    import pwd

    nobody = pwd.getpwnam("nobody")
    line = f"[1.mail] [output] I am {nobody.pw_uid} [{nobody.pw_gid}] nobody {nobody.pw_dir}"
    wait_for(lambda: line in server.log.read_text(), "its user")


# --- a release --------------------------------------------------------------------------------------------------------


def test_the_new_one_has_begun_when_the_old_one_is_signalled_and_the_drain_waits_for_it(accompanied):
    release(accompanied)
    await_event(accompanied, what="signalled", generation=1, signal="SIGTERM")
    log = accompanied.log.read_text()
    said = ["companion 2.mail is started", "generation 2 serves", "companion 1.mail got its TERM"]
    assert said == sorted(said, key=log.index)
    status = accompanied.wait(lambda s: s.serving == 2 and not s.generation(1)["workers"], "old workers gone")
    assert status.draining == [1]
    assert status.generation(1)["waits_for"]["companions"] == ["1.mail"]
    text = accompanied.cli("status").out
    assert "waits for 1 companion, draining for" in text and "\n  companion 1.mail\n" in text
    accompanied.gate("mail-1").open()
    accompanied.settle(2)
    assert events(accompanied, what="signalled", generation=1)[-1]["times"] == 1
    assert companion(accompanied, "2.mail")["state"] == "running"


def test_three_releases_drain_side_by_side(accompanied):
    for _ in range(3):
        release(accompanied)
    assert accompanied.status().draining == [1, 2, 3]
    for number in (2, 3, 1):
        accompanied.gate(f"mail-{number}").open()
    accompanied.settle(4)
    assert sorted(e["generation"] for e in events(accompanied, what="ends")) == [1, 2, 3]
    assert max(e["times"] for e in events(accompanied, what="signalled")) == 1


def test_each_generation_has_the_companions_of_its_own_configuration(accompanied):
    accompanied.gate("mail-1").open()
    declare(accompanied, post="stop_signal = 'INT'; command = 'python " + SCRIPT + " INT'")
    release(accompanied, "--wait", "drained")
    assert [c["id"] for c in accompanied.status().current["companions"]] == ["2.post"]
    accompanied.gate("post-2").open()
    assert accompanied.cli("rollback").exit == 0
    assert [c["id"] for c in accompanied.status().current["companions"]] == ["3.mail"]
    await_event(accompanied, what="ends", name="post")
    assert [e["signal"] for e in events(accompanied, what="signalled", name="post")] == ["SIGINT"]


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ("command = 'celry worker'", "companion 2.mail cannot execute 'celry': no such file or directory"),
        ("command = ['sh', '-c', 'echo no broker && exit 3']", "companion 2.mail exited with status 3"),
        ("command = 'true'", "companion 2.mail exited, "),
    ],
)
def test_one_that_does_not_begin_fails_the_release_and_changes_nothing(keys, why, accompanied):
    before = companion(accompanied, "1.mail")["pid"]
    declare(accompanied, mail=f"{keys}; ready_after = 10", other="")
    outcome = accompanied.release()
    assert outcome.exit == 1
    assert why in outcome.err and "generation 1 serves on" in outcome.err
    assert "no broker" not in keys or "[2.mail] no broker" in outcome.err
    accompanied.gate("other-2").open()
    accompanied.settle(1)
    assert companion(accompanied, "1.mail")["pid"] == before
    assert not events(accompanied, what="signalled", generation=1)
    for one in events(accompanied, name="other", what="begins"):
        wait_for(lambda pid=one["pid"]: is_gone(pid), "the end of the failed release's companion")


def test_a_failed_release_is_answered_while_its_companions_finish_what_they_began(accompanied):
    declare(accompanied, mail="", bad="command = 'false'; ready_after = 10")
    assert accompanied.release().exit == 1
    if events(accompanied, generation=2, what="begins"):
        await_event(accompanied, generation=2, what="signalled")
        assert accompanied.status().numbers == [1, 2]
    accompanied.gate("mail-2").open()
    accompanied.settle(1)


def test_a_first_start_without_its_companion_is_no_start(serve):
    server = serve()
    declare(server, mail="command = 'celry'; ready_after = 10")
    outcome = server.run()
    assert outcome.exit == 1
    assert "generation 1 failed: companion 1.mail cannot execute 'celry'" in outcome.err


def test_a_mistake_in_its_declaration_is_refused_and_names_file_and_key(accompanied):
    declare(accompanied, mail="stop_signl = 'INT'")
    outcome = accompanied.release()
    assert outcome.exit == 1
    path = accompanied.root / "reuseport.toml"
    assert f"{path}: companion: 'mail': unknown key 'stop_signl'; did you mean stop_signal?" in outcome.err
    assert not events(accompanied, what="signalled")


def test_a_canary_has_none_until_everybody_gets_it(serve):
    server = serve("--tenant", "header:X-Tenant", app="app:application")
    start(server, mail="")
    assert server.release("--canary", "acme").exit == 0
    assert companion(server, "2.mail")["state"] == "waiting"
    assert not events(server, generation=2)
    assert server.cli("promote").exit == 0
    await_event(server, what="begins", generation=2)
    await_event(server, what="signalled", generation=1)


def test_a_canary_whose_companion_does_not_begin_is_not_promoted(serve):
    server = start(serve("--tenant", "header:X-Tenant"), mail="")
    declare(server, mail="command = 'celry'; ready_after = 10")
    assert server.release("--canary", "acme").exit == 0
    outcome = server.cli("promote")
    assert outcome.exit == 1
    assert "generation 2 was not promoted: companion 2.mail cannot execute 'celry'" in outcome.err
    assert [g["state"] for g in server.status()["generations"]] == ["serving", "canary"]
    assert not events(server, what="signalled")


# --- only once --------------------------------------------------------------------------------------------------------


def test_an_exclusive_one_begins_when_the_old_one_has_ended(serve):
    server = start(serve(), cron="exclusive = true")
    release(server)
    await_event(server, what="signalled", generation=1)
    assert companion(server, "2.cron")["state"] == "waiting"
    server.gate("cron-1").open()
    await_event(server, what="begins", generation=2)
    told = [(e["what"], e["generation"]) for e in events(server)]
    assert told == [("begins", 1), ("signalled", 1), ("ends", 1), ("begins", 2)]


def test_one_that_is_not_to_be_started_again_is_not_by_the_next_master_either(serve):
    server = start(serve(), once="restart = 'never'", mail="")
    server.process.kill()
    server.process.wait()
    for one in events(server, what="begins"):
        os.kill(one["pid"], signal.SIGKILL)
        wait_for(lambda pid=one["pid"]: is_gone(pid), "its end")
    server.start()
    await_state(server, "1.mail", "running")
    assert [one["name"] for one in events(server, what="begins")].count("once") == 1
    assert companion(server, "1.once")["state"] == "ended"
    assert "companion 1.once ended while no master looked" in server.log.read_text()


def test_one_that_the_next_master_does_not_know_of_still_keeps_others_away(serve):
    server = start(serve(), cron="exclusive = true")
    old = events(server, what="begins")[0]["pid"]
    server.process.kill()
    server.process.wait()
    # As if the last master had died before it could write down anything.
    roster = json.loads((server.run_dir / "roster.json").read_text())
    roster["processes"] = [p for p in roster["processes"] if p["pid"] != old]
    (server.run_dir / "roster.json").write_text(json.dumps(roster))
    server.start()
    assert await_state(server, "1.cron", "waiting")["why"] == "another one runs, and has the lock"
    assert not is_gone(old)
    os.kill(old, signal.SIGKILL)
    again = wait_for(lambda: events(server, what="begins")[1:], "the next one")
    assert len(again) == 1 and again[0]["pid"] != old


# --- its end ----------------------------------------------------------------------------------------------------------


def test_one_that_ends_by_itself_is_started_again_and_the_log_says_why(accompanied):
    first = events(accompanied, what="begins")[0]["pid"]
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: len(events(accompanied, what="begins")) == 2, "another one")
    again = await_state(accompanied, "1.mail", "running")
    assert again["pid"] != first and again["restarts"] == 1
    assert "companion 1.mail was killed by SIGKILL" in accompanied.log.read_text()


def test_whom_it_leaves_behind_goes_with_it(serve):
    server = start(serve(), mail="env = {CHILD = '1'}")
    (first,) = events(server, what="begins")
    os.kill(first["pid"], signal.SIGKILL)
    wait_for(lambda: is_gone(first["child"]), "the end of its child")


def test_one_that_may_end_is_not_started_again(serve):
    server = serve()
    declare(server, once="restart = 'on-failure'; command = ['sh', '-c', 'echo done']")
    server.write("one")
    server.start()
    once = await_state(server, "1.once", "ended")
    assert (once["restarts"], once["why"]) == (0, "exited")
    wait_for(lambda: "[1.once] [output] done" in server.log.read_text(), "its words in the log")


def test_a_stop_waits_for_it_and_a_second_one_does_not(serve):
    server = start(serve(), mail="env = {CHILD = '1'}")
    (one,) = events(server, what="begins")
    server.signal(signal.SIGTERM)
    await_event(server, what="signalled")
    server.wait(lambda s: not s.generation(1)["workers"], "the workers' end")
    assert server.alive and not is_gone(one["pid"])
    server.signal(signal.SIGTERM)
    assert server.await_exit() == 0
    wait_for(lambda: is_gone(one["pid"]) and is_gone(one["child"]), "its end, and its child's")
    assert events(server, what="signalled")[-1]["times"] == 1, "one signal, and then SIGKILL"


def test_after_stop_timeout_it_is_killed_with_all_that_it_has_started(serve):
    server = start(serve(), mail="env = {CHILD = '1'}; stop_timeout = 0.3")
    (one,) = events(server, what="begins")
    release(server, "--wait", "drained")
    assert is_gone(one["pid"])
    wait_for(lambda: is_gone(one["child"]), "the end of its child")
    assert "companion 1.mail is killed: it had not ended 0.3 s after its stop signal" in server.log.read_text()


# --- without a master -------------------------------------------------------------------------------------------------


def test_it_outlives_its_master_and_the_next_one_adopts_it(serve):
    server = start(serve(), mail="", cron="exclusive = true")
    before = {c["id"]: c["pid"] for c in server.status().current["companions"]}
    server.process.kill()
    server.process.wait()
    os.kill(before["1.mail"], signal.SIGUSR1)  # it prints something, and nobody listens
    await_event(server, what="signalled", signal="SIGUSR1")
    server.start()
    assert {c["id"]: c["pid"] for c in server.status().current["companions"]} == before
    wait_for(lambda: "[1.mail] [output] mail signalled" in server.log.read_text(), "what it printed meanwhile")
    assert server.log.read_text().count("[1.mail] [output] mail begins") == 1, "what the first master had copied"
    release(server)
    for name in ("mail", "cron"):
        await_event(server, what="signalled", signal="SIGTERM", name=name, generation=1)
        server.gate(f"{name}-1").open()
    server.settle(2)
    await_event(server, what="begins", name="cron", generation=2)
    assert "[1.mail] [output] mail ends" in server.log.read_text(), "what it has printed since"
    assert len(events(server, what="signalled", signal="SIGTERM")) == 2


def test_one_that_drains_gets_no_second_signal_from_the_next_master(accompanied):
    release(accompanied)
    await_event(accompanied, what="signalled", generation=1)
    accompanied.process.kill()
    accompanied.process.wait()
    accompanied.launch()
    status = accompanied.wait(lambda s: s.serving == 2, "the next master")
    assert status.draining == [1]
    accompanied.gate("mail-1").open()
    accompanied.settle(2)
    assert events(accompanied, what="signalled", generation=1)[-1]["times"] == 1


def test_they_hold_up_no_next_master_for_want_of_slots(accompanied):
    """Nobody who has a slot is left, but one who has let go of his, and companions, who say hello to nobody."""
    slow = accompanied.get_later("/gate?name=slow")
    (drains,) = accompanied.gate("slow").await_entered()
    release(accompanied)
    accompanied.await_drain()
    accompanied.process.kill()
    accompanied.process.wait()
    for process in json.loads((accompanied.run_dir / "roster.json").read_text())["processes"]:
        if process["pid"] != drains and process["number"] < FIRST_COMPANION:
            os.kill(process["pid"], signal.SIGKILL)
            wait_for(lambda pid=process["pid"]: is_gone(pid), "its end")
    accompanied.launch()
    accompanied.wait(lambda s: s.serving == 3 and s.draining == [1, 2], "a new generation")
    accompanied.gate("slow").open()
    assert slow.result().status == 200
    for name in ("mail-1", "mail-2"):
        accompanied.gate(name).open()
    accompanied.settle(3)
    assert [one["times"] for one in events(accompanied, what="signalled")] == [1, 1]


KILLED_BEFORE_GO = """\
import os, signal, sys
from reuseport.cli.main import main
from reuseport.master.companions import Companions
Companions.go = lambda self, key: os.kill(os.getpid(), signal.SIGKILL)
sys.argv = ["reuseport", *sys.argv[3:]]
sys.exit(main(sys.argv[1:]))
"""


def test_whoever_was_not_told_to_go_ends_with_the_master(serve):
    """Each holds one end of its wire only, and none of the others': else it would wait for ever, and be adopted."""
    server = serve()
    (server.root / "killed.py").write_text(KILLED_BEFORE_GO)
    server.flags = (str(server.root / "killed.py"),)
    declare(server, mail="", cron="")
    server.launch()
    server.await_exit()
    left = lambda: [title_of(pid) for pid in server.processes()]  # noqa: E731
    wait_for(lambda: not any("master" in title for title in left()), "the end of its forks")
    server.flags = ()
    server.start()
    assert {c["state"] for c in server.status().current["companions"]} == {"running"}
    # Each has run for a while by now, but may not have come to say so.
    wait_for(lambda: len(events(server, what="begins")) == 2, "that two begin")


WITHOUT_A_PIDFD = """\
import errno, os, sys
from reuseport.cli.main import main
from reuseport.master.processes import Processes
whole = Processes.is_running

def fail_once(self, process, pid, **more):
    if process.key.is_companion:
        Processes.is_running = whole
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    whole(self, process, pid, **more)

Processes.is_running = fail_once
sys.argv = ["reuseport", *sys.argv[3:]]
sys.exit(main(sys.argv[1:]))
"""


def test_one_that_could_not_be_watched_ends_and_leaves_its_lock_to_the_next(serve):
    server = serve()
    (server.root / "without.py").write_text(WITHOUT_A_PIDFD)
    server.flags = (str(server.root / "without.py"),)
    declare(server, cron="exclusive = true")
    server.start()
    await_event(server, what="begins")
    assert "no process for it: Too many open files" in server.log.read_text()
    cron = await_state(server, "1.cron", "running")
    titles = lambda: [title_of(pid) for pid in server.processes() if pid not in (server.pid, cron["pid"])]  # noqa: E731
    wait_for(lambda: not any("master" in title for title in titles()), "the end of the first fork")


def test_an_upgrade_loses_none_of_their_lines_and_starts_and_signals_nobody(serve):
    server = start(serve(), mail="", cron="exclusive = true")
    counting = server.root / "counting.py"
    counting.write_text("import time\nfor n in range(10**6): print('line', n, flush=True); time.sleep(0.01)\n")
    declare(server, mail="", cron="exclusive = true", counting=f"command = 'python {counting}'")
    assert server.release().exit == 0
    said = lambda: re.findall(r"\[2\.counting\] \[output\] line (\d+)\n", server.log.read_text())  # noqa: E731
    wait_for(lambda: len(said()) > 20, "what it prints")
    before = [c for g in server.status()["generations"] for c in g["companions"]]
    for _ in range(2):
        count = len(said())
        assert server.question(do="upgrade")["ok"]
        wait_for(lambda count=count: len(said()) > count + 20, "what it prints to the master behind the exec")
    assert said() == [str(n) for n in range(len(said()))]
    after = [c for g in server.status()["generations"] for c in g["companions"]]
    for name in ("id", "pid", "state", "restarts", "why"):
        assert [c[name] for c in after] == [c[name] for c in before]
    for name in ("mail", "cron"):
        (signalled,) = events(server, what="signalled", generation=1, name=name)
        assert signalled["times"] == 1
        server.gate(f"{name}-1").open()
    server.settle(2)
    await_event(server, what="begins", name="cron", generation=2)


def test_companions_alone_are_waited_for_beside_a_new_beginning(accompanied):
    """Everybody else was killed with the master: what it left has no slots to hand over."""
    pid = companion(accompanied, "1.mail")["pid"]
    accompanied.process.kill()
    accompanied.process.wait()
    for process in json.loads((accompanied.run_dir / "roster.json").read_text())["processes"]:
        if process["pid"] != pid:
            os.kill(process["pid"], signal.SIGKILL)
    accompanied.launch()
    accompanied.wait(lambda s: s.serving == 2 and s.draining == [1], "a new generation")
    await_event(accompanied, what="signalled", generation=1)
    accompanied.gate("mail-1").open()
    accompanied.settle(2)


def test_a_stop_leaves_nothing_behind(accompanied):
    accompanied.gate("mail-1").open()
    assert accompanied.cli("stop").exit == 0
    assert not list(Path(accompanied.run_dir).glob("companion-*.log"))
    assert "[1.mail] [output] mail ends" in accompanied.log.read_text()
