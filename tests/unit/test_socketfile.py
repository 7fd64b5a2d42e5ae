"""A master removes the unix socket that it has bound, and nothing else that lies at its path."""

from __future__ import annotations

import contextlib
import errno
import os
import socket

import pytest

from reuseport.master import socketfile
from reuseport.master.slots import SlotError, Slots
from reuseport.master.socketfile import NoSocket, SocketFile


@pytest.fixture
def sock():
    with socket.socket(socket.AF_UNIX) as one:
        yield one


def listening(path: str, kind: int = socket.SOCK_STREAM) -> socket.socket:
    one = socket.socket(socket.AF_UNIX, kind)
    one.bind(path)
    if kind != socket.SOCK_DGRAM:
        one.listen()
    return one


def test_the_file_is_removed_with_the_mode_that_the_umask_leaves(sock, tmp_path):
    path = tmp_path / "a.sock"
    file = socketfile.bind(sock, str(path), 0o077)
    assert path.stat().st_mode & 0o777 == 0o700
    assert file.remove() == ""
    assert not path.exists()


def test_what_has_taken_the_place_of_the_socket_stays(sock, tmp_path):
    path = tmp_path / "a.sock"
    elsewhere = tmp_path / "b.sock"
    for name, put in {
        "another server's socket": lambda: listening(str(path)).close(),
        "a file": lambda: path.write_text("precious"),
        "a link to a socket": lambda: path.symlink_to(elsewhere),
        "a directory": path.mkdir,
    }.items():
        with socket.socket(socket.AF_UNIX) as mine:
            file = socketfile.bind(mine, str(path), 0o077)
            path.unlink()
            put()
            assert str(path) in file.remove(), name
        assert os.path.lexists(path), name
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def test_the_directory_is_the_one_that_was_bound_in(sock, tmp_path):
    """Another directory of the name has a socket with another inode, and it is not even looked at."""
    (tmp_path / "run").mkdir()
    file = socketfile.bind(sock, str(tmp_path / "run/a.sock"), 0o077)
    (tmp_path / "run").rename(tmp_path / "moved")
    (tmp_path / "run").mkdir()
    listening(str(tmp_path / "run/a.sock")).close()
    assert file.remove() == ""
    assert (tmp_path / "run/a.sock").exists()
    assert not (tmp_path / "moved/a.sock").exists()


def test_a_file_that_has_gone_is_removed(sock, tmp_path):
    file = socketfile.bind(sock, str(tmp_path / "a.sock"), 0o077)
    (tmp_path / "a.sock").unlink()
    assert file.remove() == ""


def test_a_link_to_the_directory_leads_there(sock, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    file = socketfile.bind(sock, str(tmp_path / "link/a.sock"), 0o077)
    assert (tmp_path / "real/a.sock").exists()
    assert file.remove() == ""
    assert not (tmp_path / "real/a.sock").exists()


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM])
def test_a_living_socket_of_any_type_is_in_use(sock, tmp_path, kind):
    path = str(tmp_path / "a.sock")
    with contextlib.closing(listening(path, kind)):
        with pytest.raises(OSError) as caught:
            socketfile.bind(sock, path, 0o077)
        assert caught.value.errno == errno.EADDRINUSE
        assert os.path.exists(path)


def test_a_socket_whose_queue_is_full_is_in_use_and_costs_no_waiting(sock, tmp_path):
    path = str(tmp_path / "a.sock")
    with contextlib.ExitStack() as stack:
        other = stack.enter_context(contextlib.closing(listening(path)))
        other.listen(0)
        full = False
        while not full:
            client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
            full = client.connect_ex(path) == errno.EAGAIN
        with pytest.raises(OSError) as caught:
            socketfile.bind(sock, path, 0o077)
        assert caught.value.errno == errno.EADDRINUSE


def test_a_dead_socket_is_replaced_and_a_file_is_not(sock, tmp_path):
    path = tmp_path / "a.sock"
    listening(str(path)).close()
    assert socketfile.bind(sock, str(path), 0o077).remove() == ""
    path.write_text("precious")
    with socket.socket(socket.AF_UNIX) as another, pytest.raises(NoSocket):
        socketfile.bind(another, str(path), 0o077)
    assert path.read_text() == "precious"


def test_slots_leave_the_socket_of_a_server_that_has_come_since(tmp_path):
    path = tmp_path / "web.sock"
    slots = Slots([f"unix:{path}"], 16, 0o077)
    slots.bind()
    path.unlink()
    with contextlib.closing(listening(str(path))):
        (said,) = slots.close()
        assert str(path) in said
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


# What a process hands back.


@pytest.fixture
def before(tmp_path):
    """The slots of a master that has died."""
    slots = Slots(["tcp:127.0.0.1:0", f"unix:{tmp_path}/web.sock"], 16, 0o077)
    slots.bind()
    yield slots
    slots.leave()


def heir_of(before: Slots, cookies: bool = True) -> Slots:
    """Of a master that adopts; without `cookies` the earlier one was of a version that wrote none."""
    written = before.written()
    if not cookies:
        written = type(written)(dict.fromkeys(written.cookies, 0), written.files)
    slots = Slots([], 16, 0o077)
    slots.expect(written)
    return slots


@pytest.mark.parametrize("cookies", [True, False])
def test_the_very_sockets_are_taken_back_and_the_path_is_removed_at_the_end(before, tmp_path, cookies):
    heir = heir_of(before, cookies)
    for slot in before.slots:
        assert heir.expects(slot.address, slot.index)
        heir.offered(slot.address, slot.index, os.dup(slot.socket.fileno()))
        assert not heir.expects(slot.address, slot.index)
    assert heir.addresses == before.addresses
    assert [(slot.index, slot.shared) for slot in heir.slots] == [(0, False), (0, True)]
    assert heir.close() == []
    assert not (tmp_path / "web.sock").exists()


@pytest.mark.parametrize("cookies", [True, False])
def test_any_other_descriptor_is_closed(before, tmp_path, cookies):
    address, path = before.addresses[0], f"unix:{tmp_path}/web.sock"
    victim = tmp_path / "victim.sock"
    with contextlib.ExitStack() as stack:
        other = stack.enter_context(contextlib.closing(listening(str(victim))))
        inet = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        pipe = os.pipe()
        stack.callback(os.close, pipe[0])
        stack.callback(os.close, pipe[1])
        heir = heir_of(before, cookies)
        for name, index, fd in [
            (f"unix:{victim}", 0, other.fileno()),  # a path that no master has bound
            (path, 0, other.fileno()),  # a socket that is bound elsewhere, under a name that was written down
            (address, 0, inet.fileno()),
            *([(address, 7, before.slots[0].socket.fileno())] if cookies else []),  # under another one's name
            (path, 0, before.slots[0].socket.fileno()),  # another slot's socket
            (address, 0, pipe[0]),
            (["unix:/"], {}, pipe[0]),
        ]:
            given = os.dup(fd)
            heir.offered(name, index, given)
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(given)
            assert heir.slots == [], (name, index)
        heir.close()
        assert victim.exists() and (tmp_path / "web.sock").exists()


def test_a_slot_that_could_not_be_written_down_any_more_is_taken_back_where_addresses_are_known(before, tmp_path):
    """The earlier master has died right after it had passed it on."""
    heir = Slots(["tcp:127.0.0.1:0", "unix:/nowhere/web.sock"], 16, 0o077)
    (inet, unix) = before.slots
    heir.expect(type(before.written())())
    heir.offered(inet.address, 3, os.dup(inet.socket.fileno()))
    heir.offered(inet.address, 4, os.dup(inet.socket.fileno()))
    heir.offered(unix.address, 0, os.dup(unix.socket.fileno()))
    assert [(slot.address, slot.index) for slot in heir.slots] == [(inet.address, 3)]
    heir.close()
    assert (tmp_path / "web.sock").exists()


def test_a_second_copy_and_one_that_comes_when_none_is_awaited_are_closed(before):
    heir = heir_of(before)
    slot = before.slots[0]
    fd = slot.socket.fileno()
    heir.offered(slot.address, slot.index, os.dup(fd))
    heir.offered(slot.address, slot.index, os.dup(fd))
    assert len(heir.slots) == 1
    heir.expect_no_more()
    other = before.slots[1]
    heir.offered(other.address, other.index, os.dup(other.socket.fileno()))
    assert len(heir.slots) == 1
    heir.close()


def test_a_path_in_use_is_refused_in_one_line_that_names_the_option(tmp_path):
    path = str(tmp_path / "a.sock")
    with contextlib.closing(listening(path, socket.SOCK_DGRAM)), pytest.raises(SlotError, match="in use"):
        Slots([f"unix:{path}"], 16, 0o077).bind()


def test_a_record_whose_directory_has_gone_prevents_no_start(tmp_path):
    slots = Slots([], 16, 0o077)
    slots.own({f"unix:{tmp_path}/gone/web.sock": (1, 2)})
    assert slots.close() == []
    with pytest.raises(FileNotFoundError):
        SocketFile(str(tmp_path / "gone/web.sock"), (1, 2))
