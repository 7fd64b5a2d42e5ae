"""A real master, without processes, hears what a broken or hostile process can say on its channel."""

from __future__ import annotations

import _socket
import array
import contextlib
import json
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest
from catalogue_strategies import mutated, valid
from examples import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reuseport import options
from reuseport.core.model import (
    ACCEPTING,
    FIRST_JOB,
    NOWHERE,
    SERVING,
    WORKING,
    ZYGOTE,
    Generation,
    Key,
    Worker,
    Zygote,
)
from reuseport.ipc import messages
from reuseport.ipc.channel import Channel
from reuseport.ipc.messages import Heard, Malformed
from reuseport.master import entrance
from reuseport.master.questions import whole_status

ROLES = {
    Key(1, ZYGOTE): messages.FROM_ZYGOTE,
    Key(1, 1): messages.FROM_WORKER,
    Key(1, FIRST_JOB + 7): messages.FROM_JOB,
}
PATIENCE = 20.0  # seconds
LARGEST = 8 << 20  # bytes of a status, whatever one worker has said


class World:
    """Generation 1 serves, with a zygote, a worker and a job's process, whose ends of the channels are held here."""

    def __init__(self, master, log) -> None:
        self.master, self._log = master, log
        self.killed: list[Key] = []
        self.peers: dict[Key, _socket.socket] = {}
        self.release = master.events[0].release
        self.begin_anew()

    def begin_anew(self) -> None:
        master = self.master
        master.events.clear()
        self.killed.clear()
        for process in master.processes.all():
            if process.channel is not None:
                master.switchboard._hang_up(process.channel)
            master.processes.forget(process.key)
        for peer in self.peers.values():
            peer.close()
        workers = {1: Worker(0, ACCEPTING, 0, 0.0), FIRST_JOB + 7: Worker(NOWHERE, WORKING, 0, 0.0, let_go=True)}
        g = Generation(1, self.release, 1, SERVING, zygote=Zygote(0, loaded=True), workers=workers, forked=9)
        master.cluster = replace(master.cluster, generations={1: g}, last=1, slots=1, served=True)
        for key in ROLES:
            ours, self.peers[key] = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
            self.peers[key].setblocking(False)  # a test that fills the buffer must fail
            process = master.processes.expect(key, 0 if key.number == 1 else -1)
            process.channel = Channel(ours)
            master.switchboard._listen_to(process, process.channel)

    def say(self, key: Key, said: bytes, fds: Sequence[int] = ()) -> None:
        extra = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.peers[key].sendmsg([said], extra)

    def hear(self, key: Key) -> None:
        process = self.master.processes.get(key)
        assert process is not None
        if process.channel is not None:
            self.master.switchboard._on_messages(process, process.channel)
        self.master.catch_up()

    def status(self) -> str:
        """JSON of the kind that every reader takes."""
        return json.dumps(whole_status(self.master), allow_nan=False)

    def lines(self, *words: str) -> list[str]:
        return [line for line in self._log.read_text().splitlines() if any(word in line for word in words)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    home = tmp_path_factory.mktemp("master")
    (home / "shop.py").write_text("def app(environ, start_response): pass\n")
    log = home / "log"
    asked = options.from_keywords(
        "shop:app",
        chdir=str(home),
        run_dir=str(home / "run"),
        state_dir=str(home),
        bind="127.0.0.1:0",
        log_file=str(log),
        tenant="header:X-Tenant",
        reload=True,
        workers=1,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entrance, "_prepare_process", lambda: None)
        patch.delenv("NOTIFY_SOCKET", raising=False)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        master = entrance.begin(asked, {})
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)  # a master blocks what it has no handlers for yet
        world = World(master, log)
        # No message leads to a real process: neither to be watched, nor to be signalled.
        patch.setattr(master.processes, "is_running", lambda process, pid, **how: setattr(process, "pid", pid))
        patch.setattr(master.processes, "signal", lambda key, number: world.killed.append((key, number)))
        # Whose slots a master takes back is another subject.
        patch.setattr(master.slots, "adopt", lambda address, index, shared, fd, theirs=False: os.close(fd))
        yield world
        master._leave()


def drawn(key: Key) -> st.SearchStrategy:
    kinds = sorted(ROLES[key].values(), key=lambda kind: kind.__name__)
    one = st.sampled_from(kinds).flatmap(lambda kind: valid(kind) | mutated(kind))
    as_bytes = one.map(lambda pair: (json.dumps(pair[0]).encode(), pair[1]))
    said = st.tuples(as_bytes | st.tuples(st.binary(min_size=1), st.just(0)), st.booleans())
    return st.tuples(st.just(key), st.lists(said, max_size=4))


def descriptors(many: int, sockets: bool) -> list[int]:
    if not sockets:
        return [os.open(os.devnull, os.O_RDONLY) for _ in range(many)]
    return [_socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM).detach() for _ in range(many)]


def is_malformed(data: bytes, fds: list[int], group: messages.Group) -> bool:
    copies = [os.dup(fd) for fd in fds]
    try:
        if isinstance(Heard.of(data, copies, group).message, messages.Unknown):
            return False
    except Malformed:
        for fd in copies:
            os.close(fd)
        return True
    for fd in copies:
        os.close(fd)
    return False


@given(st.sampled_from(sorted(ROLES)).flatmap(drawn))
@settings(deadline=None, max_examples=examples(60), suppress_health_check=list(HealthCheck))
def test_what_a_process_says_ends_at_most_that_process(world, story):
    key, said = story
    world.begin_anew()
    before = len(world.lines("malformed"))
    bad = False
    for (data, brought), sockets in said:
        if len(data) <= 60_000:
            fds = descriptors(brought, sockets)
            world.say(key, data, fds)
            bad = bad or is_malformed(data, fds, ROLES[key])
            for fd in fds:
                os.close(fd)
    world.hear(key)
    assert ((key, signal.SIGKILL) in world.killed, len(world.lines("malformed")) - before) == (bad, bad)
    processes = {one: world.master.processes.get(one) for one in ROLES}
    sender = processes.pop(key)
    assert (sender.channel is None, sender.malformed) == (bad, bad)
    assert not any(one is not None and (one.channel is None or one.malformed) for one in processes.values())
    assert len(world.status()) < LARGEST
    assert world.lines("CRITICAL", "critical", "a defect") == []


def test_one_worker_cannot_fill_the_master_nor_its_status(world):
    world.begin_anew()
    key = Key(1, 1)
    process = world.master.processes.get(key)
    for number in range(3 * messages.JOBS):
        job = {"number": number, "name": "\0" * 200, "tenant": f"{number:0200}", "text": "\U0001f980" * 500}
        world.say(key, json.dumps({"v": 1, "type": "job", "started": 1.0, **job}).encode())
        stay = {"tenant": f"{number:0500}", "at": 1, "seconds": 1e9}
        world.say(key, json.dumps({"v": 1, "type": "stays", **stay}).encode())
        world.master.switchboard._on_messages(process, process.channel)  # before the socket's buffer is full
    world.hear(key)
    assert len(process.jobs) == messages.JOBS and not world.killed
    assert len(world.status()) < LARGEST
    assert world.master.cluster.generations[1].pinned
    for number in range(3 * messages.JOBS):
        world.say(key, json.dumps({"v": 1, "type": "job-ended", "number": number}).encode())
        world.master.switchboard._on_messages(process, process.channel)  # before the socket's buffer is full
    world.hear(key)
    assert not process.jobs and not world.master.cluster.generations[1].pinned


@pytest.mark.parametrize("key", [Key(1, ZYGOTE), Key(1, 1), Key(1, FIRST_JOB + 7)], ids=str)
def test_a_process_cannot_speak_for_another_kind_of_process(world, key):
    """What only a zygote can know, a worker says in vain; and the other way round."""
    world.begin_anew()
    others = {kind: one for group in ROLES.values() for kind, one in group.items() if kind not in ROLES[key]}
    for kind in others:
        facts = {"number": 1, "pid": 1, "error": "", "generation": 1, "workers": 9, "name": "x", "tenant": None}
        more = {"started": 1, "reason": "", "level": "error", "text": ""}
        world.say(key, json.dumps({"v": 1, "type": kind, **facts, **more}).encode())
    world.hear(key)
    assert not world.killed and not world.master.events
    assert world.master.processes.get(Key(1, 1)) is not None
    assert not any(process.jobs for process in world.master.processes.all())


@pytest.mark.parametrize(
    "said",
    [
        {"type": "hello"},
        {"type": "hello", "generation": 1, "number": True, "state": "serving", "slots": []},
        {"type": "hello", "generation": 1, "number": 1, "state": "serving", "slots": [["a", 0]]},
        {"type": "hello", "generation": 1 << 70, "number": 1, "state": "serving", "slots": []},
        {"type": "hello", "generation": 1, "number": 1, "state": "serving", "slots": [], "queue": True},
        {"type": "takeover", "protocol": "1"},
        {"type": "takeover", "protocol": 1, "release": {"recipe": {}}, "addresses": []},
        {"type": "takeover", "protocol": 1, "release": {"recipe": {"settings": []}}},
        {"type": "ready"},
    ],
    ids=lambda said: json.dumps(said)[:50],
)
def test_a_first_message_that_is_no_hello_changes_nothing(world, said):
    world.begin_anew()
    before = world.status()
    with contextlib.closing(_socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)) as peer:
        peer.connect(world.master.run_dir.hello)
        peer.send(json.dumps({"v": 1, **said}).encode())
        peer.setblocking(False)
        assert wait_for_end(world.master.loop, peer), "the master hangs up"
    world.master.catch_up()
    assert not world.killed and not world.lines("CRITICAL", "a defect")
    assert json.loads(world.status())["generations"][0]["workers"] == json.loads(before)["generations"][0]["workers"]


def wait_for_end(loop, peer: _socket.socket) -> bool:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        loop.wait(time.monotonic() + 0.05)
        with contextlib.suppress(BlockingIOError):
            while peer.recv(65536):
                pass
            return True
    return False
