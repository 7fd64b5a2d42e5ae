"""How log files are opened: by root through no link of another user's, and passed on from process to process."""

from __future__ import annotations

import gc
import os
import socket
import stat

import pytest

from reuseport.ipc.logfile import Passed, check_file, open_file
from reuseport.ipc.outlet import Outlet
from reuseport.master.logfiles import LogFiles, descriptors
from reuseport.options import OptionError, load, logplace
from reuseport.options.checks import check
from reuseport.worker.said import Said

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can open what belongs to others")
OTHER, THIRD = 4_000_001, 4_000_002  # uids without a name

THEIRS = {
    "like /tmp": lambda directory: os.chmod(directory, 0o1777),
    "another user's": lambda directory: os.chown(directory, OTHER, OTHER),
    "its group's": lambda directory: os.chmod(directory, 0o775),
    "everybody's": lambda directory: os.chmod(directory, 0o777),
}


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "logs").mkdir()
    return tmp_path / "logs"


def append(path, text=b"line\n", **how):
    fd = open_file(str(path), **how)
    try:
        os.write(fd, text)
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


def refuses(path, why, **how):
    """Both the opening and the look beforehand refuse it, with the same words."""
    for function in (open_file, check_file):
        with pytest.raises(OSError, match=why) as caught:
            function(str(path), **how)
        assert caught.value.filename == str(path)


def test_it_is_made_and_appended_to(directory):
    path = directory / "log"
    append(path)
    append(path)
    assert path.read_bytes() == b"line\nline\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    check_file(str(path))


def test_a_directory_or_one_that_is_not_there(directory):
    with pytest.raises(FileNotFoundError):
        open_file(str(directory / "none" / "log"))
    with pytest.raises(OSError, match=r"directory|no file"):
        open_file(str(directory))
    with pytest.raises(NotADirectoryError):
        (directory / "file").touch()
        open_file(str(directory / "file" / "log"))


@root_only
@pytest.mark.parametrize("whose", THEIRS)
@pytest.mark.parametrize("target", ["is there", "is not there"])
def test_no_link_in_a_directory_of_others_is_followed(directory, tmp_path, whose, target):
    victim = tmp_path / "victim"
    if target == "is there":
        victim.write_text("untouched")
    (directory / "log").symlink_to(victim)
    os.lchown(directory / "log", OTHER, OTHER)
    THEIRS[whose](directory)
    refuses(directory / "log", r"'log' is a symbolic link in a directory that .*, and root follows none there")
    assert victim.exists() == (target == "is there")
    assert not victim.exists() or victim.read_text() == "untouched"


@root_only
@pytest.mark.parametrize("whose", THEIRS)
def test_nor_one_that_root_made_there(directory, tmp_path, whose):
    """The directory's owner can have moved the link there, or another user have made a hard link to it."""
    (directory / "log").symlink_to(tmp_path / "victim")
    if whose == "like /tmp":
        os.link(directory / "log", tmp_path / "elsewhere", follow_symlinks=False)
    THEIRS[whose](directory)
    refuses(directory / "log", "symbolic link")


@root_only
@pytest.mark.parametrize("whose", THEIRS)
def test_nor_a_link_on_the_way(directory, tmp_path, whose):
    (tmp_path / "secret").mkdir()
    (directory / "sub").symlink_to(tmp_path / "secret")
    os.lchown(directory / "sub", OTHER, OTHER)
    THEIRS[whose](directory)
    refuses(directory / "sub" / "log", "'sub' is a symbolic link")
    assert list((tmp_path / "secret").iterdir()) == []


@root_only
@pytest.mark.parametrize("relative", [False, True])
def test_roots_own_links_are_followed(directory, tmp_path, relative):
    real = tmp_path / "real"
    real.mkdir()
    where = "../real" if relative else str(real)
    (directory / "sub").symlink_to(where)
    (directory / "log").symlink_to(f"{where}/other")
    append(directory / "sub" / "log")
    append(directory / "log")
    append(directory / "log")
    assert (real / "log").read_bytes() == b"line\n"
    assert (real / "other").read_bytes() == b"line\nline\n"
    os.chmod(directory, 0o1777)  # as /tmp: another user cannot replace root's link
    append(directory / "log")


@root_only
def test_links_in_a_circle(directory):
    (directory / "a").symlink_to("b")
    (directory / "b").symlink_to("a")
    refuses(directory / "a", "Too many levels")


@root_only
def test_another_users_link_in_a_directory_like_tmp(directory, tmp_path):
    (directory / "log").symlink_to(tmp_path / "victim")
    os.lchown(directory / "log", OTHER, OTHER)
    os.chmod(directory, 0o1777)
    refuses(directory / "log", "symbolic link")


@root_only
@pytest.mark.parametrize("whose", THEIRS)
def test_no_second_name_of_a_file(directory, tmp_path, whose):
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    os.link(victim, directory / "log")
    append(directory / "log", b"")  # in a directory of root's own it is allowed
    THEIRS[whose](directory)
    refuses(directory / "log", "another name")
    assert victim.read_text() == "untouched"


@root_only
@pytest.mark.parametrize("whose", THEIRS)
def test_a_plain_file_of_the_workers_user(directory, whose):
    (directory / "log").touch()
    os.chown(directory / "log", OTHER, OTHER)
    THEIRS[whose](directory)
    append(directory / "log", users=(OTHER,))
    append(directory / "new", users=(OTHER,), owner=(OTHER, OTHER))
    assert (directory / "new").stat().st_uid == OTHER
    append(directory / "roots")
    assert (directory / "roots").stat().st_uid == 0


@root_only
def test_a_file_of_a_third_user_in_a_directory_like_tmp(directory):
    (directory / "log").touch()
    os.chown(directory / "log", THIRD, THIRD)
    os.chmod(directory, 0o1777)
    refuses(directory / "log", f"it belongs to uid {THIRD}, in a directory where every user", users=(OTHER,))
    append(directory / "log", users=(THIRD,))


@root_only
def test_what_is_no_log(directory):
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(directory / "socket"))
    with pytest.raises(OSError, match="No such device"):  # open(2)
        open_file(str(directory / "socket"))
    with pytest.raises(OSError, match="no file, pipe or terminal"):
        check_file(str(directory / "socket"))
    sock.close()


def test_a_pipe_and_a_device(directory):
    os.mkfifo(directory / "pipe")
    with pytest.raises(OSError, match="No such device or address"):  # it has no reader
        open_file(str(directory / "pipe"))
    reader = os.open(directory / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    append(directory / "pipe")
    assert os.read(reader, 100) == b"line\n"
    os.close(reader)
    append("/dev/null")


def test_a_descriptor_of_a_process_by_its_path():
    reading, writing = os.pipe()
    append(f"/proc/{os.getpid()}/fd/{writing}")
    assert os.read(reading, 100) == b"line\n"
    check_file(f"/proc/{os.getpid()}/fd/{writing}")
    os.close(reading)
    os.close(writing)


# --- passed on


def settings(*flags):
    return load(["a:a", "--name", "shop", *flags], {}, "/srv")


def test_what_was_passed_is_opened_wherever_it_lies(directory):
    passed = Passed()
    path = str(directory / "gone" / "log")
    real = directory / "log"
    passed.take([path], [open_file(str(real))])
    said = Said(settings("--log-file", path), "7.1", passed)
    said("error", "one")
    real.rename(directory / "log.1")
    passed.take([path], [open_file(str(real))])
    said("error", "two")  # until it has heard
    said.reopen()
    said("error", "three")
    assert [text in (directory / "log.1").read_text() for text in ("one", "two", "three")] == [True, True, False]
    assert "three" in real.read_text()
    outlet = Outlet(path, 1, opened=passed.open)
    outlet.raw(b"four\n")
    assert real.read_text().endswith("four\n")


def test_nothing_stays_open(directory):
    def fds():
        gc.collect()  # a cycle of an earlier test may hold a file
        return len(os.listdir("/proc/self/fd"))

    path = str(directory / "log")
    passed = Passed()
    passed.take([path], [open_file(path)])
    said = Said(settings("--log-file", path), "7.1", passed)
    before = fds()
    for _ in range(3):
        passed.take([path], [open_file(path)])
        said.reopen()
    assert fds() == before


def test_without_a_word_of_the_master_a_process_opens_it_itself(directory):
    said = Said(settings("--log-file", str(directory / "log")), "7.1", Passed())
    said("error", "one")
    assert "one" in (directory / "log").read_text()


def test_a_master_of_an_earlier_version_has_them_opened_by_each_process(directory):
    path = directory / "log"
    passed = Passed()
    passed.take([str(path)], [open_file(str(path))])
    said = Said(settings("--log-file", str(path)), "7.1", passed)
    path.rename(directory / "log.1")
    passed.forget()
    said.reopen()
    said("error", "one")
    assert "one" in path.read_text()


def recipe(*flags):
    return {"settings": settings(*flags).to_json()}


@pytest.fixture
def files():
    told = []
    files = LogFiles(None, lambda level, text: told.append(text))
    files.told = told
    yield files
    files.close()


def test_the_master_opens_each_file_once_until_a_rotation(files, directory):
    log, access = directory / "log", directory / "access"
    one = recipe("--log-file", str(log), "--access-log", str(access))
    two = recipe("--log-file", str(log), "--access-log", str(directory / "other"))
    paths, fds = files.of(one, anew=True)
    assert paths == [str(log), str(access)]
    assert files.of(one, anew=False) == (paths, fds)
    files.of(two, anew=True)
    log.rename(directory / "log.1")
    files.reopen([one])
    _, fds = files.of(one, anew=False)
    assert os.fstat(fds[0]).st_ino == log.stat().st_ino
    assert set(files._fds) == {str(log), str(access)}


def test_a_rotation_that_fails_goes_on_in_the_old_file(files, directory):
    one = recipe("--access-log", str(directory / "sub" / "log"))
    (directory / "sub").mkdir()
    _, (fd,) = files.of(one, anew=True)
    inode = os.fstat(fd).st_ino
    (directory / "sub").rename(directory / "moved")
    files.reopen([one])
    assert "could not be opened again" in files.told[0]
    assert os.fstat(files.of(one, anew=False)[1][0]).st_ino == inode


def test_what_is_no_file_is_not_passed(files):
    for place in ("-", "syslog", "/dev/stdout", "/proc/self/fd/2"):
        assert files.of(recipe("--access-log", place, "--log-file", place), anew=True) == ([], ())
    assert files.of(None, anew=True) == ([], ())


def test_a_release_with_a_log_that_cannot_be_opened(files, directory):
    path = directory / "none" / "log"
    with pytest.raises(OptionError, match=f"--access-log: cannot open {path}: No such file"):
        files.check(settings("--access-log", str(path)))
    files.check(settings("--log-file", str(path)))


# --- the master's own descriptors


def given_pipe() -> tuple[int, int]:
    """A pipe whose ends this process could have been started with."""
    ends = os.pipe()
    for end in ends:
        os.set_inheritable(end, True)
    return ends


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *(("/dev/stdin", 0), ("/dev/stdout", 1), ("/dev/stderr", 2), ("/dev/fd/7", 7), ("/proc/self/fd/12", 12)),
        *(("//dev/stdout", 1), ("/dev/./fd//7", 7), ("/proc/thread-self/fd/2", 2)),
    ],
)
def test_each_name_of_a_descriptor(text, number):
    place = logplace.parse(text)
    assert (place.kind, place.number, place.by_datagrams) == (logplace.DESCRIPTOR, number, False)


def test_a_descriptor_is_passed_as_it_is(files, directory):
    reading, writing = given_pipe()
    path = f"/dev/fd/{writing}"
    paths, (fd,) = files.of(recipe("--access-log", path), anew=True)
    os.write(fd, b"passed")
    assert os.read(reading, 100) == b"passed"
    assert paths == [path]
    outlet = Outlet(path, fd)
    outlet.raw(b"line\n")
    assert os.read(reading, 100) == b"line\n"
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("flag", ["--log-file", "--access-log"])
def test_a_descriptor_that_is_not_open(flag):
    said = check(settings(flag, "/dev/fd/987"))
    assert f"{flag}: /dev/fd/987: the master was started without descriptor 987" in said
    reading, writing = given_pipe()
    assert any("for reading only" in one for one in check(settings(flag, f"/dev/fd/{reading}")))
    assert not any("descriptor" in one for one in check(settings(flag, f"/dev/fd/{writing}")))
    os.close(reading)
    os.close(writing)


def test_a_descriptor_of_the_servers_own_is_no_log(files):
    """One that the server has opened itself, such as a listening socket or the roster, which a release could name."""
    reading, writing = os.pipe()
    path = f"/dev/fd/{writing}"
    assert check(settings("--access-log", path)) == [
        f"--access-log: {path}: the master was started without descriptor {writing}"
    ]
    with pytest.raises(OptionError, match=f"cannot open {path}: the master was started without descriptor"):
        files.check(settings("--access-log", path))
    assert files.of(recipe("--access-log", path), anew=True) == ([], ())
    os.close(reading)
    os.close(writing)


def test_a_link_to_a_socket_of_this_process(files, directory):
    """The stream of a service is a socket (systemd.exec(5), StandardOutput=journal), which open(2) refuses."""
    ours, theirs = socket.socketpair()
    os.set_inheritable(ours.fileno(), True)
    link = directory / "access.log"
    link.symlink_to(f"/proc/self/fd/{ours.fileno()}")
    for path in (str(link), f"/proc/{os.getpid()}/fd/{ours.fileno()}"):
        paths, (fd,) = files.of(recipe("--access-log", path), anew=True)
        assert paths == [path]
        outlet = Outlet(path, 1, opened=lambda path, fd=fd: os.dup(fd))
        outlet.raw(b"line\n")
        assert theirs.recv(100) == b"line\n"
    os.set_inheritable(ours.fileno(), False)
    with pytest.raises(OptionError, match="No such device or address"):
        files.check(settings("--access-log", str(link)))
    ours.close()
    theirs.close()


def test_another_masters_generation_gets_no_descriptor_of_this_one(files, directory):
    _, writing = given_pipe()
    path, log = f"/dev/fd/{writing}", str(directory / "log")
    one = recipe("--access-log", path, "--log-file", log)
    assert files.of(one, anew=True, another=True)[0] == [log]
    assert files.of(one, anew=True)[0] == [log, path]
    assert descriptors(one) == {path: writing}


def test_a_stream_that_becomes_another(directory):
    """As at an adoption. What could not be written to the old one goes to the new one."""
    (reading, writing), (ours, theirs) = os.pipe(), socket.socketpair()
    outlet = Outlet("-", writing)
    outlet.raw(b"one\n")
    assert os.read(reading, 100) == b"one\n"
    os.dup2(ours.fileno(), writing)
    outlet.reopen()
    outlet.raw(b"two\n")
    assert theirs.recv(100) == b"two\n"
    with (directory / "file").open("wb") as file:
        os.dup2(file.fileno(), writing)
    outlet.reopen()
    assert outlet.is_file
    outlet.raw(b"three\n")
    assert (directory / "file").read_bytes() == b"three\n"
    for fd in (reading, writing):
        os.close(fd)
    ours.close()
    theirs.close()
