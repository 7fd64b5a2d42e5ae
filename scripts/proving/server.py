"""The handle on a server under test: starts `reuseport serve`, asks it for releases, kills its workers, ends it.

It sees what an operator sees: the command line, signals, the control socket. Whatever happens to the script, the
server's processes end with it, each by its own pid.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

START_WITHIN = 30.0
STOP_WITHIN = 10.0
POLL = 0.02

Status = dict[str, Any]


class ServerTrouble(Exception):
    """The server did not do what the script stands on. One line, and the end of its log."""


@dataclass(frozen=True)
class Outcome:
    """How a release ended, as its asker saw it."""

    exit: int
    seconds: float
    output: str
    error: str

    @property
    def served(self) -> bool:
        return self.exit == 0

    @property
    def last_line(self) -> str:
        """The end of a traceback: what a person reads first."""
        lines = [line for line in self.error.splitlines() if line.strip()]
        return lines[-1].strip() if lines else "(nothing was said)"


class Server:
    """A server of the application in `chdir`, on a port that the kernel chose."""

    def __init__(
        self,
        chdir: Path,
        *,
        workers: int = 3,
        options: Sequence[str] = (),
        application: str = "monolith:application",
        python: str = sys.executable,
        env: dict[str, str] | None = None,
        bind: str = "127.0.0.1:0",
    ) -> None:
        self._files = tempfile.TemporaryDirectory(prefix="proving-")
        root = Path(self._files.name)
        self.run_dir = root / "run"
        self.run_dir.mkdir(mode=0o700)
        self.log = root / "server.log"
        self.python = python
        self.command = [
            python, "-m", "reuseport", "serve", application,
            "-b", bind, "-w", str(workers),
            "--chdir", str(chdir), "--run-dir", str(self.run_dir), *options,
        ]  # fmt: skip
        self.workers = workers
        self.env = {**os.environ, **(env or {})}
        self.process: subprocess.Popen[bytes] | None = None
        self._sessions: set[int] = set()  # of this master and of those before it, whose workers may live on
        self.superseded: list[subprocess.Popen[bytes]] = []  # masters that another one has taken over from
        self.address = ("", 0)

    def __enter__(self) -> Server:
        try:
            self.start()
        except BaseException:
            self.close(at_once=True)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close(at_once=error is not None)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    # --- start and end

    def start(self) -> None:
        """Start it and wait until all its workers serve."""
        self.process = self._launch(self.command)
        status = self.wait(lambda status: len(self.ready(status)) >= self.workers, START_WITHIN, "serve")
        host, _, port = status["master"]["addresses"][0].rpartition(":")
        self.address = (host.removeprefix("tcp:"), int(port))

    def take_over(self, chdir: Path) -> None:
        """Start another master, with the application in `chdir`, that takes over; wait until it is the master."""
        assert self.process is not None
        place = self.command.index("--chdir") + 1
        before, command = self.process, [*self.command[:place], str(chdir), *self.command[place + 1 :], "--takeover"]
        self.process = self._launch(command)
        self.wait(
            lambda status: status["master"]["pid"] == self.pid and len(self.ready(status)) >= self.workers,
            START_WITHIN,
            "take over",
        )
        self.superseded.append(before)

    def _launch(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            # A session of its own: the terminal's Ctrl-C reaches the script, which then ends the server in order.
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.env,
                start_new_session=True,
                preexec_fn=end_with_the_script,
            )
        self._sessions.add(process.pid)
        return process

    def close(self, *, at_once: bool = False) -> None:
        """End it, gracefully unless it must be at once, and every process of its session in any case."""
        if self.process is not None:
            with contextlib.suppress(OSError, ValueError):  # a master that does not answer any more
                companions = (c for g in self.status()["generations"] for c in g["companions"])
                self._sessions |= {companion["pid"] for companion in companions if companion["pid"]}
            for number in (signal.SIGQUIT,) if at_once else (signal.SIGTERM, signal.SIGQUIT):
                if self.process.poll() is None:
                    self.process.send_signal(number)
                    try:
                        self.process.wait(STOP_WITHIN)
                    except subprocess.TimeoutExpired:
                        continue
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            for leader in self._sessions:
                for pid in session(leader):
                    os.kill(pid, signal.SIGKILL)
            for earlier in self.superseded:
                earlier.wait()
            self.process = None
        self._files.cleanup()

    def log_end(self, lines: int = 15) -> str:
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except OSError as error:
            return f"(no log: {error})"

    # --- what it says

    def status(self) -> Status:
        """The status, over the control socket: cheaper than a process each time. OSError if there is no master."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(5)
            sock.connect(str(self.run_dir / "control.sock"))
            sock.sendall(b'{"v": 1, "do": "status"}\n')
            with sock.makefile("rb") as lines:
                for line in lines:
                    event = json.loads(line)
                    if event.get("superseded"):
                        return self.status()  # it was another master's to answer
                    if event.get("event") == "done":
                        if "status" not in event:
                            raise ConnectionError(f"no status: {event.get('error') or event.get('text') or event}")
                        status: Status = event["status"]
                        return status
        raise ConnectionError("the control socket closed before the status")

    def wait(self, until: Any, within: float, what: str) -> Status:
        """Look at the status until it is as wanted. ServerTrouble if that does not come, or the server ends."""
        deadline, last = time.monotonic() + within, "no status yet"
        while time.monotonic() < deadline:
            if self.process is not None and self.process.poll() is not None:
                raise ServerTrouble(f"the server ended with {self.process.returncode}:\n{self.log_end()}")
            try:
                status = self.status()
            except (OSError, ValueError) as error:
                last = str(error)
            else:
                if until(status):
                    return status
                last = brief(status)
            time.sleep(POLL)
        raise ServerTrouble(f"the server did not {what} within {within:g} s ({last}):\n{self.log_end()}")

    def ready(self, status: Status) -> list[dict[str, Any]]:
        """The workers of the serving generation that serve."""
        return [
            worker
            for generation in status["generations"]
            if generation["number"] == status["serving"]
            for worker in generation["workers"]
            if worker["state"] == "serving"
        ]

    # --- what it is told

    def hup(self) -> None:
        os.kill(self.pid, signal.SIGHUP)

    def release(self, *more: str, do: str = "release", within: float = 120.0) -> Outcome:
        """`reuseport release` (or `rollback`), and what it told its asker."""
        started = time.monotonic()
        asked = self.ask_release(*more, do=do)
        try:
            output, error = asked.communicate(timeout=within)
        except subprocess.TimeoutExpired:
            asked.kill()
            output, error = asked.communicate()
            error += f"\n(no outcome within {within:g} s)"
        return Outcome(asked.returncode, time.monotonic() - started, output, error)

    def ask_release(self, *more: str, do: str = "release") -> subprocess.Popen[str]:
        """The same, without waiting for it."""
        command = [self.python, "-m", "reuseport", do, "--json", "--run-dir", str(self.run_dir), *more]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.env)

    def kill_master(self) -> None:
        """SIGKILL the master alone: its workers must serve on. `start` then starts the next one."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def hold_worker(self, pid: int) -> frozenset[int]:
        """Stop a worker where it is, and read from the kernel the clients' ports of the connections it holds.

        Stopped first, so that what is read stays true until the kill: a connection that is not among them waits in a
        queue, or in another worker, and must be answered.
        """
        os.kill(pid, signal.SIGSTOP)
        deadline = time.monotonic() + 2
        while (state := process_state(pid)) not in ("T", "t"):
            if state in ("Z", "X", "") or time.monotonic() > deadline:
                raise ProcessLookupError(f"worker {pid} could not be stopped: its state is {state!r}")
        return held_ports(pid, self.address[1])

    @staticmethod
    def kill(pid: int) -> None:
        os.kill(pid, signal.SIGKILL)


def end_with_the_script() -> None:
    """In the server's process, before it begins: a script that is itself killed must leave no server behind."""
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def brief(status: Status) -> str:
    """The status in a line."""
    generations = (
        f"{g['number']} {g['state']} ({', '.join(w['state'] for w in g['workers']) or 'no workers'})"
        for g in status["generations"]
    )
    return f"serving {status['serving']}; generations {'; '.join(generations) or 'none'}"


def process_state(pid: int) -> str:
    """The letter of a process's state; empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""


def session(leader: int) -> Iterator[int]:
    """The processes of a session that are still there."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if fields[3] == str(leader) and fields[0] != "Z":
                yield int(entry.name)


def held_ports(pid: int, port: int) -> frozenset[int]:
    """The clients' ports of the TCP connections to `port` that a process has open."""
    inodes = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            name = str(entry.readlink())
        except FileNotFoundError:
            continue
        if name.startswith("socket:["):
            inodes.add(name[8:-1])
    ports = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[9] in inodes and int(fields[1].rpartition(":")[2], 16) == port:
            ports.add(int(fields[2].rpartition(":")[2], 16))
    ports.discard(0)  # a listener's
    return frozenset(ports)


def cpu_seconds(pid: int) -> float:
    """The CPU time that all threads of a process have used, to the nanosecond. 0 if it is gone."""
    total = 0
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
    except (FileNotFoundError, ProcessLookupError):
        return total / 1e9
    return total / 1e9


def cpu_pressure() -> float:
    """Seconds, so far, in which something on this machine waited for a CPU. 0 where the kernel does not tell."""
    try:
        return int(Path("/proc/pressure/cpu").read_text().split("\n")[0].rpartition("=")[2]) / 1e6
    except OSError:
        return 0.0


def proportional_memory(pid: int) -> int:
    """The PSS of a process in bytes: pages shared by n processes count as an n-th. 0 if it is gone."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0
