"""The run directory: whoever owns it is the master.

    RUN_DIR/            mode 0700, or 0711 where workers run as another user
      master.lock       a POSIX record lock, held by the master for its whole life
      master.pid        the master's pid, for people
      roster.json       who belongs to this run directory, for the master that comes after this one
      roster.stale.json the last one, when a newer one could not be written
      control.sock      the command line talks to the master here
      boot-7.log        what generation 7 printed until it was ready
      companion-7.mail.log  what a companion prints, until it has been copied into the log
      companion-cron.lock   a BSD lock, held by whichever process of this exclusive companion runs
      notify-7.c0           the socket at which generation 7's first companion says that it is ready (sd_notify(3))
      hello.sock        every process of every generation says hello to the master here
      scoreboard        one row of counters per worker; 0.5 MB
      latencies         and one histogram; 4 MB
      begun             and the jobs that it began last; 2.6 MB
      inflight          and the requests that it has now; which of them are in quarantine; 0.2 MB, and 40 kB per worker
      pins              locked bytes say which tenant has jobs where (--tenant); empty
      marks             how far each tenant has moved; 8 MB
      work/             belongs to the workers' user, who alone writes to it: a root master follows no link in it
        7.door          generation 7's zygote forks a process for each job that is asked for here
        stacks-7.2.txt  what a blocked worker was at
        snapshot-7.2.json, lines-7.2.txt  what a worker was at when `reuseport stacks` asked

Workers map the files from `scoreboard` to `marks`. These have mode 0600 and belong to the master's user. While a zygote
of an earlier version lives they belong to the workers' user (`shared.py`).

POSIX record locks die with the process and only with it; flock and OFD locks would live on in any forked child that
holds the description (fcntl(2)), which is what an exclusive companion's is chosen for. The price is that the lock is
gone as soon as the process closes any descriptor of the file, so the lock file is opened once and never again. An
exec, which keeps the process, keeps the lock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import signal
import stat
import time
from collections.abc import Callable
from posix import close  # gevent's os.close leaves it to its loop

from reuseport.ipc import channel as channels
from reuseport.ipc import files, walk
from reuseport.ipc.inhabitants import inhabitants
from reuseport.ipc.inherited import RUN_DIR
from reuseport.ipc.walk import open_directory
from reuseport.options.machine import whose

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_FULL = 0.05  # seconds between two attempts to connect to a master that accepts no connection

_BY_DESCRIPTOR = re.compile(r"/proc/self/fd/\d+/")
# A file in work/ that belongs to a process.
_SOMEBODYS = re.compile(r"(?P<zygote>\d+)\.door|(stacks|snapshot|lines)-(?P<who>\d+\.j?\d+)\.(txt|json)(\.new)?")


def not_this(path: str, owner: str, wanted: object) -> str:
    """What is said to an operator who names one server, and is led to the directory of another."""
    return f'this run directory belongs to "{owner}", not "{wanted}": {path}'


class RunDirError(Exception):
    """The run directory cannot be used; the message says why, and names the option."""


class RunDir:
    """The paths in a run directory. Creating the object touches nothing.

    A master holds the directory by a descriptor (`own`, `hold`) and passes one to each zygote (`lend`, `inherit`).
    Workers and jobs have their zygote's. All paths then lead through that descriptor (proc_pid_fd(5)). So a user who
    exchanges the directory, or a directory above it, leads no process elsewhere. `owner_uid` is the master's user.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.owner_uid = os.geteuid()
        self._fd = -1
        self._id = (0, 0)  # of the directory that is held: device and inode
        # A master of another version may have these elsewhere.
        self._hello, self._scoreboard = "hello.sock", "scoreboard"

    # --- paths --------------------------------------------------------------------------------------------------------

    @property
    def base(self) -> str:
        """The directory, by the descriptor where one is held."""
        return f"/proc/self/fd/{self._fd}" if self.is_held() else self.path

    def _at(self, name: str) -> str:
        return os.path.join(self.base, name)

    def named(self, path: str) -> str:
        """One of these paths for a message, or for a process without the descriptor."""
        by_descriptor = _BY_DESCRIPTOR.match(path)
        return os.path.join(self.path, path[by_descriptor.end() :]) if by_descriptor else path

    def locate(self, hello: str, scoreboard: str) -> None:
        """These two lie where a master of another version says."""
        # In the directory itself only the name counts; any other path stays as it is.
        self._hello, self._scoreboard = (
            os.path.basename(path) if os.path.dirname(path) == self.path else path for path in (hello, scoreboard)
        )

    def here(self, path: str) -> str:
        """A path that a master of another version has said: in this directory, if it lies there."""
        return self._at(os.path.basename(path)) if os.path.dirname(path) == self.path else path

    @property
    def work(self) -> str:
        return self._at("work")

    @property
    def lock(self) -> str:
        return self._at("master.lock")

    @property
    def pid(self) -> str:
        return self._at("master.pid")

    @property
    def control(self) -> str:
        return self._at("control.sock")

    @property
    def roster(self) -> str:
        return self._at("roster.json")

    @property
    def stale_roster(self) -> str:
        return self._at("roster.stale.json")

    @property
    def hello(self) -> str:
        return self._at(self._hello)

    @property
    def scoreboard(self) -> str:
        return self._at(self._scoreboard)

    @property
    def latencies(self) -> str:
        return self._at("latencies")

    @property
    def begun(self) -> str:
        return self._at("begun")

    @property
    def inflight(self) -> str:
        return self._at("inflight")

    @property
    def pins(self) -> str:
        return self._at("pins")

    @property
    def marks(self) -> str:
        return self._at("marks")

    @property
    def shared(self) -> tuple[str, ...]:
        """What workers map."""
        return self.scoreboard, self.latencies, self.begun, self.inflight

    def boot_log(self, generation: int) -> str:
        return self._at(f"boot-{generation}.log")

    def companion_log(self, who: str) -> str:
        """What the companion "7.mail" prints."""
        return self._at(f"companion-{who}.log")

    def companion_lock(self, name: str) -> str:
        """Held while an exclusive companion of this name runs, whosever it is."""
        return self._at(f"companion-{name}.lock")

    def notify(self, companion: str) -> str:
        """Where the companion "7.c0" says that it is ready."""
        return self._at(f"notify-{companion}")

    def door(self, generation: int) -> str:
        """Where a generation's zygote is asked for the processes of jobs."""
        return os.path.join(self.work, f"{generation}.door")

    def stacks(self, worker: str) -> str:
        """Where a worker's Python stacks are dumped to when its loop is blocked."""
        return os.path.join(self.work, f"stacks-{worker}.txt")

    def snapshot(self, process: str) -> str:
        """Where a worker, or a job's process, writes what it is at when it is asked for that."""
        return os.path.join(self.work, f"snapshot-{process}.json")

    def lines(self, process: str) -> str:
        """Where its handler in C does, if its interpreter cannot."""
        return os.path.join(self.work, f"lines-{process}.txt")

    # --- who has it ---------------------------------------------------------------------------------------------------

    def server(self) -> str:
        """What the master is called that lives here, or that has left its workers here; "" where that is not known.

        It is written in the roster, as long as there is anything to adopt.
        """
        for path in (self.roster, self.stale_roster):
            try:
                data = json.loads(files.read(path))
            except (OSError, ValueError, RecursionError):
                continue
            return str(data.get("name", "")) if isinstance(data, dict) else ""
        return ""

    def clear_up(self, lives: Callable[[str], bool]) -> None:
        """Remove the files of processes that live no more, of whose end no master has heard. `lives` is asked by the
        names that they are shown under: "7.2", "7.0" for a zygote."""
        for name in os.listdir(self.work):
            found = _SOMEBODYS.fullmatch(name)
            if found and not lives(found["who"] or f"{found['zygote']}.0"):
                # A directory of that name is the workers' user's own, who must not keep a master from starting.
                with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                    os.unlink(os.path.join(self.work, name))

    def own(self, workers: tuple[int, int] | None = None) -> int:
        """Create what is missing, take the lock and return its descriptor, which must stay open.

        `workers` are the (uid, gid) of another user's workers. RunDirError where another master has the lock, to which
        nothing is done then, or where another user has the directory, or could exchange it.
        """
        self.hold(workers, make=True)
        self._make_work()
        try:
            fd = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise RunDirError(f"--run-dir: cannot open {self.named(self.lock)}: {error.strerror}") from None
        try:
            self.take_again(fd)
            self.sign()
        except RunDirError:
            os.close(fd)
            raise
        return fd

    def hold(self, workers: tuple[int, int] | None = None, *, make: bool = False) -> None:
        """Hold the directory by a descriptor. RunDirError, as `own`; FileNotFoundError where it is not there."""
        try:
            found = open_directory(self.path, self.owner_uid, workers, make=0o755 if make else None)
        except walk.Untrusted as error:
            raise RunDirError(f"--run-dir: {error.strerror}") from None
        except NotADirectoryError as error:
            raise RunDirError(f"--run-dir: {error.filename} is not a directory") from None
        except FileNotFoundError:
            if not make:
                raise
            raise RunDirError(f"--run-dir: cannot create {self.path}: {os.strerror(errno.ENOENT)}") from None
        except OSError as error:
            raise RunDirError(f"--run-dir: cannot create {self.path}: {error.strerror}") from None
        try:
            status = os.fstat(found)
            if status.st_uid != self.owner_uid:
                raise RunDirError(f"--run-dir: {self.path} {whose(status.st_uid)}")
            try:
                low = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=found)
                # Not RUN_DIR, by which zygotes and what they fork are known.
                fd = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, RUN_DIR + 1)
                os.close(low)
            except OSError as error:
                raise RunDirError(f"--run-dir: cannot open {self.path}: {error.strerror}") from None
        finally:
            os.close(found)
        if status.st_mode & OTHERS_WRITE:
            os.fchmod(fd, status.st_mode & 0o7777 & ~OTHERS_WRITE)  # before anything in it is read
        self._keep(fd)

    def hold_again(self, fd: int) -> None:
        """After an exec: `fd` is the descriptor from before it, -1 for none. RunDirError, as `hold`."""
        try:
            stands_in = not stat.S_ISDIR(os.fstat(fd).st_mode)
        except OSError:
            stands_in = True  # an earlier version has left none
        if stands_in:
            try:
                self.hold()
            except FileNotFoundError:
                raise RunDirError(f"--run-dir: {self.path} has gone") from None
        else:
            self._keep(fd)

    def inherit(self, fd: int | None, owner: int) -> None:
        """In a process of the master's: `fd` is the descriptor that it was given. A master of an earlier version gives
        none, and then the directory is held in which that master has just started this process."""
        self.owner_uid = owner
        try:
            if fd is None or not stat.S_ISDIR(os.fstat(fd).st_mode):
                fd = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            os.set_inheritable(fd, False)
        except OSError:
            return  # a wrapper around the interpreter has closed it; the path is checked when a master is looked for
        self._remember(fd)

    def lend(self) -> int:
        """A descriptor for a zygote to `inherit`. Its BSD lock ends with the last process that has it. OSError.

        So the next master can tell whether a process of an earlier one lives (`is_inhabited`).
        """
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._fd)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return fd

    def is_inhabited(self) -> bool:
        """Whether a process lives that an earlier master started (see `lend`). Only the master may ask."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False

    def inhabitants(self) -> dict[int, int]:
        """The processes that have a descriptor of this directory from a master, each with its start."""
        return inhabitants(self._id)

    @property
    def fd(self) -> int:
        """The descriptor that is held; -1 for none."""
        return self._fd

    def is_held(self) -> bool:
        """Whether there is a descriptor, and the directory has not been removed."""
        return self._is_ours(self._fd) and os.fstat(self._fd).st_nlink > 0

    def is_in_place(self) -> bool:
        """Whether the path still leads to the directory that is held."""
        try:
            status = os.stat(self.path)
        except OSError:
            return False
        return self.is_held() and (status.st_dev, status.st_ino) == self._id

    def forget(self) -> None:
        """In a child of the application's: close this copy of the descriptor."""
        if self._is_ours(self._fd):
            close(self._fd)
        self._fd = -1

    def _keep(self, fd: int) -> None:
        """Cleaners of /tmp leave a directory alone that has a BSD lock (tmpfiles.d(5), "Age")."""
        self._remember(fd)
        with contextlib.suppress(BlockingIOError):  # a cleaner, or a process of the workers' user, has locked it
            fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def _remember(self, fd: int) -> None:
        status = os.fstat(fd)
        if self._is_ours(self._fd) and fd != self._fd:
            os.dup2(fd, self._fd, inheritable=False)  # the number stays, since paths that are in use have it
            close(fd)
            fd = self._fd
        self._fd, self._id = fd, (status.st_dev, status.st_ino)

    def _is_ours(self, fd: int) -> bool:
        """Whether it is still the descriptor of the directory: an application may have closed it."""
        try:
            status = os.fstat(fd)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._id

    def reach_master(self, within: float = 0.0) -> channels.Channel:
        """A channel to the master that owns this directory. OSError where there is none. BlockingIOError where the
        backlog of the master's socket has been full for `within` seconds.

        Its listener must be root's or the master's user's, as the command line demands of the socket that it asks. A
        directory that was removed is looked for by its path again, if only root and that user can change where the path
        leads.
        """
        if not self.is_held():
            self._remember(open_directory(self.path, self.owner_uid))
        until = time.monotonic() + within
        while True:
            try:
                channel = channels.connect(self.hello)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise
            signal.sigtimedwait((), _FULL)  # gevent's time.sleep needs a loop
        _, uid = channel.peer()
        if uid not in (0, self.owner_uid):
            channel.close()
            raise PermissionError(errno.EACCES, f"what listens there belongs to user {uid}", self.named(self.hello))
        return channel

    def share(self, uid: int | None, gid: int | None) -> None:
        """Let in the workers' user, where it is not the master's own, and nobody else."""
        other = uid is not None and uid != os.geteuid()
        work = os.open(self.work, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fchmod(self._fd, 0o711 if other else 0o700)
            os.fchmod(work, 0o700)
            if uid is not None and other:
                os.fchown(work, uid, -1 if gid is None else gid)
        finally:
            os.close(work)

    def let_go(self, fd: int) -> None:
        """Whoever takes the lock next is the master."""
        fcntl.lockf(fd, fcntl.LOCK_UN)

    def take_again(self, fd: int) -> None:
        """Take the lock. RunDirError where another master has it."""
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise RunDirError(f"--run-dir: cannot lock {self.named(self.lock)}: {error.strerror}") from None
            raise RunDirError(
                f"--run-dir: {self.path} belongs to a running master (pid {self.owner() or 'unknown'}): `reuseport "
                "release` loads a new version into it, `--takeover` replaces it, and another server takes a name (-n) "
                "or a run directory of its own"
            ) from None

    def sign(self) -> None:
        """Write down who has the lock. RunDirError where that cannot be written."""
        try:
            files.replace(self.pid, f"{os.getpid()}\n", 0o644, sync=False)
        except OSError as error:
            raise RunDirError(f"--run-dir: cannot write {self.named(self.pid)}: {error.strerror}") from None

    def owner(self) -> int | None:
        """The pid that the last owner wrote down; it may have died since."""
        try:
            return int(files.read(self.pid))
        except (OSError, ValueError):
            return None

    def _make_work(self) -> None:
        try:
            os.mkdir(self.work, 0o700)
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(self.work).st_mode):
                raise RunDirError(f"--run-dir: {self.named(self.work)} is not a directory") from None
        except OSError as error:
            raise RunDirError(f"--run-dir: cannot create {self.named(self.work)}: {error.strerror}") from None
