"""Which paths a run directory may have: no other user can exchange a component."""

from __future__ import annotations

import os
import stat
import struct

import pytest

from reuseport.ipc import channel as channels
from reuseport.ipc import messages, walk
from reuseport.ipc.inherited import RUN_DIR
from reuseport.ipc.rundir import RunDir, RunDirError
from reuseport.ipc.walk import ACL, Untrusted, open_directory

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make what belongs to others")
OTHER, GROUP = 4_000_001, 4_000_002  # without a name


@pytest.fixture
def above(tmp_path):
    """A directory between trusted ones, in which the run directory lies."""
    (tmp_path / "above" / "run").mkdir(parents=True, mode=0o755)
    return tmp_path / "above"


def opens(path, **how) -> bool:
    fd = open_directory(str(path), os.geteuid(), **how)
    same = os.path.samestat(os.fstat(fd), os.stat(path))
    os.close(fd)
    return same


def refuses(path, *words, **how):
    with pytest.raises(Untrusted) as caught:
        open_directory(str(path), os.geteuid(), **how)
    assert all(str(word) in caught.value.strerror for word in words), caught.value.strerror


@pytest.mark.parametrize("mode", [0o755, 0o711, 0o700, 0o1777, 0o1775])
def test_what_only_this_user_can_change_is_opened(above, mode):
    above.chmod(mode)
    assert opens(above / "run")


def test_a_directory_that_every_user_can_write_to_is_refused_wherever_it_is_in_the_path(above):
    (above / "run" / "deep").mkdir()
    above.chmod(0o777)
    for path in (above / "run", above / "run" / "deep", above / "run" / "deep" / "new"):
        refuses(path, above, "0777", "every user", f"chmod go-w {above}", make=0o755)
    assert not (above / "run" / "deep" / "new").exists()


@root_only
def test_a_group_may_write_if_it_has_no_other_members(above, monkeypatch):
    """As with the user's private group of Debian, and umask 002."""
    above.chmod(0o775)
    os.chown(above, 0, GROUP)
    assert opens(above / "run")
    refuses(above / "run", "0775", f"gid {GROUP}", workers=(OTHER, GROUP))
    monkeypatch.setattr(walk.pwd, "getpwall", lambda: [walk.pwd.struct_passwd(("x", "", OTHER, GROUP, "", "/", "/"))])
    refuses(above / "run", f"gid {GROUP}")
    os.chown(above, 0, 0)
    assert opens(above / "run")


@root_only
def test_an_access_list_counts_like_a_group(above):
    def let_in(user: int) -> None:
        entries = [(1, 7, 0xFFFFFFFF), (2, 7, user), (4, 5, 0xFFFFFFFF), (16, 7, 0xFFFFFFFF), (32, 5, 0xFFFFFFFF)]
        try:
            os.setxattr(above, ACL, struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries))
        except OSError as error:
            pytest.skip(f"no access lists here: {error.strerror}")

    let_in(0)
    assert opens(above / "run")
    let_in(OTHER)
    refuses(above / "run", f"uid {OTHER}")


@root_only
def test_the_directory_of_another_user_is_refused(above):
    os.chown(above, OTHER, 0)
    refuses(above / "run", above, f"uid {OTHER}")


@root_only
def test_in_a_sticky_directory_only_what_is_of_this_user_or_root_counts(above):
    above.chmod(0o1777)
    os.chown(above / "run", OTHER, 0)
    refuses(above / "run", above / "run", f"uid {OTHER}")


@root_only
def test_a_link_counts_only_if_it_is_of_this_user_or_root(above, tmp_path):
    (above / "link").symlink_to("run")
    (tmp_path / "far").symlink_to(above / "link")
    assert opens(tmp_path / "far")
    os.chown(above / "link", OTHER, 0, follow_symlinks=False)
    refuses(tmp_path / "far", above / "link", "symbolic link", f"uid {OTHER}")


def test_what_a_link_leads_through_is_checked_like_the_path_itself(above, tmp_path):
    (above / "run" / "deep").mkdir()
    (tmp_path / "link").symlink_to("above/run/../run/deep")
    assert opens(tmp_path / "link")
    above.chmod(0o777)
    refuses(tmp_path / "link", above)


def test_a_circle_of_links_ends(tmp_path):
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    with pytest.raises(OSError, match="symbolic links"):
        open_directory(str(tmp_path / "one" / "run"), os.geteuid())


def test_what_is_missing_is_made_for_this_user_alone(tmp_path):
    assert opens(tmp_path, make=0o755)
    path = tmp_path / "one" / "two"
    os.close(open_directory(str(path), os.geteuid(), make=0o755))
    assert [stat.S_IMODE(one.stat().st_mode) for one in (path.parent, path)] == [0o755, 0o700]


def test_another_master_may_make_the_same_directories_at_the_same_time(tmp_path, monkeypatch):
    """Two servers that start at once where /tmp/reuseport-UID does not exist yet."""
    made, mkdir = [], os.mkdir

    def mkdir_too_late(path, *how, **more):
        made.append(path)
        mkdir(path, *how, **more)  # by the other one
        mkdir(path, *how, **more)

    monkeypatch.setattr(os, "mkdir", mkdir_too_late)
    run_dir = RunDir(str(tmp_path / "reuseport-0" / "shop"))
    os.close(run_dir.own())
    assert [os.path.basename(path) for path in made] == ["reuseport-0", "shop", "work"]


@root_only
def test_in_a_container_of_one_user_there_is_no_other(above, monkeypatch):
    """An emptyDir of Kubernetes has the mode 0777. Process 1 has the container's user, where that is not root."""
    above.chmod(0o777)
    os.chown(above / "run", OTHER, 0)
    monkeypatch.setattr(walk, "_owner_of_container", lambda: OTHER)
    os.close(open_directory(str(above / "run"), OTHER))
    refuses(above / "run", "every user")  # root has others below it


# --- the run directory --------------------------------------------------------------------------------------------


def test_a_directory_that_is_exchanged_leads_nobody_elsewhere(above):
    above.chmod(0o1777)
    run_dir = RunDir(str(above / "run"))
    run_dir.hold()
    (above / "run" / "roster.json").write_text("mine")
    assert run_dir.is_in_place()
    (above / "run").rename(above / "old")
    (above / "run").mkdir()
    (above / "run" / "roster.json").write_text("theirs")
    with open(run_dir.roster) as file:
        assert file.read() == "mine"
    assert not run_dir.is_in_place()
    assert run_dir.named(run_dir.roster) == str(above / "run" / "roster.json")
    assert run_dir.named(run_dir.door(7)) == str(above / "run" / "work" / "7.door")


def test_paths_that_are_in_use_stay_when_the_directory_is_held_anew(above):
    """A master that takes over holds it before it owns it, and companions print to files there in between."""
    run_dir = RunDir(str(above / "run"))
    run_dir.hold()
    before = run_dir.companion_log("7.mail")
    lock = run_dir.own()
    assert run_dir.companion_log("7.mail") == before and run_dir.fd > RUN_DIR
    run_dir.hold_again(run_dir.fd)
    assert run_dir.companion_log("7.mail") == before
    os.close(lock)


def test_a_zygote_goes_on_with_the_directory_that_it_was_given(above):
    master = RunDir(str(above / "run"))
    master.hold()
    zygote = RunDir(str(above / "run"))
    zygote.inherit(master.lend(), os.geteuid())
    (above / "run").rename(above / "old")
    (above / "run").mkdir()
    listener = channels.listen(str(above / "run" / "hello.sock"))
    with pytest.raises(FileNotFoundError):
        zygote.reach_master()
    real = channels.listen(master.hello)
    zygote.reach_master().close()
    assert channels.accept(real) and channels.accept(listener) is None


def test_a_directory_that_was_removed_is_looked_for_by_its_path_again(above):
    zygote = RunDir(str(above / "run"))
    zygote.inherit(os.open(above / "run", os.O_PATH), os.geteuid())
    (above / "run").rmdir()
    with pytest.raises(FileNotFoundError):
        zygote.reach_master()
    (above / "run").mkdir()
    listener = channels.listen(str(above / "run" / "hello.sock"))
    above.chmod(0o777)
    with pytest.raises(Untrusted):
        zygote.reach_master()
    above.chmod(0o755)
    zygote.reach_master().close()
    assert channels.accept(listener)


@root_only
def test_another_user_who_listens_there_is_no_master(above):
    zygote = RunDir(str(above / "run"))
    zygote.inherit(os.open(above / "run", os.O_PATH), 0)
    (above / "run").chmod(0o777)
    os.seteuid(OTHER)
    try:
        listener = channels.listen(zygote.hello)
    finally:
        os.seteuid(0)
    with pytest.raises(PermissionError, match=str(OTHER)):
        zygote.reach_master()
    channel = channels.accept(listener)
    assert channel and channel.receive(messages.HELLOS) == [] and channel.closed  # it was told nothing


def test_what_others_could_put_in_before_is_shut_before_anything_is_read(above):
    (above / "run").chmod(0o777)
    RunDir(str(above / "run")).hold()
    assert stat.S_IMODE((above / "run").stat().st_mode) == 0o755


def test_the_masters_pid_is_written_through_no_link(above, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("kept")
    for name in ("master.pid", "master.pid.new"):
        (above / "run" / name).symlink_to(victim)
    run_dir = RunDir(str(above / "run"))
    os.close(run_dir.own())
    assert victim.read_text() == "kept" and run_dir.owner() == os.getpid()


def test_a_refusal_names_the_option(above):
    above.chmod(0o777)
    with pytest.raises(RunDirError, match=f"^--run-dir: {above} has the mode 0777"):
        RunDir(str(above / "run")).own()
