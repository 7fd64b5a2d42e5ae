"""What every greenlet and native thread of this process is at, written down when `reuseport stacks` asks.

It is taken in a signal's handler, between two bytecodes of the main thread: so a view that computes is seen where it
computes, and nothing needs the loop. The price is that everybody waits for it, so the work is bounded: so many
greenlets, so many frames of each, no I/O but one small file. Finding the greenlets is a walk over what the interpreter
tracks, a fifth of what its own garbage collection costs.

Nothing is kept for it beforehand: whose a greenlet is shows in its frames.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from posix import close
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any

import gevent
from greenlet import getcurrent, greenlet

from reuseport import jobs
from reuseport.deadlines import original
from reuseport.ipc.rundir import RunDir
from reuseport.ipc.stacks import BODY, LINES_SIGNAL, SNAPSHOT_SIGNAL
from reuseport.spawned import Handle
from reuseport.worker.pool import Pool
from reuseport.worker.threads import Threads
from reuseport.worker.wsgi import Caller, describe

if TYPE_CHECKING:
    from reuseport.worker.response import Response

MOST = 500  # greenlets and threads that are looked into
DEPTH = 40  # innermost frames of each
TEXT = 500  # characters of a request's line

_SERVE = Caller.serve.__code__
_JOB = Handle.run.__code__
_IDLE = {Pool._work.__code__, Threads._run.__code__}  # innermost in one that waits for its next request

Told = dict[str, Any]
# Kind, name, ident, innermost frame (None before the first), and whether it is at work at this moment.
Found = tuple[str, str, int, FrameType | None, bool]


class Snapshots:
    """Takes one whenever the signal comes. `who`: the process's id. `turned`: the nanoseconds of CLOCK_MONOTONIC at
    which the loop last turned, None where none has to. `job`: what this process runs, if it is a job's. `gathering`:
    the responses whose requests' bodies are being buffered. `log(level, text)`."""

    def __init__(
        self,
        run_dir: RunDir,
        who: str,
        log: Callable[[str, str], None],
        turned: Callable[[], int] | None = None,
        job: jobs.Job | None = None,
        gathering: Callable[[], list[Response]] = list,
    ) -> None:
        self._path = run_dir.snapshot(who)
        self._who = who
        self._log = log
        self._turned = turned
        self._job = job
        self._gathering = gathering
        self._busy = False
        signal.signal(SNAPSHOT_SIGNAL, self._on_signal)
        # A library that waits in C goes on waiting: not all of them are prepared to be interrupted.
        signal.siginterrupt(SNAPSHOT_SIGNAL, False)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._lines = os.open(run_dir.lines(who), flags, 0o600)
        faulthandler.register(LINES_SIGNAL, file=self._lines, all_threads=True)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._busy:
            return  # it came again meanwhile, and what is being written is news to both
        self._busy = True
        try:
            os.ftruncate(self._lines, 0)  # what was written there while this could not be
            self._write(json.dumps(self._take(frame)).encode())
        except Exception as error:  # noqa: BLE001 - it would be raised in the middle of whatever was interrupted
            self._log("error", f"what this worker is at could not be written down: {type(error).__name__}: {error}")
        finally:
            self._busy = False

    def _write(self, data: bytes) -> None:
        """A reader sees the old one or the new one, never half of it."""
        fd = os.open(self._path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(fd, left) :]
        finally:
            close(fd)
        os.replace(self._path + ".new", self._path)

    def _take(self, frame: FrameType | None) -> Told:
        taken = time.monotonic_ns()
        told: Told = {"process": self._who, "pid": os.getpid(), "taken": taken, "idle": 0, "more": 0}
        if self._turned is not None:
            told["stands"] = (taken - self._turned()) / 1e9
        active = list(jobs.active.values())
        runners = {one.runner: one for one in active if one.runner}
        seen: set[int] = set()
        found = told["running"] = []
        for kind, name, ident, top, now in (*_threads(frame), *_greenlets(), *_in_other_loops(active)):
            if top is not None and top.f_code in _IDLE and not now:
                told["idle"] += 1
            elif len(found) >= MOST:
                told["more"] += 1
            else:
                entry = {"kind": kind, "name": name, "now": now, **_stack(top, taken)}
                job = entry.pop("job", None) or runners.get(ident)
                if job is None and self._job is not None and name == "main":
                    job = self._job
                if job is not None:
                    seen.add(job.number)
                    entry["job"] = _job(job)
                found.append(entry)
        for response in self._gathering():
            if response.environ is None:
                continue
            if len(found) < MOST:
                found.append({"kind": BODY, "name": "", "now": False, "stack": [], **_request(response, taken)})
            else:
                told["more"] += 1
        told["jobs"] = [_job(one) for one in active if one.number not in seen]
        told["seconds"] = (time.monotonic_ns() - taken) / 1e9
        return told


def _threads(frame: FrameType | None) -> Iterator[Found]:
    """Each native thread, the main one with the greenlet that was interrupted in `frame`."""
    main = original("_thread", "get_ident")()
    # Not threading.enumerate, which takes a lock that whoever was interrupted may hold.
    names = {ident: one.name for ident, one in list(threading._active.items())}  # type: ignore[attr-defined]
    current = getcurrent()
    for ident, top in sys._current_frames().items():
        if ident != main:
            yield "thread", names.get(ident, ""), ident, top, False
        elif current is gevent.get_hub():
            yield "loop", "", id(current), frame, True
        else:
            yield "greenlet", "main" if current.parent is None else _name(current), id(current), frame, True


def _greenlets() -> Iterator[Found]:
    """Each greenlet under the loop that waits; and the main one, which a fork may have hidden from the interpreter."""
    hub, current = gevent.get_hub(), getcurrent()
    if hub.parent is not current and hub.parent.gr_frame is not None:
        yield "greenlet", "main", id(hub.parent), hub.parent.gr_frame, False
    for one in gc.get_referrers(hub):
        # Not isinstance: it asks an object what it is, and a proxy of the application's would run code to answer.
        if not issubclass(type(one), greenlet) or one is hub.parent or one is current or one.dead:
            continue
        if one.gr_frame is not None or getattr(one, "started", False):
            yield "greenlet", _name(one), id(one), one.gr_frame, False


def _in_other_loops(active: list[jobs.Job]) -> Iterator[Found]:
    """Jobs in native threads that wait in gevent's way, each in a loop of its thread's own."""
    for one in active:
        if one.greenlet is not None and one.greenlet.gr_frame is not None:
            yield "thread", "", id(one.greenlet), one.greenlet.gr_frame, False


def _name(one: Any) -> str:
    run = getattr(one, "_run", None)
    return str(getattr(run, "__qualname__", None) or getattr(type(run), "__qualname__", "") if run else "")


def _stack(top: FrameType | None, taken: int) -> Told:
    """The frames, the innermost last, and the request or job that they belong to."""
    lines: list[tuple[str, int, str]] = []
    told: Told = {"stack": lines}
    frame = top
    while frame is not None:
        code: CodeType = frame.f_code
        if len(lines) < DEPTH:
            lines.append((code.co_filename, frame.f_lineno or 0, code.co_qualname))
        if code is _SERVE:
            response = frame.f_locals["response"]
            if response.environ is not None:
                told.update(_request(response, taken))
        elif code is _JOB:
            told["job"] = frame.f_locals["self"].job
        frame = frame.f_back
    lines.reverse()
    return told


def _request(response: Response, taken: int) -> Told:
    assert response.environ is not None
    told: Told = {
        "request": describe(response)[:TEXT],
        "age": taken / 1e9 - response.began,
        "client": response.environ.get("REMOTE_ADDR") or "a unix socket",
    }
    if tenant := response.connection.tenant:
        told["tenant"] = tenant
    return told


def _job(one: jobs.Job) -> Told:
    tenant = None if one.tenant is None else str(one.tenant)
    return {"name": str(one.name), "tenant": tenant, "age": time.time() - one.started, "progress": one.fraction}
