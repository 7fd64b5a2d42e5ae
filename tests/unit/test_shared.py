"""The master reads files that workers write: they are cut off, full of rubbish, or locked for ever."""

from __future__ import annotations

import fcntl
import json
import os
import random
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reuseport import names
from reuseport.core.model import Key
from reuseport.ipc import begun, inflight, latencies, marks, scoreboard
from reuseport.ipc.rundir import RunDir
from reuseport.ipc.scoreboard import PSS, RSS
from reuseport.ipc.shared import Held, SharedFile, Words, mapped
from reuseport.master.losses import AT_DEATH, Losses, jobs_at_death
from reuseport.master.processes import Process
from reuseport.master.quarantine import Quarantine
from reuseport.master.releases import Releases
from reuseport.master.shared import Shared
from reuseport.master.tenants import Tenants

FULL = b"\xff" * 8
NAMES = ("scoreboard", "latencies", "begun", "inflight", "marks")


@pytest.fixture
def file(tmp_path) -> SharedFile:
    return SharedFile(str(tmp_path / "file"), 8192, create=True)


def all_files(directory) -> list[SharedFile]:
    """As a master makes them."""
    made = (scoreboard.Scoreboard, latencies.Latencies, begun.Begun)
    files = [kind(str(directory / kind.__name__.lower()), create=True).file for kind in made]
    files.append(inflight.InFlight.made(str(directory / "inflight")).memory)
    return [*files, marks.Table(str(directory / "marks")).file]


# --- the file ---------------------------------------------------------------------------------------------------------


def test_it_reads_and_writes_what_a_worker_has_mapped(file):
    memory = mapped(file.fileno(), 8192)
    file[8:12] = b"abcd"
    file[12] = ord("e")
    assert memory[8:13] == b"abcde" == file[8:13]
    memory[9] = ord("B")
    assert (file[9], file[8:13:2]) == (ord("B"), b"ace")
    Words(file)[5] = 1 << 63
    assert memoryview(memory).cast("Q")[5] == 1 << 63 == Words(file)[5] == file.words(40, 1)[0]


def test_what_it_has_read_does_not_change_any_more(file):
    row = file.words(0, 2)
    mapped(file.fileno(), 8192)[0:8] = FULL
    assert row.tolist() == [0, 0]


@pytest.mark.parametrize("data", [b"", b"abc", b"abcde"])
def test_it_keeps_its_size_as_memory_does(file, data):
    with pytest.raises(IndexError):
        file[0:4] = data


@pytest.mark.parametrize("size", [0, 1, 100, 4096, 8191])
def test_a_file_that_was_cut_off_reads_as_zeros_and_gets_its_size_again(file, size):
    file[0:8192] = b"x" * 8192
    os.truncate(file.path, size)
    assert file[0:8192] == b"x" * size + bytes(8192 - size)
    assert file[8191] == 0
    assert file.restore()
    assert os.stat(file.path).st_size == 8192
    assert os.stat(file.path).st_blocks * 512 >= 8192, "a worker that touches a page without a block gets SIGBUS"
    assert not file.restore()


def test_the_master_maps_none_of_them(tmp_path):
    """A page behind the end of a mapped file ends the process that touches it."""
    for one in all_files(tmp_path):
        os.truncate(one.path, 0)
        assert one[one.size - 4096 : one.size] == bytes(4096) == one[0:4096]
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_what_is_no_file_is_none_of_them(tmp_path):
    os.mkfifo(tmp_path / "file")
    with pytest.raises(OSError, match="no file"):
        SharedFile(str(tmp_path / "file"), 8, create=True)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        SharedFile(str(tmp_path / "link"), 8, create=True)
    assert not (tmp_path / "elsewhere").exists()


def test_a_zygote_holds_what_there_is(tmp_path):
    (tmp_path / "scoreboard").write_bytes(b"")
    held = Held()
    held.open(RunDir(str(tmp_path)), ("scoreboard", "latencies"))
    assert held.get("latencies") is None
    with pytest.raises(FileNotFoundError):
        held["latencies"]
    fd = held["scoreboard"]
    assert not os.get_inheritable(fd)
    lent = json.loads(json.dumps(held.lent()))
    assert os.get_inheritable(fd)
    again = Held(lent)
    assert again["scoreboard"] == fd and not os.get_inheritable(fd)
    again.open(RunDir(str(tmp_path)), ("scoreboard",))
    assert again["scoreboard"] == fd, "it is not opened again, by a user who could not"


# --- whose they are ---------------------------------------------------------------------------------------------------


class Owned:
    def __init__(self) -> None:
        self.owner = (0, 0)
        self.path = "file"

    def belong_to(self, *owner: int) -> None:
        self.owner = owner


@pytest.mark.parametrize(
    ("zygotes", "theirs"),
    [
        ([], False),
        ([True], False),
        ([True, True], False),
        ([False], True),
        ([True, False], True),
        ([None, False], True),
        ([None], None),
        ([True, None], None),
    ],
)
def test_they_belong_to_the_workers_user_only_while_a_zygote_opens_them_by_name(zygotes, theirs):
    mine, ids = (os.geteuid(), os.getegid()), (65533, 65533)
    everyone = [Process(Key(n, 0), holds_shared=holds) for n, holds in enumerate(zygotes, 1)]
    everyone.append(Process(Key(9, 4)))  # a worker, which says nothing of that
    shared = Shared(ids, SimpleNamespace(all=lambda: everyone), lambda level, text: None)
    shared.files = [Owned()]
    shared.look()
    assert shared.files[0].owner == {True: ids, False: mine, None: (0, 0)}[theirs]
    if theirs and zygotes == [True, False]:
        shared.look(gone=everyone[1])
        assert shared.files[0].owner == mine


def test_without_another_user_nothing_is_given_away():
    shared = Shared(None, SimpleNamespace(all=lambda: [Process(Key(1, 0), holds_shared=False)]), lambda *_: None)
    shared.files = [Owned()]
    shared.look()
    assert shared.files[0].owner == (0, 0)


def test_files_that_were_cut_off_are_restored_and_told_of(tmp_path):
    lines = []
    shared = Shared(None, SimpleNamespace(all=list), lambda level, text: lines.append((level, text)))
    shared.files = all_files(tmp_path)
    shared.restore()
    assert lines == []
    for one in shared.files:
        os.truncate(one.path, 100)
    shared.restore()
    assert [os.stat(one.path).st_size for one in shared.files] == [one.size for one in shared.files]
    assert [level for level, _ in lines] == ["error"] * len(NAMES)
    assert all(one.path in text for one, (_, text) in zip(shared.files, lines, strict=True))


# --- rubbish ----------------------------------------------------------------------------------------------------------


def fill(path, seed: int) -> None:
    """Write bytes as a hostile worker can: 0xff, or random."""
    size = min(os.stat(path).st_size, inflight.FIRST_ROW + 3 * inflight.ROW_BYTES)
    with open(path, "rb+") as file:
        file.write(b"\xff" * size if seed == 0 else random.Random(seed).randbytes(size))


@pytest.mark.parametrize("count", [AT_DEATH + 1, (1 << 64) - 1])
def test_a_count_of_jobs_is_believed_up_to_a_limit(count):
    lost, ended = jobs_at_death((), (), count)
    assert (len(lost), ended) == (AT_DEATH, [])


@given(st.binary(min_size=begun.ROW_BYTES, max_size=begun.ROW_BYTES))
def test_jobs_in_a_row_of_rubbish_can_be_shown(data):
    for job in begun.Row(memoryview(data).cast("Q")).entries():
        assert all(text is None or text == names.name(text) for text in (job.name, job.tenant))
        assert 0 <= job.started <= time.time() + begun.AHEAD
        json.dumps(job, allow_nan=False)


@pytest.mark.parametrize("seed", range(3))
def test_lost_jobs_of_rubbish_are_told_of(tmp_path, seed):
    board = scoreboard.Scoreboard(str(tmp_path / "scoreboard"), create=True)
    jobs = begun.Begun(str(tmp_path / "begun"), create=True)
    for file in (board.file, jobs.file):
        fill(file.path, seed)
    lines = []
    losses = Losses(lambda level, text: lines.append(text), lambda *_: None, lambda *_: None, lambda *_: None)
    losses.of(Process(Key(1, 1), row=3), "was killed", board, jobs)
    losses.of_the_dead(board, jobs, range(20, scoreboard.ROWS))
    assert all(line.isprintable() for line in lines)
    json.dumps(losses.shown(), allow_nan=False)
    assert not set(range(20)) & set(jobs.owned())


@pytest.mark.parametrize("seed", range(4))
def test_a_quarantine_of_rubbish_is_none_and_can_be_published_to(tmp_path, seed):
    shared = inflight.InFlight.made(str(tmp_path / "inflight"))
    fill(shared.memory.path, seed)
    worker = Process(Key(1, 1), pid=os.getpid(), row=1)
    lines = []
    quarantine = Quarantine(
        shared, SimpleNamespace(all=lambda: [worker]), lambda: 30.0, lambda level, text: lines.append(text)
    )
    quarantine.of_the_dead({1})
    quarantine.look()
    quarantine.give(1, worker.key)
    for _ in range(2):  # which ends two workers
        memory, place, _ = shared.row(1).take()
        memory[place] = inflight.named(b"GET /\x1b[2J\n\0shop\0acme")
        quarantine.of(worker, "was killed")
        quarantine.give(1, worker.key)
    assert [one["request"] for one in quarantine.shown() if one["generation"] == 1] == ["GET /\\x1b[2J\\n"]
    json.dumps(quarantine.shown(), allow_nan=False)
    assert all(line.isprintable() for line in lines) and lines
    quarantine.clear()


def test_the_next_master_believes_no_quarantine_that_no_master_can_have_published(tmp_path):
    shared = inflight.InFlight.made(str(tmp_path / "inflight"))
    now = time.monotonic()
    good = inflight.Entry(7, False, 1, now - 1, now + 50, False, False, inflight.named(b"GET /good\0shop"))
    odd = {
        "number": [(1 << 64) - 1],
        "last": [float("nan"), float("inf"), -1.0, now + 1e6],
        "until": [float("nan"), float("inf"), -1.0, now + 1e12],
    }
    bad = [good._replace(**{name: value, "generation": 2}) for name, values in odd.items() for value in values]
    shared.publish(enumerate([good, *bad]), [])
    quarantine = Quarantine(shared, SimpleNamespace(all=list), lambda: 30.0, lambda *_: None)
    assert [(one["request"], one["generation"]) for one in quarantine.shown()] == [("GET /good", 1)]


def test_a_worker_that_says_it_is_huge_keeps_no_release_from_beginning(tmp_path):
    board = scoreboard.Scoreboard(str(tmp_path / "scoreboard"), create=True)
    board.write(3, [1 << 62 if field in (PSS, RSS) else 0 for field in range(scoreboard.FIELDS)])
    everyone = [Process(Key(1, number), pid=pid, row=3) for number, pid in ((1, os.getpid()), (2, 1 << 30))]
    releases = SimpleNamespace(_board=board, _workers=lambda generation: everyone)
    assert 0 < Releases._memory(releases, object()) < 1 << 40


# --- tenants ----------------------------------------------------------------------------------------------------------


def make_tenants(directory, adopting: bool) -> Tenants:
    rule = {"tenant": "header:X-Tenant", "tenant_isolation": "shared"}
    settings = SimpleNamespace(**rule, state_dir=str(directory), pin_max=0, strict_wait=1.0)
    switchboard = SimpleNamespace(queues=frozenset())
    processes = SimpleNamespace(all=list)
    return Tenants(settings, RunDir(str(directory)), adopting, processes, switchboard, lambda level, text: None)


@pytest.mark.parametrize("word", [(1 << 64) - 1, 1 << 63, 1, 0])
def test_a_version_that_a_worker_wrote_does_not_run_over(tmp_path, word):
    table = marks.Table(str(tmp_path / "marks"))
    table.words[marks.VERSION] = word
    tenants = make_tenants(tmp_path, adopting=True)
    assert time.time_ns() // 1000 - 1e9 < tenants._version < 1 << 62


def test_an_earlier_master_s_version_goes_before_the_clock(tmp_path):
    table = marks.Table(str(tmp_path / "marks"))
    ahead = time.time_ns() // 1000 + 3600_000_000
    table.words[marks.VERSION] = ahead
    assert make_tenants(tmp_path, adopting=True)._version == ahead


def test_the_master_does_not_wait_for_the_lock_of_the_marks(tmp_path):
    """A worker may have been stopped while it holds the lock, or may never let go of it."""
    table = marks.Table(str(tmp_path / "marks"))
    table.move(5, 3)
    begin, end = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        fcntl.lockf(os.open(tmp_path / "marks", os.O_RDWR), fcntl.LOCK_EX, 1)
        os.write(begin[1], b"1")
        os.read(end[0], 1)
        os._exit(0)
    try:
        os.read(begin[0], 1)
        assert not table.wipe()
        assert table.moved(5) == 3
        tenants = make_tenants(tmp_path, adopting=False)
        assert tenants._marks.moved(5) == 3
    finally:
        os.write(end[1], b"1")
        os.waitpid(child, 0)
        for fd in (*begin, *end):
            os.close(fd)
    tenants.look(SimpleNamespace(stopping=True))
    assert tenants._marks.moved(5) == 0, "it is done later"


@pytest.mark.parametrize("seed", range(3))
def test_marks_of_rubbish_are_read_and_wiped(tmp_path, seed):
    table = marks.Table(str(tmp_path / "marks"))
    fill(table.file.path, seed)
    tenants = make_tenants(tmp_path, adopting=True)
    for tenant in (2, 5, (1 << 64) - 1):
        assert 0 <= table.moved(tenant) < 1 << 64 and 0 <= table.stays(tenant, time.monotonic()) < 1 << 64
    assert tenants._where("acme").generation == 0, "nothing serves, whatever a mark says"
    assert table.wipe() and table.moved((1 << 64) - 1) == 0
