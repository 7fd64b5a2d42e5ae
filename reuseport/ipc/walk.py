"""A path, component by component: which directories it leads through, and which users could change where it leads.

Each component is opened in the directory before it (O_PATH and O_NOFOLLOW, open(2)), so what was checked is what is
used. openat2(2) with RESOLVE_NO_SYMLINKS would also refuse /var/run, which is root's own link to /run.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import stat
import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from reuseport.options.machine import name_of, whose

LINKS = 40  # as many as the kernel follows in one path, path_resolution(7)
ACL = "system.posix_acl_access"  # the extended attribute of acl(5)
_ACL_USER, _ACL_GROUP, _WRITE = 0x02, 0x08, 0x02  # linux/posix_acl_xattr.h, linux/posix_acl.h
NOT_MAPPED = 65534  # how a user namespace shows the users that it does not map, user_namespaces(7)


class Untrusted(OSError):
    """Another user could change where a path leads. `strerror` names the component and says what to do."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(errno.EPERM, why, path)


@dataclass(frozen=True)
class Step:
    """One component of a path. Where it does not exist, `fd` (O_PATH) and `status` are None."""

    directory: int  # the descriptor of the directory that has it
    where: str  # the path of that directory, as it was walked
    name: str
    last: bool
    fd: int | None
    status: os.stat_result | None

    @property
    def path(self) -> str:
        return os.path.join(self.where, self.name)


def steps(path: str, stack: contextlib.ExitStack, *, make: int | None = None) -> Iterator[Step]:
    """The components of an absolute path, links included. A link is followed after it was yielded. OSError.

    `stack` closes the descriptors. `make`: directories that do not exist are made with this mode, the last one with
    0700.
    """

    def enter(name: str, directory: int | None) -> int:
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        stack.callback(os.close, fd)
        return fd

    root = directory = enter("/", None)
    above = [(root, "/")]  # of the directory, for ".."
    # An absolute path stays as it is: open(2) follows a link before the ".." behind it, and abspath() does not.
    names = deque(_names(path if os.path.isabs(path) else os.path.abspath(path)))
    links = 0
    where = "/"
    try:
        while names:
            name = names.popleft()
            if name == "..":
                directory, where = above.pop() if len(above) > 1 else above[0]
                continue
            try:
                fd = enter(name, directory)
            except FileNotFoundError:
                # Its directory is checked before anything is made in it.
                yield Step(directory, where, name, not names, None, None)
                if make is None:
                    if names:
                        raise
                    return
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, make if names else 0o700, dir_fd=directory)
                fd = enter(name, directory)
            status = os.fstat(fd)
            step = Step(directory, where, name, not names, fd, status)
            yield step
            if stat.S_ISLNK(status.st_mode):
                links += 1
                if links > LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                target = os.readlink("", dir_fd=fd)
                if target.startswith("/"):
                    directory, where, above = root, "/", [(root, "/")]
                names.extendleft(reversed(_names(target)))
            else:
                above.append((directory, where))
                directory, where = fd, step.path
    except OSError as error:
        raise (error if isinstance(error, Untrusted) else OSError(error.errno, error.strerror, path)) from None


def _names(path: str) -> list[str]:
    return [name for name in path.split("/") if name not in ("", ".")]


def open_directory(path: str, owner: int, workers: tuple[int, int] | None = None, *, make: int | None = None) -> int:
    """An O_PATH descriptor of the directory, if only root and the user `owner` can change where the path leads.
    Untrusted, OSError.

    `workers` are the (uid, gid) of the workers, who may be no members of their group. `make`: see `steps`.
    """
    with contextlib.ExitStack() as stack:
        trust = Trust(owner, workers)
        last: Step | None = None
        for step in steps(os.path.abspath(path), stack, make=make):  # the last step must be the directory itself
            trust.check(step)
            last = step
        if last is None or last.fd is None or last.status is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if not stat.S_ISDIR(last.status.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        return os.dup(last.fd)


class Trust:
    """Which users may own and change the directories of a path: root, and the user `owner`.

    The rule is that of sshd (StrictModes) in the form that Debian gives it: a group may write if it has no other
    members, because a user's private group makes mode 775 usual there. In a sticky directory like /tmp a user can only
    exchange what that user owns (inode(7)). POSIX ACLs (acl(5)) count like groups.
    """

    def __init__(self, owner: int, workers: tuple[int, int] | None = None) -> None:
        self._trusted = frozenset({0, owner, *_hidden()})
        self._workers = workers
        self._alone = owner != 0 and _owner_of_container() == owner

    def check(self, step: Step) -> None:
        """Untrusted where another user can exchange this component."""
        status = os.fstat(step.directory)
        if status.st_uid not in self._trusted:
            text = f"{step.where} {whose(status.st_uid)}: that user could exchange {step.path}"
            raise Untrusted(step.where, f"{text}. Choose another directory")
        if step.status is None or step.status.st_uid in self._trusted:
            theirs = ""
        else:
            theirs = f"{step.path} {whose(step.status.st_uid)}"
        if status.st_mode & stat.S_ISVTX:
            if theirs:
                raise Untrusted(step.path, theirs)
        elif not self._alone and (who := self._writers(step.directory, status)):
            mode = f"{step.where} has the mode {status.st_mode & 0o7777:04o}"
            text = f"{mode}, and {who} can write to it, so another user could exchange {step.path}"
            remedy = f"Take that away (chmod go-w {step.where}), set the sticky bit (chmod +t)"
            raise Untrusted(step.where, f"{text}. {remedy}, or choose another directory")
        if theirs and step.status is not None and stat.S_ISLNK(step.status.st_mode):
            raise Untrusted(step.path, f"the symbolic link {theirs}: that user could lead it elsewhere")

    def _writers(self, directory: int, status: os.stat_result) -> str:
        """Which others may write to the directory, in words; "" for none."""
        if status.st_mode & stat.S_IWOTH:
            return "every user"
        if not status.st_mode & stat.S_IWGRP:
            return ""
        # With an ACL these bits are its mask, and the group's own bits are not visible.
        groups = [status.st_gid]
        for tag, permissions, number in _entries_of_acl(directory):
            if permissions & _WRITE and tag == _ACL_USER and number not in self._trusted:
                return name_of(number)
            if permissions & _WRITE and tag == _ACL_GROUP:
                groups.append(number)
        return next((f"the group {_group(gid)}" for gid in groups if self._has_others(gid)), "")

    def _has_others(self, gid: int) -> bool:
        """Whether a user who is not trusted is a member of the group."""
        if gid == 0:
            return False  # root decides who is in its group, as for sudo
        if self._workers is not None and self._workers[1] == gid and self._workers[0] not in self._trusted:
            return True
        members = {entry.pw_uid for entry in pwd.getpwall() if entry.pw_gid == gid}
        with contextlib.suppress(KeyError):
            for name in grp.getgrgid(gid).gr_mem:
                with contextlib.suppress(KeyError):
                    members.add(pwd.getpwnam(name).pw_uid)
        return not members <= self._trusted


def _entries_of_acl(directory: int) -> Iterator[tuple[int, int, int]]:
    """(tag, permissions, uid or gid) of each entry."""
    try:
        data = os.getxattr(f"/proc/self/fd/{directory}", ACL)
    except OSError:
        return  # the file system has no ACLs, or the directory none
    yield from struct.iter_unpack("<HHI", data[4 : 4 + (len(data) - 4) // 8 * 8])


def _group(gid: int) -> str:
    try:
        return f"{grp.getgrgid(gid).gr_name} (gid {gid})"
    except KeyError:
        return f"gid {gid}"


def _hidden() -> tuple[int, ...]:
    """How the users of the machine show here that this user namespace does not map, its root among them."""
    try:
        ranges = [list(map(int, line.split())) for line in Path("/proc/self/uid_map").read_text().splitlines()]
    except (OSError, ValueError):
        return ()
    return () if any(first <= NOT_MAPPED < first + count for first, _, count in ranges) else (NOT_MAPPED,)


def _owner_of_container() -> int | None:
    """The user of process 1. Where that is not root, as in a container, there is no other user in it."""
    try:
        lines = Path("/proc/1/status").read_text(errors="replace").splitlines()
    except OSError:
        return None
    uids = next((line.split()[1:] for line in lines if line.startswith("Uid:")), [])
    return int(uids[0]) if len(set(uids)) == 1 else None
