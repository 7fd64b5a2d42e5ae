"""The run directory: whoever owns it is the master.

    RUN_DIR/            mode 0700, or 0711 where workers run as another user
      master.lock       a POSIX record lock, held by the master for its whole life
      master.pid        the master's pid, for people
      roster.json       who belongs to this run directory, for the master that comes after this one
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
import stat
from collections.abc import Callable
from pathlib import Path

from reuseport.options.machine import whose

# A file in work/ that belongs to a process.
_SOMEBODYS = re.compile(r"(?P<zygote>\d+)\.door|(stacks|snapshot|lines)-(?P<who>\d+\.j?\d+)\.(txt|json)(\.new)?")


def not_this(path: str, owner: str, wanted: object) -> str:
    """What is said to an operator who names one server, and is led to the directory of another."""
    return f'this run directory belongs to "{owner}", not "{wanted}": {path}'


class RunDirError(Exception):
    """The run directory cannot be used; the message says why, and names the option."""


class RunDir:
    """The paths in a run directory. Creating the object touches nothing."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.work = os.path.join(path, "work")
        self.lock = os.path.join(path, "master.lock")
        self.pid = os.path.join(path, "master.pid")
        self.control = os.path.join(path, "control.sock")
        self.roster = os.path.join(path, "roster.json")
        self.hello = os.path.join(path, "hello.sock")
        self._directory = -1
        self.scoreboard = os.path.join(path, "scoreboard")
        self.latencies = os.path.join(path, "latencies")
        self.begun = os.path.join(path, "begun")
        self.inflight = os.path.join(path, "inflight")
        self.pins = os.path.join(path, "pins")
        self.marks = os.path.join(path, "marks")

    @property
    def shared(self) -> tuple[str, ...]:
        """What workers map."""
        return self.scoreboard, self.latencies, self.begun, self.inflight

    def boot_log(self, generation: int) -> str:
        return os.path.join(self.path, f"boot-{generation}.log")

    def companion_log(self, who: str) -> str:
        """What the companion "7.mail" prints."""
        return os.path.join(self.path, f"companion-{who}.log")

    def companion_lock(self, name: str) -> str:
        """Held while an exclusive companion of this name runs, whosever it is."""
        return os.path.join(self.path, f"companion-{name}.lock")

    def notify(self, companion: str) -> str:
        """Where the companion "7.c0" says that it is ready."""
        return os.path.join(self.path, f"notify-{companion}")

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

    def server(self) -> str:
        """What the master is called that lives here, or that has left its workers here; "" where that is not known.

        It is written in the roster, as long as there is anything to adopt.
        """
        try:
            data = json.loads(Path(self.roster).read_bytes())
        except (OSError, ValueError):
            return ""
        return str(data.get("name", "")) if isinstance(data, dict) else ""

    def clear_up(self, lives: Callable[[str], bool]) -> None:
        """Remove the files of processes that live no more, of whose end no master has heard. `lives` is asked by the
        names that they are shown under: "7.2", "7.0" for a zygote."""
        for name in os.listdir(self.work):
            found = _SOMEBODYS.fullmatch(name)
            if found and not lives(found["who"] or f"{found['zygote']}.0"):
                # A directory of that name is the workers' user's own, who must not keep a master from starting.
                with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                    os.unlink(os.path.join(self.work, name))

    def own(self) -> int:
        """Create what is missing, take the lock and return its descriptor, which must stay open.

        RunDirError where another master owns it, to whom nothing is done then, or where it belongs to somebody else.
        """
        for path in (self.path, self.work):
            self._make(path)
        try:
            fd = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise RunDirError(f"--run-dir: cannot open {self.lock}: {error.strerror}") from None
        try:
            self.take_again(fd)
            self.sign()
        except RunDirError:
            os.close(fd)
            raise
        self.keep()
        return fd

    def share(self, uid: int | None, gid: int | None) -> None:
        """Let in the workers' user, where it is not the master's own, and nobody else."""
        other = uid is not None and uid != os.geteuid()
        for path, mode in ((self.path, 0o711 if other else 0o700), (self.work, 0o700)):
            os.chmod(path, mode)
        if uid is not None and other:
            os.chown(self.work, uid, -1 if gid is None else gid)

    def keep(self) -> None:
        """Cleaners of /tmp leave a directory alone that somebody holds a BSD lock on (tmpfiles.d(5), "Age")."""
        self._directory = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._directory, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def let_go(self, fd: int) -> None:
        """Whoever takes the lock next is the master."""
        fcntl.lockf(fd, fcntl.LOCK_UN)

    def take_again(self, fd: int) -> None:
        """Take the lock. RunDirError where another master has it."""
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise RunDirError(f"--run-dir: cannot lock {self.lock}: {error.strerror}") from None
            raise RunDirError(
                f"--run-dir: {self.path} belongs to a running master (pid {self.owner() or 'unknown'}): `reuseport "
                "release` loads a new version into it, `--takeover` replaces it, and another server takes a name (-n) "
                "or a run directory of its own"
            ) from None

    def sign(self) -> None:
        """Write down who has the lock. RunDirError where that cannot be written."""
        try:
            Path(self.pid).write_text(f"{os.getpid()}\n")
        except OSError as error:
            raise RunDirError(f"--run-dir: cannot write {self.pid}: {error.strerror}") from None

    def owner(self) -> int | None:
        """The pid that the last owner wrote down; it may have died since."""
        try:
            return int(Path(self.pid).read_text())
        except (OSError, ValueError):
            return None

    def _make(self, path: str) -> None:
        try:
            parent = os.path.dirname(path)
            if not os.path.isdir(parent):
                os.makedirs(parent, mode=0o755)
            elif os.stat(parent).st_uid not in (0, os.geteuid()):
                # Its owner could put another directory in the place of ours.
                raise RunDirError(f"--run-dir: {parent} {whose(os.stat(parent).st_uid)}")
            os.mkdir(path, 0o700)
        except FileExistsError:
            self._check(path)
        except OSError as error:
            raise RunDirError(f"--run-dir: cannot create {path}: {error.strerror}") from None

    def _check(self, path: str) -> None:
        info = os.lstat(path)
        if not stat.S_ISDIR(info.st_mode):
            raise RunDirError(f"--run-dir: {path} is not a directory")
        if path == self.path and info.st_uid != os.geteuid():
            raise RunDirError(f"--run-dir: {path} {whose(info.st_uid)}")
