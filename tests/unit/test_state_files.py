"""State files that are damaged: a start survives them, keeps them aside, and tells what is lost."""

from __future__ import annotations

import errno
import json
import os

import pytest

from reuseport.core.model import ACCEPTING, SERVING, Cluster, Generation, Release, Worker
from reuseport.ipc import files
from reuseport.ipc.files import Damaged
from reuseport.ipc.logfile import write_file
from reuseport.ipc.rundir import RunDir
from reuseport.master.history import FILE, KEPT, History, read
from reuseport.master.releases import recorded
from reuseport.master.roster import Roster
from reuseport.master.samples import FINE, Samples
from reuseport.master.tenants import HOLDS, _holds_of
from reuseport.options import OptionError

# As they are after a full disk, a loss of power or a slip of the hand.
DAMAGED = {
    "empty": b"",
    "cut": b'{"v": 1, "holds": {"ac',
    "zeros": b"\0" * 512,
    "no UTF-8": b'{"v": 1, "holds": {"\xff": 1}}',
    "deep": b"[" * 100_000,
    "null": b"null",
    "a number": b"7",
    "a list": b"[1, 2]",
    "a text": b'"holds"',
    "no fields": b"{}",
}


class Told(list):
    def __call__(self, level: str, text: str) -> None:
        self.append((level, text))


def write(path, content: bytes) -> None:
    path.write_bytes(content)


def test_a_file_that_cannot_be_opened_now_is_not_taken_for_a_damaged_one(tmp_path, monkeypatch):
    told, path = Told(), tmp_path / HOLDS
    write(path, b'{"holds": {"acme": 3}}')

    def refuse(*args, **more):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "open", refuse)
        assert files.read_json(str(path), _holds_of, told, "it is lost") is None
    assert [level for level, _ in told] == ["error"]
    assert files.read_json(str(path), _holds_of, told, "it is lost") == {"acme": 3}


ODD_HOLDS = [b'{"holds": []}', b'{"holds": {"acme": "3"}}', b'{"holds": {"acme": 1.5}}', b'{"holds": {"acme": true}}']
ODD_HOLDS += [b'{"holds": {"acme": null}}', b'{"holds": {"acme": 0}}', b'{"holds": {"acme": 1e400}}']


@pytest.mark.parametrize("content", [*DAMAGED.values(), *ODD_HOLDS])
def test_damaged_holds_are_set_aside_and_told_once(tmp_path, content):
    path, told = tmp_path / HOLDS, Told()
    write(path, content)
    assert files.read_json(str(path), _holds_of, told, "nobody is held") is None
    [(level, text)] = told
    assert level == "warning" and text.startswith(f"{path} is damaged (") and "nobody is held" in text
    [aside] = tmp_path.iterdir()
    assert aside.name in text and aside.read_bytes() == content
    assert files.read_json(str(path), _holds_of, told, "") is None and len(told) == 1  # it is not there any more


@pytest.mark.parametrize("make", [lambda p: p.mkdir(), lambda p: p.symlink_to("else"), lambda p: os.mkfifo(p)])
def test_what_is_no_file_is_set_aside_and_never_waited_for(tmp_path, make):
    told = Told()
    make(tmp_path / HOLDS)
    make(tmp_path / FILE)
    make(tmp_path / FINE[0])
    assert files.read_json(str(tmp_path / HOLDS), _holds_of, told, "") is None
    History(str(tmp_path), log=told).add({"event": "stopped"})
    Samples(str(tmp_path), told).close()
    assert len(told) == 3
    assert (tmp_path / FILE).is_file() and (tmp_path / FINE[0]).is_file()


def test_whole_holds_are_read(tmp_path):
    files.replace(str(tmp_path / HOLDS), json.dumps({"v": 1, "holds": {"acme": 3}}))
    assert files.read_json(str(tmp_path / HOLDS), _holds_of, Told(), "") == {"acme": 3}


def test_only_so_many_damaged_files_are_kept(tmp_path):
    for number in range(files.SEVERAL + 5):
        (tmp_path / f"roster.json.damaged-{number:02d}").touch()
    (tmp_path / "roster.json").touch()
    assert files.set_aside(str(tmp_path / "roster.json"))
    assert len(list(tmp_path.iterdir())) == files.SEVERAL


# --- replace ------------------------------------------------------------------------------------------------------


def test_a_replaced_file_and_its_directory_are_synced(tmp_path, monkeypatch):
    synced = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), sync(fd)))
    files.replace(str(tmp_path / "one"), "text")
    assert synced == [str(tmp_path / "one.new"), str(tmp_path)]


def test_a_file_is_replaced_through_no_link_and_keeps_no_mode(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("kept")
    (tmp_path / "one.new").symlink_to(victim)
    (tmp_path / "one").symlink_to(victim)
    files.replace(str(tmp_path / "one"), "text")
    assert victim.read_text() == "kept"
    assert (tmp_path / "one").read_text() == "text" and not (tmp_path / "one").is_symlink()
    assert (tmp_path / "one").stat().st_mode & 0o777 == 0o600


def test_a_full_disk_leaves_the_file_that_there_was(tmp_path, monkeypatch):
    files.replace(str(tmp_path / "one"), "text")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.replace(str(tmp_path / "one"), "other")
    assert [path.name for path in tmp_path.iterdir()] == ["one"] and (tmp_path / "one").read_text() == "text"


# --- the roster ---------------------------------------------------------------------------------------------------


def written(tmp_path) -> tuple[Roster, dict]:
    roster = Roster(RunDir(str(tmp_path)), "shop")
    g = Generation(1, Release(), 1, SERVING, workers={1: Worker(0, ACCEPTING, os.getpid())})
    roster.write(Cluster({1: g}, 1, 1), {}, (("127.0.0.1:80", 0),))
    return roster, json.loads((tmp_path / "roster.json").read_text())


@pytest.mark.parametrize("content", DAMAGED.values())
def test_a_damaged_roster_is_known_as_such(tmp_path, content):
    roster, _ = written(tmp_path)
    write(tmp_path / "roster.json", content)
    with pytest.raises(Damaged):
        roster.read()
    assert RunDir(str(tmp_path)).server() == ""


ODD = [
    ("last", "7"), ("last", True), ("last", -1), ("last", 1e300), ("v", True), ("v", "1"), ("v", None),
    ("releases", []), ("releases", {"x": {}}), ("releases", {"1": 7}), ("processes", {}), ("processes", [7]),
    ("processes", None), ("slots", [7]), ("slots", 7), ("forked", 7), ("forked", {"1": {}, "x": 1}), ("ended", [7]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), ODD)
def test_odd_values_in_a_roster_are_damage(tmp_path, name, value):
    roster, data = written(tmp_path)
    write(tmp_path / "roster.json", json.dumps({**data, name: value}).encode())
    with pytest.raises(Damaged):
        roster.read()


@pytest.mark.parametrize("value", ["1", None, -1, 1.5, True, [], 1e300, 10**40])
@pytest.mark.parametrize("name", ["generation", "number", "pid", "start", "row", "place"])
def test_odd_values_of_a_process_are_damage(tmp_path, name, value):
    roster, data = written(tmp_path)
    if (name, value) in (("row", -1), ("place", -1)):
        pytest.skip("that stands for none")
    data["processes"][0][name] = value
    write(tmp_path / "roster.json", json.dumps(data).encode())
    with pytest.raises(Damaged):
        roster.read()


def test_a_roster_that_cannot_be_written_any_more_counts_as_stale(tmp_path):
    """The next master must not end a process because the roster says what is not so any more."""
    roster, _ = written(tmp_path)
    (tmp_path / "roster.json.new").mkdir()
    g = Generation(1, Release(), 1, SERVING, workers={2: Worker(0, ACCEPTING, os.getpid())})
    with pytest.raises(OSError):
        roster.write(Cluster({1: g}, 1, 1), {}, ())
    assert roster.read() is None
    stale = roster.read_stale()
    assert stale and [one.key.number for one in stale.adopted.survivors] == [1]
    assert RunDir(str(tmp_path)).server() == "shop"
    (tmp_path / "roster.json.new").rmdir()
    roster.write(Cluster({1: g}, 1, 1), {}, ())
    assert roster.read() and roster.read_stale() is None


# --- the history --------------------------------------------------------------------------------------------------


def released(number: int, **more) -> dict:
    return {"event": "release", "number": number, "outcome": "serving", "source": 0, "release": {"recipe": {}}, **more}


STRANGE = [
    b"{", b"[]", b"7", b'{"event": 7}', b'{"event": "release"}', b'{"event": "release", "outcome": "serving"}',
    b'{"event": "drained"}', b'{"event": "drained", "number": 2, "jobs": [7]}', b"\0\0\0", b"\xff\xfe{}", b"[" * 5000,
    *(json.dumps({**released(1), **odd}).encode() for odd in (
        {"number": "9"}, {"number": -1}, {"number": 1.5}, {"number": True}, {"number": 10**40}, {"outcome": []},
        {"at": "then"}, {"at": 1e300}, {"at": float("inf")}, {"seconds": None}, {"release": 7}, {"source": "x"},
        {"error": {}}, {"label": 7}, {"name": []},
    )),
]  # fmt: skip


@pytest.mark.parametrize("line", STRANGE)
def test_a_strange_line_hides_no_other(tmp_path, line):
    whole = json.dumps(released(3)).encode()
    write(tmp_path / FILE, b"\n".join([whole, line, json.dumps(released(4)).encode()]) + b"\n")
    told = Told()
    history = History(str(tmp_path), log=told)
    assert [one["number"] for one in history.lines] == [3, 4] and history.last == 4 and list(history.served()) == [3, 4]
    assert len(told) == (line != b"\0\0\0")


@pytest.mark.parametrize("release", [{}, {"recipe": []}, {"recipe": {}}, {"recipe": {"settings": 7}}, 7])
def test_a_release_that_is_not_told_whole_cannot_be_gone_back_to(release):
    with pytest.raises(OptionError, match="does not tell what generation 3 was"):
        recorded(released(3, release=release))


def test_the_history_is_cut_while_the_master_runs(tmp_path):
    history = History(str(tmp_path))
    path = tmp_path / FILE
    with open(path, "rb") as reader:
        for number in range(1, KEPT + 1):
            history.add(released(number))
        old = reader.read().count(b"\n")
    assert old == KEPT  # who has the old file open reads it to its end
    assert path.read_bytes().count(b"\n") == KEPT // 2
    history.add(released(KEPT + 1))
    again = History(str(tmp_path))
    assert [line["number"] for line in again.lines] == [line["number"] for line in history.lines]
    assert len(again.lines) == KEPT // 2 + 1 and again.last == KEPT + 1 and read(str(path)) == list(again.lines)


def test_the_history_is_bounded_in_bytes_too(tmp_path, monkeypatch):
    monkeypatch.setattr("reuseport.master.history.LARGEST", 100_000)
    history = History(str(tmp_path))
    for number in range(1, 300):
        history.add(released(number, label="x" * 2000))
        assert (tmp_path / FILE).stat().st_size < 110_000
    assert history.last == 299 and History(str(tmp_path)).last == 299


def test_a_history_that_cannot_be_cut_goes_on(tmp_path):
    history = History(str(tmp_path))
    (tmp_path / (FILE + ".new")).mkdir()  # stands for a full disk
    for number in range(1, KEPT + 10):
        history.add(released(number))
    assert history.last == KEPT + 9
    (tmp_path / (FILE + ".new")).rmdir()
    for number in range(KEPT + 10, KEPT + 120):
        history.add(released(number))
    assert (tmp_path / FILE).read_bytes().count(b"\n") <= KEPT // 2 + 110
    assert History(str(tmp_path)).last == KEPT + 119


# --- files that others could have written -------------------------------------------------------------------------

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files and directories away")
OTHER = 4_000_001  # a uid without a name


@root_only
@pytest.mark.parametrize(
    ("give", "why"),
    [
        (lambda path: os.chown(path, OTHER, 0), f"belongs to user {OTHER}"),
        (lambda path: path.chmod(0o620), "others can write"),
        (lambda path: path.chmod(0o602), "others can write"),
    ],
)
def test_what_others_can_write_is_not_believed(tmp_path, give, why):
    """A history names the interpreter of the version that a rollback executes."""
    told = Told()
    for name, content in ((FILE, json.dumps(released(3)).encode()), (HOLDS, b'{"holds": {"acme": 3}}')):
        write(tmp_path / name, content)
        give(tmp_path / name)
        if (tmp_path / "other").exists():
            (tmp_path / "other").rename(tmp_path / f"other of {name}")
    assert History(str(tmp_path), log=told).served() == {}
    assert files.read_json(str(tmp_path / HOLDS), _holds_of, told, "") is None
    assert len(told) == 2 and all(why in text for _, text in told)


@root_only
def test_root_adds_lines_through_no_link_of_another_user(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "state").symlink_to(tmp_path / "far")
    os.chown(tmp_path / "theirs", OTHER, 0)
    with pytest.raises(OSError, match="symbolic link"):
        History(str(tmp_path / "theirs" / "state"))
    assert list((tmp_path / "far").iterdir()) == []


@root_only
def test_root_writes_a_pid_file_through_no_link_of_another_user(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("kept")
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", OTHER, 0)
    (tmp_path / "theirs" / "pid").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic link"):
        write_file(str(tmp_path / "theirs" / "pid"), "7\n")
    assert victim.read_text() == "kept"
    write_file(str(tmp_path / "pid"), "4711\n")
    write_file(str(tmp_path / "pid"), "7\n")
    assert (tmp_path / "pid").read_text() == "7\n" and (tmp_path / "pid").stat().st_mode & 0o777 == 0o644
