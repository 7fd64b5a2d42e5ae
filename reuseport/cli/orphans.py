"""Ending the processes of a run directory that no master knows (`reuseport stop --orphans`).

A master has left them when it died, and the next one could not adopt them, or there is none. They are found by the
descriptor of the directory that each process of a server has (`RunDir.inhabitants`), and by the rosters. Each is
signalled by a pidfd that is opened before its start time is compared, so no other process is ever meant.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reuseport.cli import client, frame, place
from reuseport.cli.failure import INTERRUPTED, Failure
from reuseport.cli.words import text
from reuseport.ipc.inhabitants import start_time
from reuseport.ipc.rundir import RunDir, RunDirError
from reuseport.master.roster import Roster

AGAIN = 2.0  # seconds between two looks beside a living master
YOUNGEST = 10.0  # seconds: a younger process may be one of which a living master hears just now
KILLED = 10.0  # seconds for a process to end after SIGKILL


@dataclass(frozen=True)
class Orphan:
    pid: int
    pidfd: int
    title: str

    @property
    def is_job(self) -> bool:
        return self.title.startswith("reuseport: job ")

    @property
    def is_zygote(self) -> bool:
        return self.title.startswith("reuseport: zygote ")

    def __str__(self) -> str:
        return f"process {self.pid} ({text(self.title)})"


def end(master: place.Master, *, now: bool, as_json: bool) -> int:
    """End them and return the exit status. Raises Failure."""
    run_dir = _held(master.run_dir)
    with contextlib.ExitStack() as stack:
        alive = client.is_alive(master.run_dir, of_any_user=master.named)
        unseen = False
        if alive:
            found = _beside(master, run_dir)
        else:
            _lock(run_dir, stack)
            found = {**_listed(run_dir), **run_dir.inhabitants()}
            unseen = not found and run_dir.is_inhabited()
        orphans = list(_opened(found, stack))
        if not as_json:
            for one in orphans:
                print(f"ending {one}", flush=True)
        try:
            left = _kill(orphans) if now else _let_finish(orphans)
        except KeyboardInterrupt:
            raise Failure("no longer waiting; those that have work finish it (--now ends them)", INTERRUPTED) from None
    ended = [one for one in orphans if one not in left]
    if as_json:
        named = {"ended": [_as_json(one) for one in ended], "left": [_as_json(one) for one in left]}
        print(json.dumps({"ok": not left, "run_dir": master.run_dir, **named}))
    if unseen:
        raise Failure(
            f"processes of {master.run_dir} live, and this user cannot see which: run the command as their user, or as "
            "root with CAP_SYS_PTRACE"
        )
    if left:
        raise Failure(f"not ended: {', '.join(map(str, left))}")
    if not as_json:
        print(f"ended {len(ended)} process{'es' if len(ended) != 1 else ''}" if orphans else "there are no orphans")
    return 0


def _as_json(one: Orphan) -> dict[str, Any]:
    return {"pid": one.pid, "title": one.title}


def _held(path: str) -> RunDir:
    run_dir = RunDir(path)
    try:
        if os.geteuid() == 0:
            run_dir.owner_uid = os.stat(path).st_uid
        run_dir.hold()
    except FileNotFoundError:
        raise Failure(f"there is no run directory {path}") from None
    except RunDirError as error:
        raise Failure(str(error)) from None
    return run_dir


def _lock(run_dir: RunDir, stack: contextlib.ExitStack) -> None:
    """No master begins meanwhile, who would adopt them. Failure where one has the lock, but does not answer."""
    with contextlib.suppress(FileNotFoundError):
        fd = os.open(run_dir.lock, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        stack.callback(os.close, fd)
        try:
            run_dir.take_again(fd)
        except RunDirError:
            raise Failure(f"a master (pid {run_dir.owner() or '?'}) has {run_dir.path}, and does not answer") from None


def _beside(master: place.Master, run_dir: RunDir) -> dict[int, int]:
    """The processes that a living master does not know, in two looks."""
    found: dict[int, int] | None = None
    while True:
        # The processes first: one that is begun between the looks must be known in the later one.
        inhabitants = run_dir.inhabitants()
        status = frame.checked(master.ask({"do": "status"}, timeout=frame.ANSWER_SECONDS)).get("status")
        known = set(_pids(status))
        strangers = {pid: at for pid, at in inhabitants.items() if pid not in known and _age(at) >= YOUNGEST}
        if found is not None:
            return {pid: at for pid, at in strangers.items() if found.get(pid) == at}
        if not strangers:
            return {}
        found = strangers
        time.sleep(AGAIN)


def _pids(said: Any) -> Iterator[int]:
    """All of a status."""
    for name, value in said.items() if isinstance(said, Mapping) else enumerate(said) if isinstance(said, list) else ():
        if name == "pid" and isinstance(value, int):
            yield value
        else:
            yield from _pids(value)


def _age(start: int) -> float:
    """Seconds since then, in clock ticks since boot."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - start / os.sysconf("SC_CLK_TCK")


def _listed(run_dir: RunDir) -> dict[int, int]:
    """The processes that a roster names and that still live: companions, and workers of earlier versions."""
    roster, found = Roster(run_dir), {}
    for read in (roster.read_stale, roster.read):
        with contextlib.suppress(OSError, ValueError, RunDirError):
            if remains := read():
                pids = [*(one.pid for one in remains.adopted.survivors), *remains.strays]
                found.update({pid: start for pid in pids if (start := start_time(pid))})
    return found


def _opened(found: Mapping[int, int], stack: contextlib.ExitStack) -> Iterator[Orphan]:
    for pid, start in sorted(found.items()):
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
            stack.callback(os.close, pidfd)
            if start_time(pid) == start:
                yield Orphan(pid, pidfd, _title(pid))


def _title(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return "?"
    return words.replace(b"\0", b" ").decode(errors="replace").strip()[:80]


def _let_finish(orphans: list[Orphan]) -> list[Orphan]:
    """Ask them to finish, and wait until they have. A job is waited for: a TERM would cancel it. A zygote ends after
    the workers, whose requests may still want a process for a job."""
    zygotes = [one for one in orphans if one.is_zygote]
    others = [one for one in orphans if not one.is_zygote]
    refused = _signal([one for one in others if not one.is_job], signal.SIGTERM)
    _await([one for one in others if one not in refused], None)
    more = _signal(zygotes, signal.SIGTERM)
    _await([one for one in zygotes if one not in more], None)
    return refused + more


def _kill(orphans: list[Orphan]) -> list[Orphan]:
    refused = _signal(orphans, signal.SIGKILL)
    return refused + _await([one for one in orphans if one not in refused], KILLED)


def _signal(orphans: Iterable[Orphan], number: int) -> list[Orphan]:
    """Send the signal; returns the processes that this user must not signal."""
    refused = []
    for one in orphans:
        try:
            signal.pidfd_send_signal(one.pidfd, number)
        except ProcessLookupError:
            pass  # it has ended by itself
        except PermissionError:
            refused.append(one)
    return refused


def _await(orphans: Iterable[Orphan], seconds: float | None) -> list[Orphan]:
    """Wait; returns the processes that have not ended in time."""
    left = {one.pidfd: one for one in orphans}
    deadline = None if seconds is None else time.monotonic() + seconds
    while left:
        poll = select.poll()
        for pidfd in left:
            poll.register(pidfd, select.POLLIN)
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        ended = poll.poll(timeout)
        if not ended:
            break
        for pidfd, _ in ended:
            del left[pidfd]
    return list(left.values())
