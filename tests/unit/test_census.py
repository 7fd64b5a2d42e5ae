"""Processes of an earlier master that no roster tells of: which are adopted, and as what."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time

import pytest

from reuseport.cli import orphans, place
from reuseport.cli.failure import Failure
from reuseport.core.events import Adopted, Survivor
from reuseport.core.machine import step
from reuseport.core.model import (
    ACCEPTING,
    ATTENDING,
    DRAINING,
    FIRST_COMPANION,
    FIRST_JOB,
    LEAVING,
    NOWHERE,
    SERVING,
    WORKING,
    ZYGOTE,
    Cluster,
    Key,
    Release,
)
from reuseport.ipc import channel as channels
from reuseport.ipc.messages import HELLOS
from reuseport.ipc.rundir import RunDir
from reuseport.master import census
from reuseport.master.census import AHEAD, Heard, ask, joined
from reuseport.master.roster import Remains

OLD, CONFIGURED, RECORDED = (Release(recipe={"label": name}) for name in ("old", "configured", "recorded"))


def heard(generation: int, number: int, state: str, pid: int = 0) -> Heard:
    return Heard(
        pid or 1000 + generation * 10 + number % 10, Key(generation, number), state, (("127.0.0.1:80", number),)
    )


def nothing(generation: int) -> Release | None:
    return None


def survivors(remains: Remains | None) -> dict[Key, Survivor]:
    assert remains is not None
    return {one.key: one for one in remains.adopted.survivors}


def test_a_generation_that_nobody_wrote_down_serves_on_until_the_configured_one_does():
    people = [heard(7, ZYGOTE, "loaded"), heard(7, 1, "serving"), heard(7, 2, "serving"), heard(6, 3, "draining")]
    job = heard(6, FIRST_JOB + 77, "working")
    remains, unknown = joined(None, [*people, job], nothing, CONFIGURED, 4)
    assert unknown and remains and remains.adopted.last == 7
    assert set(remains.written.cookies) == set(remains.slots) and not any(remains.written.cookies.values())
    found = survivors(remains)
    assert {key: one.state for key, one in found.items()} == {
        Key(7, ZYGOTE): "loaded",
        Key(7, 1): ACCEPTING,
        Key(7, 2): ACCEPTING,
        Key(6, 3): LEAVING,
        job.key: WORKING,
    }
    assert {found[Key(7, 1)].place, found[Key(7, 2)].place} == {0, 1} and found[job.key].place == NOWHERE
    assert remains.slots == tuple(("127.0.0.1:80", one.key.number) for one in [*people, job])
    state, _ = step(Cluster(), Adopted(**{**vars(remains.adopted), "otherwise": CONFIGURED, "renew": True}), 100.0)
    assert {n: g.state for n, g in state.generations.items()} == {6: DRAINING, 7: SERVING, 8: "loading"}


def test_what_the_history_or_an_older_roster_knows_is_what_a_generation_is():
    stale = Remains(
        Adopted((Survivor(Key(5, 1), 1051, OLD, ACCEPTING, 3),), 5, 0), {Key(5, 1): 2}, (), (), {}, {5: OLD}
    )
    known = {6: RECORDED}
    remains, unknown = joined(
        stale, [heard(5, 1, "serving"), heard(5, 2, "serving"), heard(6, 1, "serving")], known.get, CONFIGURED, 6
    )
    found = survivors(remains)
    assert not unknown
    assert {key: one.release for key, one in found.items()} == {Key(5, 1): OLD, Key(5, 2): OLD, Key(6, 1): RECORDED}
    assert found[Key(5, 1)].place == 3 and found[Key(5, 2)].place == 0
    assert remains and remains.rows == {Key(5, 1): 2, Key(5, 2): -1, Key(6, 1): -1}


def test_an_older_roster_is_corrected_by_what_is_heard():
    before = (
        Survivor(Key(5, 1), 1051, OLD, ACCEPTING, 0),
        Survivor(Key(5, 2), 1052, OLD, ATTENDING, 1),
        Survivor(Key(5, 3), 1053, OLD, ACCEPTING, 2),
        Survivor(Key(5, FIRST_COMPANION), 1054, OLD, "running", 0),
    )
    stale = Remains(Adopted(before, 5, 0), dict.fromkeys((one.key for one in before), -1), (), (99,), {}, {5: OLD})
    people = [heard(5, 1, "draining"), heard(5, 2, "draining"), heard(5, 4, "serving", 99)]
    remains, _ = joined(stale, people, nothing, CONFIGURED, 0)
    assert {key.number: one.state for key, one in survivors(remains).items()} == {
        1: LEAVING,
        2: ATTENDING,
        3: ACCEPTING,  # it was blocked, perhaps, and lives
        4: ACCEPTING,  # the older roster would have had it ended
        FIRST_COMPANION: "running",
    }
    assert remains and remains.strays == ()


def test_nothing_is_left_where_nobody_answers():
    assert joined(None, [], nothing, CONFIGURED, 4) == (None, False)


def test_absurd_generations_and_second_claims_are_passed_over():
    people = [heard(4 + AHEAD + 1, 1, "serving"), heard(5, 1, "serving", 10), heard(5, 1, "serving", 11)]
    remains, _ = joined(None, people, nothing, CONFIGURED, 4)
    assert [one.pid for one in survivors(remains).values()] == [10]


# --- hellos -------------------------------------------------------------------------------------------------------


@pytest.fixture
def run_dir(tmp_path):
    run_dir = RunDir(str(tmp_path))
    run_dir.hold()
    return run_dir


def say(run_dir: RunDir, message: object) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.connect(run_dir.hello)
    sock.send(message if isinstance(message, bytes) else json.dumps({"v": 1, "type": "hello", **message}).encode())
    return sock


WHOLE = {"generation": 7, "number": 1, "state": "serving", "slots": [["127.0.0.1:80", 0, False]]}
ODD = [
    b"{", b"[]", b"\xff", {}, {**WHOLE, "generation": "7"}, {**WHOLE, "generation": 0}, {**WHOLE, "generation": True},
    {**WHOLE, "generation": 10**40}, {**WHOLE, "number": -1}, {**WHOLE, "number": 0}, {**WHOLE, "number": FIRST_JOB},
    {**WHOLE, "number": FIRST_COMPANION}, {**WHOLE, "state": []}, {**WHOLE, "state": "loaded"},
    {**WHOLE, "state": "starting"}, {**WHOLE, "type": "takeover"},
]  # fmt: skip


def test_odd_hellos_are_passed_over_and_the_message_stays_for_the_switchboard(run_dir):
    hellos = channels.listen(run_dir.hello)
    with contextlib.ExitStack() as stack:
        for one in [*ODD, {**WHOLE, "number": 2}]:
            stack.enter_context(say(run_dir, one))
        found = ask(run_dir, hellos, frozenset({os.geteuid()}))
        assert [(one.key, one.pid) for one in found.heard] == [(Key(7, 2), os.getpid())]
        assert [one.slots for one in found.heard] == [(("127.0.0.1:80", 0),)] and found.silent == []
        [(message, fds)] = found.channels[-1].receive(HELLOS)
        assert message.number == 2 and fds == []


def test_a_hello_that_another_process_sends_over_the_connection_is_not_heard(run_dir):
    hellos = channels.listen(run_dir.hello)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(run_dir.hello)
        child = os.fork()
        if not child:
            sock.send(json.dumps({"v": 1, "type": "hello", **WHOLE}).encode())
            os._exit(0)
        os.waitpid(child, 0)
        found = ask(run_dir, hellos, frozenset({os.geteuid()}))
    assert found.heard == [] and len(found.channels) == 1


def test_other_users_are_not_heard(run_dir):
    hellos = channels.listen(run_dir.hello)
    with say(run_dir, WHOLE):
        found = ask(run_dir, hellos, frozenset({4_000_001}))
    assert found.heard == [] and found.channels == []


def test_a_directory_is_inhabited_while_a_process_has_what_the_master_lent(run_dir):
    assert not run_dir.is_inhabited()
    fd = run_dir.lend()
    assert run_dir.is_inhabited() and run_dir.is_inhabited()
    os.close(fd)
    assert not run_dir.is_inhabited()
    assert run_dir.inhabitants() == {}


class Unseen(RunDir):
    """As root without CAP_SYS_PTRACE sees it: some process has the directory, and nobody can say which."""

    def inhabitants(self) -> dict[int, int]:
        return {}

    def is_inhabited(self) -> bool:
        return True


@pytest.fixture
def unseen(tmp_path):
    run_dir = Unseen(str(tmp_path))
    run_dir.hold()
    return run_dir


def test_processes_that_cannot_be_seen_are_heard_until_no_other_one_has_said_hello_for_a_while(unseen, monkeypatch):
    monkeypatch.setattr(census, "QUIET", 0.5)
    hellos = channels.listen(unseen.hello)
    with say(unseen, WHOLE):
        began = time.monotonic()
        found = ask(unseen, hellos, frozenset({os.geteuid()}))
    assert time.monotonic() - began >= 0.5, "another one may be about to say hello"
    assert [one.key.number for one in found.heard] == [1] and found.silent == []


def test_orphans_that_cannot_be_seen_are_not_said_to_be_none(unseen, monkeypatch, capsys):
    monkeypatch.setattr(orphans, "RunDir", Unseen)
    master = place.Master(unseen.path, "--run-dir", {})
    with pytest.raises(Failure, match="live, and this user cannot see which"):
        orphans.end(master, now=False, as_json=False)
