"""Where logs go: how a place is written, the forms that daemons want, and what is captured of what is printed."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import re
import socket
import sys

import pytest

from reuseport.ipc import logline
from reuseport.ipc import outlet as outlet_module
from reuseport.ipc.outlet import Outlet
from reuseport.ipc.post import Post, inherited
from reuseport.options import OptionError, load, logplace
from reuseport.options.logplace import LogPlace
from reuseport.worker import said


def settings(*flags):
    return load(["a:a", "--name", "shop", *flags], {}, "/srv")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("-", LogPlace("stream")),
        ("log/all", LogPlace("file", "/srv/log/all")),
        ("./syslog", LogPlace("file", "/srv/./syslog")),
        ("journald", LogPlace("journald", "/run/systemd/journal/socket")),
        ("journald:/run/systemd/journal.shop/socket", LogPlace("journald", "/run/systemd/journal.shop/socket")),
        ("syslog", LogPlace("syslog", "/dev/log")),
        ("syslog:/run/log", LogPlace("syslog", "/run/log")),
        ("syslog://logs.example", LogPlace("remote", host="logs.example", port=514)),
        ("syslog://[::1]:5140", LogPlace("remote", host="::1", port=5140)),
    ],
)
def test_a_place_is_one_word(text, place):
    for option in ("log_file", "access_log"):
        flag = "--" + option.replace("_", "-")
        assert logplace.parse(getattr(settings(flag, text), option)) == place


@pytest.mark.parametrize(
    "text", ["syslog:here", "syslog://", "syslog://host:0", "syslog://host:99999", "journald:here"]
)
def test_what_is_no_place_is_refused_by_its_options_name(text):
    for flag in ("--log-file", "--access-log"):
        with pytest.raises(OptionError, match=f"{flag}.*{re.escape(text)}"):
            settings(flag, text)


def test_a_facility_and_a_name_that_syslog_does_not_know():
    with pytest.raises(OptionError, match=r"--log-syslog-facility.*'local9'"):
        settings("--log-syslog-facility", "local9")
    with pytest.raises(OptionError, match="--log-syslog-prefix"):
        settings("--log-syslog-prefix", "two words")


def form(place, *flags, bare=False):
    return logline.form_of(logplace.parse(place), settings(*flags), bare=bare)


def test_the_local_daemons_form_is_syslogs_own():
    lines = form("syslog", "--log-syslog-facility", "local3")("7.2", "error", "one\ntwo\n")
    for line, text in zip(lines, ("one", "two"), strict=True):
        pattern = (
            rf"<{19 * 8 + 3}>[A-Z][a-z]{{2}} [ 123]\d \d\d:\d\d:\d\d shop\[{os.getpid()}\]: \[7\.2\] \[error\] {text}"
        )
        assert re.fullmatch(pattern, line.decode())


def test_across_the_network_it_is_rfc_5424():
    (line,) = form("syslog://h", "--log-syslog-prefix", "till")("master", "info", "released")
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d"
    pattern = rf"<{3 * 8 + 6}>1 {stamp} \S+ till {os.getpid()} - - \[master\] \[info\] released"
    assert re.fullmatch(pattern, line.decode())


def test_no_message_is_longer_than_a_daemon_takes():
    assert all(len(line) <= 8192 for line in form("syslog")("7.2", "error", "x" * 100_000))


def test_an_access_line_is_passed_as_it_is():
    (line,) = form("syslog", "--log-json", bare=True)("7.2", "info", '{"status":200}')
    assert line.endswith(b': {"status":200}')


def test_json_in_syslog_is_one_object():
    (line,) = form("syslog", "--log-json")("7.2", "error", "one\ntwo")
    entry = json.loads(line.partition(b"]: ")[2])
    assert (entry["process"], entry["generation"], entry["message"]) == ("7.2", "7", "one\ntwo")


def fields(entry: bytes) -> dict[str, str]:
    """As the journal reads one (systemd.io/JOURNAL_NATIVE_PROTOCOL)."""
    found, stream = {}, io.BytesIO(entry)
    while line := stream.readline():
        name, equals, value = line[:-1].partition(b"=")
        if not equals:
            value = stream.read(int.from_bytes(stream.read(8), "little"))
            assert stream.read(1) == b"\n"
        found[name.decode()] = value.decode()
    return found


def test_the_journal_gets_fields_and_a_traceback_whole():
    (entry,) = form("journald")("7.2", "error", "Traceback:\n  x=1\n")
    assert fields(entry) == {
        "MESSAGE": "Traceback:\n  x=1",
        "PRIORITY": "3",
        "SYSLOG_IDENTIFIER": "shop",
        "REUSEPORT_PROCESS": "7.2",
        "REUSEPORT_LEVEL": "error",
        "REUSEPORT_GENERATION": "7",
    }
    assert "REUSEPORT_GENERATION" not in fields(form("journald")("master", "info", "x")[0])


@pytest.mark.parametrize(("who", "number"), [("master", ""), ("7", "7"), ("7.2", "7"), ("12.j4711", "12")])
def test_whose_generation_it_is(who, number):
    assert logline.generation_of(who) == number


@pytest.fixture
def daemon(tmp_path):
    """A socket in the place of a log daemon's, that can be started again."""

    class Daemon:
        path = str(tmp_path / "daemon")

        def start(self):
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self.socket.setblocking(False)
            self.socket.bind(self.path)

        def stop(self):
            self.socket.close()
            os.unlink(self.path)

        def all(self):
            found = []
            while True:
                try:
                    found.append(self.socket.recv(1 << 20))
                except BlockingIOError:
                    return found

    one = Daemon()
    one.start()
    yield one
    one.socket.close()


def test_a_daemon_that_is_started_again_is_found_again(daemon):
    post = Post(logplace.parse(f"syslog:{daemon.path}"))
    post.send(b"one")
    daemon.stop()
    with pytest.raises(OSError):
        post.send(b"lost")
    daemon.start()
    post.send(b"two")
    assert daemon.all() == [b"two"]


def test_behind_an_exec_nobody_needs_to_be_there(daemon):
    outlet = Outlet(f"syslog:{daemon.path}", 2)
    left = json.loads(json.dumps(outlet.estate(os.dup)))
    daemon.stop()
    another = Outlet(f"syslog:{daemon.path}", 2, inherited(left["post"]))
    another.raw(b"lost")
    daemon.start()
    another.raw(b"found")
    assert daemon.all()[-1] == b"found"


def test_how_much_was_lost_while_nobody_was_there_is_said_in_full(daemon, monkeypatch):
    monkeypatch.setattr(outlet_module, "BUFFER", 30)
    outlet = Outlet(f"syslog:{daemon.path}", 2)
    outlet.notice = lambda lost: b"lost %d" % lost
    daemon.stop()
    for _ in range(9):
        outlet.raw(b"0123456789")
    daemon.start()
    outlet.raw(b"0123456789")
    told = daemon.all()
    kept = told.count(b"0123456789")
    assert told == [b"lost %d" % (10 - kept)] + [b"0123456789"] * kept


def test_nobody_there_is_said_with_the_path(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        Post(logplace.parse(f"journald:{tmp_path}/none"))
    assert caught.value.filename == f"{tmp_path}/none"


def test_what_is_too_large_for_a_datagram_comes_in_a_sealed_file(daemon):
    post = Post(logplace.parse(f"journald:{daemon.path}"))
    large = form("journald")("7.2", "error", "x" * 1_000_000)[0]
    post.send(large)
    data, fds, _, _ = socket.recv_fds(daemon.socket, 10, 1)
    assert data == b""
    with open(fds[0], "rb", closefd=False) as file:
        file.seek(0)
        assert file.read() == large
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
    assert fcntl.fcntl(fds[0], fcntl.F_GET_SEALS) == seals
    os.close(fds[0])


def test_an_outlet_keeps_whole_entries_for_a_daemon_that_is_busy(daemon):
    outlet = Outlet(f"syslog:{daemon.path}", 2)
    blocked = []
    outlet.on_blocked = lambda: blocked.append(True)
    count = 0
    while not blocked:  # until its queue is full (unix(7), net.unix.max_dgram_qlen)
        outlet.raw(b"%d" % count)
        count += 1
    outlet.raw(b"%d" % count)
    got = daemon.all()
    outlet.flush()
    got += daemon.all()
    assert got == [b"%d" % number for number in range(count + 1)]
    assert not outlet.unsent


@contextlib.contextmanager
def captured(tmp_path):
    """`capture` in this process, with a descriptor of its own. In the test, not before: pytest has streams, too."""
    before = sys.stdout, sys.stderr
    with open(tmp_path / "raw", "wb") as raw:
        said.capture()
        try:
            for stream in (sys.stdout, sys.stderr):
                stream.buffer.raw._fd = raw.fileno()
            yield tmp_path / "raw"
        finally:
            sys.stdout, sys.stderr = before


def log_of(tmp_path):
    return [re.sub(r"^\[.*?\] ", "", line) for line in (tmp_path / "log").read_text().splitlines()]


def test_what_is_printed_goes_to_the_descriptor_until_there_is_a_log_and_then_says_whose_it_is(tmp_path):
    with captured(tmp_path) as raw:
        print("booting")
        early = raw.read_text()
        said.speak_through(said.Said(settings("--log-file", str(tmp_path / "log"), "--log-level", "error"), "7.2"))
        print("one\ntwo")
        print("half", end="")
        print(" a line", file=sys.stdout)
        print("wrong", file=sys.stderr)
        sys.stdout.buffer.write(b"\xff\n")
        sys.stdout.flush()
    assert early == raw.read_text() == "booting\n"
    assert log_of(tmp_path) == [
        "[7.2] [stdout] one",
        "[7.2] [stdout] two",
        "[7.2] [stdout] half a line",
        "[7.2] [stderr] wrong",
        "[7.2] [stdout] \\xff",
    ]


def test_a_last_line_without_an_end_is_said_at_the_end(tmp_path):
    with captured(tmp_path):
        said.speak_through(said.Said(settings("--log-file", str(tmp_path / "log")), "7.2"))
        print("the end", end="", flush=True)
        before = log_of(tmp_path)
        said.end_lines()
    assert before == []
    assert log_of(tmp_path) == ["[7.2] [stdout] the end"]
