"""`reuseport stacks`: what every greenlet and thread of the workers is at now.

No master is needed for it: who there is, a living one says, and a dead one has written down. The processes are asked
by signal, and answer by file (worker/snapshot.py). One that does not answer, because some library in C holds its
interpreter, is asked again by the signal whose handler is in C (ipc/stacks.py): of that one the lines are known, and
nothing more.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import stat
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reuseport.cli import place
from reuseport.cli.failure import FAILED, NO_MASTER, USAGE, Failure
from reuseport.cli.frame import ANSWER_SECONDS, json_option
from reuseport.cli.words import duration
from reuseport.ipc.rundir import RunDir, RunDirError
from reuseport.ipc.stacks import BODY, LINES_SIGNAL, SNAPSHOT_SIGNAL
from reuseport.options import Option, kinds
from reuseport.options.arguments import one_line
from reuseport.options.manual import manual
from reuseport.options.table import FLAG

PATIENCE = 2.0  # seconds for the interpreter to answer
STACK_DELAY = 0.5  # seconds for the handler in C
LOOK = 0.01  # seconds between two looks
LARGEST = 16 << 20  # bytes of an answer that are read
SHOWN = 5  # requests at the same place that are named

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep

ABOUT = """\
Shows what the workers and the processes of jobs are at: the Python stack of each request, with its age, of each job, \
and of all else that runs, greenlet or native thread. What waits at the same place is shown once. The workers go on \
serving; one whose loop is blocked shows where. No master is needed for it.

Exit status: 0 all have answered; 1 some have not; 2 wrong usage; 3 nobody is there."""

OPTIONS = (
    Option(
        "who",
        kinds.Kind("PID|WORKER", str),
        "",
        group="Options",
        positional=True,
        where=frozenset({FLAG}),
        default_text="all",
        help="A process, by its pid or as `reuseport status` calls it: 7.2 is a worker, 7 all of generation 7.",
    ),
    json_option("one JSON object for each process, as an array"),
)
TAKES = (*OPTIONS, *place.WHERE)


@dataclass
class Asked:
    """A process that is asked. `told` is its answer; else `lines` what its handler in C wrote, and `why` says why."""

    id: str
    pid: int
    told: Mapping[str, Any] | None = None
    lines: str = ""
    why: str = ""
    author: tuple[int, int] | None = None  # the user and group that wrote the answer, where these are not the asker's
    since: int = field(default_factory=time.monotonic_ns)  # an answer that was taken before is an old one

    def as_json(self) -> dict[str, Any]:
        return {"id": self.id, "pid": self.pid, "error": self.why, "lines": self.lines, **(self.told or {})}


def help_text() -> str:
    usage = "reuseport stacks [PID|WORKER] [--json] [-n NAME | --run-dir DIR | -c FILE]"
    return manual(TAKES, usage, ABOUT, shutil.get_terminal_size().columns)


def run(argv: Sequence[str]) -> int:
    """Print what they are at and return the exit status. Raises OptionError and Failure."""
    values, words = place.read(argv, OPTIONS)
    master = place.find(words)
    everybody = _everybody(master)
    chosen = _chosen(everybody, values["who"])
    asked = ask(RunDir(master.run_dir), chosen)
    if values["json"]:
        print(json.dumps([one.as_json() for one in asked]))
    else:
        print("\n\n".join("\n".join(render(one)) for one in asked))
    return FAILED if any(one.told is None and not one.lines for one in asked) else 0


def _everybody(master: place.Master) -> list[Asked]:
    """Who lives, but for zygotes. Raises Failure if there is nobody."""
    try:
        done = master.ask({"do": "status"}, timeout=ANSWER_SECONDS)
        generations = done.get("status", {}).get("generations", [])
        return [Asked(str(w["id"]), int(w["pid"])) for g in generations for w in g.get("workers", []) if w.get("pid")]
    except place.Stranger:
        raise
    except Failure as failure:
        from reuseport.master.roster import Roster

        # Its master has died, or hangs; its workers do not.
        try:
            roster = Roster(RunDir(master.run_dir))
            remains = roster.read() or roster.read_stale()
        except (OSError, ValueError, RunDirError) as error:
            raise failure from error
        if remains is None or not remains.adopted.survivors:
            raise
        if master.name and remains.name not in ("", master.name):
            raise place.Stranger(master.said, master.run_dir, remains.name, master.name) from failure
        print(f"reuseport: {one_line(str(failure))}; its workers live on", file=sys.stderr)
        return [Asked(str(one.key), one.pid) for one in remains.adopted.survivors if one.key.number]


def _chosen(everybody: Sequence[Asked], who: str) -> list[Asked]:
    chosen = [one for one in everybody if who in ("", one.id, str(one.pid), one.id.partition(".")[0])]
    if not everybody:
        raise Failure("there is no worker", NO_MASTER)
    if not chosen:
        known = ", ".join(f"{one.id} (pid {one.pid})" for one in everybody[:20])
        raise Failure(f"there is no worker {who!r}; these there are: {known}", USAGE)
    return chosen


def ask(run_dir: RunDir, asked: list[Asked]) -> list[Asked]:
    """Ask them all, and wait until each has answered or will not."""
    waiting = [one for one in asked if _send(one, SNAPSHOT_SIGNAL)]
    deadline = time.monotonic() + PATIENCE
    while waiting and time.monotonic() < deadline:
        time.sleep(LOOK)
        for one in waiting:
            one.told = _answer(run_dir.snapshot(one.id), one)
        waiting = [one for one in waiting if one.told is None and _state(one.pid)]
    silent = [one for one in asked if one.told is None and not one.why]
    begun = {one.id: _size(run_dir.lines(one.id)) for one in silent}
    silent = [one for one in silent if _send(one, LINES_SIGNAL)]
    deadline = time.monotonic() + STACK_DELAY
    while time.monotonic() < deadline and any(_size(run_dir.lines(one.id)) == begun[one.id] for one in silent):
        time.sleep(LOOK)
    for one in silent:
        one.told = _answer(run_dir.snapshot(one.id), one)  # it may have come to it after all
        if one.told is not None:
            continue
        one.lines = _read(run_dir.lines(one.id), begun[one.id])[0].decode(errors="replace").strip()
        state = _state(one.pid)
        one.why = f"it runs, or waits in, code in C; the kernel says {state}" if state else "it has gone"
    return asked


def _send(one: Asked, number: int) -> bool:
    """Send a signal to a process that catches it, and to no other one."""
    if one.why:
        return False
    try:
        pidfd = os.pidfd_open(one.pid)
    except OSError:
        one.why = "it has gone"
        return False
    try:
        if not _catches(one.pid, number):
            one.why = "it cannot say: it is not ready yet, or of an older version of reuseport"
            return False
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        one.why = "it has gone"
    except PermissionError:
        one.why = "it belongs to another user: ask as root, or as that one"
    finally:
        os.close(pidfd)
    return not one.why


def _catches(pid: int, number: int) -> bool:
    """proc_pid_status(5): SigCgt is a mask, in hexadecimal."""
    return bool(int(_status(pid).get("SigCgt", "0"), 16) >> (number - 1) & 1)


def _state(pid: int) -> str:
    """What the kernel says that a process does, "" for one that is no more."""
    state = _status(pid).get("State", "")
    return "" if state.startswith(("Z", "X")) else state


def _status(pid: int) -> dict[str, str]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except OSError:
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _answer(path: str, one: Asked) -> dict[str, Any] | None:
    data, one.author = _read(path, 0)
    try:
        told = json.loads(data)
    except ValueError:
        return None
    fresh = isinstance(told, dict) and told.get("pid") == one.pid and told.get("taken", 0) >= one.since
    return told if fresh else None


def _read(path: str, offset: int) -> tuple[bytes, tuple[int, int] | None]:
    """What is there behind `offset`, and its `Asked.author`. The workers' user owns the directory, so no link in it is
    followed."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b"", None
    with open(fd, "rb") as file:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            return b"", None
        file.seek(offset)
        return file.read(LARGEST), None if info.st_uid == os.geteuid() else (info.st_uid, info.st_gid)


def _size(path: str) -> int:
    with contextlib.suppress(OSError):
        return os.lstat(path).st_size
    return 0


# --- for a person


def render(one: Asked) -> list[str]:
    """What one process is at, as lines."""
    what = "job's process" if ".j" in one.id else "worker"
    head = f"{what} {one.id} (pid {one.pid})"
    if one.told is None:
        lines = [f"{head}: {one.why}"]
        return [*lines, *(f"  {one_line(line)}" for line in one.lines.splitlines())]
    running = [entry for entry in one.told.get("running", []) if isinstance(entry, dict)]
    shown = [entry for entry in running if _counts(entry)]
    requests = sum("request" in entry for entry in shown)
    own_jobs = [job for entry in shown if (job := entry.get("job"))] + list(one.told.get("jobs", []))
    facts = [_plural(requests, "request"), _plural(len(own_jobs), "job")]
    if idle := one.told.get("idle"):
        facts.append(f"{idle} idle in the pool")
    if others := len(running) - len(shown) + int(one.told.get("more", 0)):
        facts.append(f"{others} of the server's own" if not one.told.get("more") else f"{others} not shown")
    stands = one.told.get("stands")
    turned = f"; its loop stands still for {stands:.1f} s" if isinstance(stands, int | float) and stands > 1 else ""
    lines = [f"{head}: {', '.join(facts)}{turned}"]
    for group in _groups(shown):
        lines += ["", *_named(group)]
        if group[0].get("kind") == BODY:
            lines.append("    the client still sends its chunked body (--buffer-chunked)")
        else:
            lines += _lines(group[0].get("stack", []), one.author)
    for job in one.told.get("jobs", []):
        lines += ["", f"  job {_job(job)}: in no greenlet or thread that can be told apart"]
    return lines


def _counts(entry: Mapping[str, Any]) -> bool:
    """Whether a person wants to see it: not what the server and gevent have running for themselves."""
    return bool(
        entry.get("request") or entry.get("job") or any(not _is_ours(frame[0]) for frame in entry.get("stack", []))
    )


def _is_ours(path: str) -> bool:
    parts = path.split("/")
    return path.startswith((HERE, "<frozen", "src/gevent")) or "gevent" in parts or "reuseport" in parts[-3:-1]


def _groups(entries: Sequence[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """Those at the same place together: what is at work first, then requests, jobs, and the rest, the oldest first."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    order = sorted(
        entries, key=lambda e: (not e.get("now"), "request" not in e, "job" not in e, -(e.get("age") or _age(e)))
    )
    for entry in order:
        kind = ("request" in entry, "job" in entry, entry.get("now"), entry.get("kind") == BODY)
        groups.setdefault(json.dumps([kind, entry.get("stack", [])]), []).append(entry)
    yield from groups.values()


def _age(entry: Mapping[str, Any]) -> float:
    return float((entry.get("job") or {}).get("age") or 0)


def _named(group: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [f"  {_name(entry)}" for entry in group[:SHOWN]]
    if len(group) > SHOWN:
        lines.append(f"  and {len(group) - SHOWN} more at the same place")
    return lines


def _name(entry: Mapping[str, Any]) -> str:
    facts = []
    if "request" in entry:
        whose = f" of {entry['tenant']}" if entry.get("tenant") else ""
        facts.append(f"{entry['request']}{whose} from {entry.get('client')}, {duration(entry.get('age'))}")
    if entry.get("job"):
        facts.append(f"job {_job(entry['job'])}")
    if not facts:
        facts.append(f"{entry.get('kind')} {entry.get('name') or 'without a name'}")
    elif entry.get("kind") == "thread":
        facts.append(f"thread {entry.get('name')}".strip())
    if entry.get("now"):
        facts.append("at work now")
    return one_line(", ".join(facts))


def _job(job: Mapping[str, Any]) -> str:
    whose = f" of {job['tenant']}" if job.get("tenant") else ""
    far = f", {job['progress']:.0%}" if isinstance(job.get("progress"), int | float) else ""
    return f"{job.get('name')}{whose}, {duration(job.get('age'))}{far}"


def _lines(stack: Sequence[Sequence[Any]], author: tuple[int, int] | None) -> list[str]:
    """The frames as tracebacks show them, from the application's first one on. `author` has said where they are."""
    first = next((index for index, frame in enumerate(stack) if not _is_ours(frame[0])), 0)
    lines = []
    for path, number, function in stack[first:]:
        lines.append(f"    {path}:{number} in {function}")
        # The file as it is now; an old generation's may have gone, and with it the line.
        source = _source(path, author)[number - 1 : number] if path.endswith(".py") and number > 0 else []
        lines += [f"      {line.strip()}" for line in source if line.strip()]
    return [one_line(line) for line in lines] or ["    it has not begun yet"]


@functools.cache
def _source(path: str, author: tuple[int, int] | None) -> list[str]:
    """The lines of a file that an answer names. Another user's answer leads only to files that this user may read:
    it can name any path, and the asker may be root."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode) or info.st_size > LARGEST:
                return []
            if author is not None:
                user, group = author
                mine = stat.S_IRUSR if info.st_uid == user else stat.S_IRGRP if info.st_gid == group else stat.S_IROTH
                if not info.st_mode & mine:
                    return []
            return file.read(LARGEST).decode(errors="replace").splitlines()
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return []


def _plural(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
