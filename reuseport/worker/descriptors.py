"""The open descriptors that two processes cannot share after a fork.

A forked process shares the open file description, open(2): what one process reads, or is woken by, the others miss.

Shared without harm, so no reason against a fork:
- regular files, also deleted ones and those of memfd_create(2). A log file is appended to. Of a file that is read, only
  the position is shared. The one exception is an SQLite database that is open for writing
  (https://www.sqlite.org/howtocorrupt.html, "Carrying an open database connection across a fork()").
- directories, terminals, and the devices of the kernel's memory driver: /dev/null, /dev/zero, /dev/urandom.
- a listening socket: each worker accepts from it, as prefork servers do.
- a socket without a peer, such as that of a client that uses sendto(2) for its metrics.
- a Unix datagram socket without a name of its own, such as that of `logging.handlers.SysLogHandler`. Its peer cannot
  answer, and each datagram stays whole.
- a pipe whose other end is closed and that holds no data. os.popen leaves one behind until the next subprocess.
- a named pipe that is open for writing only. Writes of up to PIPE_BUF bytes stay whole, pipe(7).

Not to be shared:
- what the kernel calls an anonymous inode: eventpoll, eventfd, timerfd, signalfd, inotify, fanotify, io_uring, pidfd,
  perf_event and any other one.
- pipes, pairs of sockets (socketpair(2)), netlink sockets with an address, and sockets that are connected, UDP
  included: an answer reaches only one of the processes.
- pseudo-terminals, and devices other than those above, such as a GPU.
"""

from __future__ import annotations

import _socket
import fcntl
import os
import stat
from posix import close
from select import POLLERR, POLLHUP, POLLIN, poll

MEMORY, TERMINAL, CONSOLE, PSEUDO_TERMINALS = 1, 4, 5, range(136, 144)  # major numbers: devices.txt of the kernel
MULTIPLEXER = (5, 2)  # /dev/ptmx, whose descriptors are the masters of pseudo-terminals
SQLITE = b"SQLite format 3\0"  # https://www.sqlite.org/fileformat.html, 1.3.1


def held() -> dict[int, str]:
    """The open descriptors, each with where /proc/self/fd says that it leads: proc_pid_fd(5)."""
    return held_by("self")


def held_by(pid: int | str) -> dict[int, str]:
    """As `held`, of another process. Empty where that has gone or belongs to another user."""
    found = {}
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return found
    for name in names:
        try:
            found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue  # the descriptor of the listing itself has gone by now
    return found


def hazard(fd: int, link: str) -> str:
    """The kind of a descriptor that two processes cannot share, in a few words; "" if they can, or it is closed."""
    if link.startswith("anon_inode:"):
        return link.removeprefix("anon_inode:").strip("[]")
    try:
        status = os.fstat(fd)
        if stat.S_ISSOCK(status.st_mode):
            return _of_socket(fd)
        if stat.S_ISFIFO(status.st_mode):
            return _of_pipe(fd, link)
        if stat.S_ISCHR(status.st_mode):
            return _of_device(os.major(status.st_rdev), os.minor(status.st_rdev), link)
        if stat.S_ISREG(status.st_mode):
            return _of_file(fd, link)
    except OSError:
        return ""
    return ""


def _of_pipe(fd: int, link: str) -> str:
    if link.startswith("pipe:"):
        return "" if _is_dead(fd) else "pipe"
    writes_only = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY
    return "" if writes_only else f"named pipe {link}"


def _is_dead(fd: int) -> bool:
    ready = poll()
    ready.register(fd, POLLIN)
    return any(events & (POLLHUP | POLLERR) and not events & POLLIN for _, events in ready.poll(0))


def _of_device(major: int, minor: int, link: str) -> str:
    if (major, minor) == MULTIPLEXER:
        return "pseudo-terminal"
    return "" if major in (MEMORY, TERMINAL, CONSOLE, *PSEUDO_TERMINALS) else f"device {link}"


def _of_file(fd: int, link: str) -> str:
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR or os.pread(fd, len(SQLITE), 0) != SQLITE:
        return ""
    return f"SQLite database {link}"


def _of_socket(fd: int) -> str:
    # Neither the family's own class nor gevent's: that one makes the descriptor non-blocking, and so does a default
    # timeout. The flag belongs to the open file description, which the application uses.
    blocking = os.get_blocking(fd)
    copy = _socket.socket(-1, -1, -1, os.dup(fd))
    try:
        if copy.getsockopt(_socket.SOL_SOCKET, _socket.SO_ACCEPTCONN):
            return ""
        if copy.family == _socket.AF_NETLINK:
            return "netlink socket" if copy.getsockname()[0] else ""
        try:
            peer = copy.getpeername()
        except OSError:
            return ""  # it has no peer
        if copy.family == _socket.AF_UNIX:
            if not peer:
                return "socketpair"
            if copy.type == _socket.SOCK_DGRAM and not copy.getsockname():
                return ""
        return f"connection to {peer[0]}:{peer[1]}" if isinstance(peer, tuple) else f"connection to {peer!r}"
    finally:
        close(copy.detach())
        os.set_blocking(fd, blocking)
