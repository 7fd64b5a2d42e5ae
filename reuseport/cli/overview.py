"""The state of a server as text: its generations, their workers, what each drain waits for, how the last release ended.

A master of another version may leave fields out, so nothing here insists on one; a column in which nothing would stand
is left out, and so, in a narrow terminal, are those that matter least.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from reuseport.cli import quarantine, words
from reuseport.cli.ink import PLAIN, Column, Ink, fit, table
from reuseport.cli.words import ABSENT, a_dict, a_list, duration, latency, objects, rate, size
from reuseport.ipc.packages import in_words, is_lent

WIDTH = 80
SHOWN = 20  # jobs of a generation that serves that are shown
LOST = 5  # lost jobs that are shown
QUEUES = 8  # slots of an address up to which each one's queue is shown
BAR = 10  # columns


def render(status: Mapping[str, Any], now: float, width: int | None = WIDTH, ink: Ink = PLAIN) -> str:
    """The state as text. `now` is in seconds of the epoch; `width` in columns, None for as wide as it takes."""
    generations = sorted(objects(status, "generations"), key=lambda one: one.get("number") or 0, reverse=True)
    blocks = [_master(status, now, ink), _generations(generations, width, ink)]
    workers = [worker for one in generations for worker in objects(one, "workers")]
    if workers:
        blocks.append(_workers(workers, width, ink))
    companions = [
        companion
        for one in generations
        for companion in objects(one, "companions")
        if companion.get("pid") or one.get("state") in ("booting", "serving", "canary")
    ]
    if companions:
        blocks.append(_companions(companions, width, ink))
    blocks += [block for one in generations if (block := _waits_for(one, width, ink))]
    if found := objects(status, "quarantine"):
        head = f"{words.count(len(found), 'request')} in quarantine: answered 503, because workers died over them"
        blocks.append([ink.paint("bad", head), *quarantine.rows(found, width, ink)])
    if lost := objects(a_dict(status, "lost"), "jobs"):
        blocks.append(_lost(lost, now, ink))
    if releases := objects(status, "releases"):
        blocks.append(_last_release(releases[-1], now, width, ink))
    return "\n\n".join("\n".join(fit(block, width)) for block in blocks)


def _master(status: Mapping[str, Any], now: float, ink: Ink) -> list[str]:
    master, serving = a_dict(status, "master"), status.get("serving")
    serves = f"serving generation {serving}" if serving else "serving no generation yet"
    name, state = words.text(master.get("name", "master")), words.text(master.get("state", "unknown"))
    lines = [
        f"{ink.paint('strong', name)}: {ink.state(state)}, {serves}",
        f"  master   pid {master.get('pid', ABSENT)}, up {duration(master.get('uptime'))}, "
        f"reuseport {words.text(master.get('version'))}",
        *_listens(a_list(master, "addresses"), objects(status, "slots"), ink),
        f"  run dir  {words.text(master.get('run_dir'))}",
        f"  workers  {master.get('workers_wanted', ABSENT)} wanted",
    ]
    if numbers := a_dict(status, "numbers"):
        lines.append(f"  traffic  {_traffic(numbers, ink)}")
    lines += [f"  earlier  master {pid} leaves with its last process" for pid in a_list(master, "earlier")]
    return [*lines, *_takeover(a_dict(master, "takeover"), now, ink)]


def _takeover(takeover: Mapping[str, Any], now: float, ink: Ink) -> list[str]:
    """The one under way, or how the last one failed."""
    if not takeover:
        return []
    if takeover.get("outcome") != "failed":
        return [ink.paint("going", f"  takeover master {takeover.get('pid', ABSENT)} is taking over")]
    when = f"{duration(now - takeover.get('at', now))} ago, by master {takeover.get('pid', ABSENT)}"
    return [ink.paint("bad", f"  takeover the last takeover failed, {when}")]


def _listens(addresses: Sequence[Any], slots: Sequence[Mapping[str, Any]], ink: Ink) -> list[str]:
    """Each address, with what waits in the kernel's queues of its slots."""
    lines = []
    for address in addresses:
        mine = sorted((one for one in slots if one.get("address") == address), key=lambda one: one.get("index") or 0)
        lines.append(f"{words.text(address)}{_queues(mine, ink)}")
    lines = lines or ["nothing"]
    return [f"  {'listens' if index == 0 else '':<8} {line}" for index, line in enumerate(lines)]


def _queues(slots: Sequence[Mapping[str, Any]], ink: Ink) -> str:
    lengths = [one["queue"] for one in slots if isinstance(one.get("queue"), int)]
    if not lengths:
        return ""
    limits = {one["limit"] for one in slots if isinstance(one.get("limit"), int)}
    of = f" (limit {min(limits)})" if limits else ""
    if not any(lengths):
        return f", nothing queued{of}"
    if len(lengths) > QUEUES:
        said = f", queued {sum(lengths)} in {len(lengths)} slots, at most {max(lengths)}{of}"
    else:
        said = f", queued {' '.join(map(str, lengths))}{of}"
    crowded = bool(limits) and max(lengths) * 2 > min(limits)
    return ink.paint("bad" if crowded else "going", said)


def _traffic(numbers: Mapping[str, Any], ink: Ink) -> str:
    errors = f"{rate(numbers.get('errors_per_second'))} errors/s"
    parts = [
        f"{rate(numbers.get('requests_per_second'))} requests/s",
        ink.paint("bad", errors) if numbers.get("errors_per_second") else errors,
        f"{numbers.get('in_flight', ABSENT)} in flight",
        f"p50 {latency(numbers.get('p50'))}",
        f"p99 {latency(numbers.get('p99'))}",
    ]
    return ", ".join(parts)


_GENERATION = (
    Column("GEN", left=True), Column("STATE", left=True), Column("AGE"), Column("WORKERS"), Column("ACTIVE", spare=6),
    Column("REQ/S", usual=False), Column("P50", spare=5, usual=False), Column("P99", spare=1, usual=False),
    Column("ERR/S", spare=2, usual=False), Column("JOBS"), Column("MEMORY", spare=4),
    Column("DIRECTORY", left=True, shrinks=12, spare=3),
)  # fmt: skip


def _generations(generations: Sequence[Mapping[str, Any]], width: int | None, ink: Ink) -> list[str]:
    rows = []
    for one in generations:
        workers, numbers = objects(one, "workers"), a_dict(one, "numbers")
        errors = rate(numbers.get("errors_per_second"))
        rows.append(
            (
                str(one.get("number", ABSENT)),
                ink.state(words.text(one.get("state"))),
                duration(one.get("age")),
                str(sum(worker.get("place", 0) >= 0 for worker in workers)),  # the others are processes of jobs
                str(sum(a_dict(worker, "requests").get("active") or 0 for worker in workers)),
                rate(numbers.get("requests_per_second")),
                latency(numbers.get("p50")),
                latency(numbers.get("p99")),
                ink.paint("bad", errors) if numbers.get("errors_per_second") else errors,
                str(sum(worker.get("jobs") or 0 for worker in workers)),
                size(one.get("memory")),
                words.text(one.get("directory")),
            )
        )
    lines = table(_GENERATION, rows, width, ink)
    interpreters = {one.get("number"): one.get("interpreter") for one in generations if one.get("interpreter")}
    if len(set(interpreters.values())) > 1:
        lines += [f"generation {number} runs {words.text(path)}" for number, path in interpreters.items()]
    for one in generations:
        if trial := a_dict(one, "canary"):
            lines.append(f"generation {one.get('number')} is on trial: {words.trial(trial)}")
        if is_lent(packages := a_dict(one, "packages")):
            lines.append(f"generation {one.get('number')} runs on {words.text(in_words(packages))}")
    return lines


_WORKER = (
    Column("WORKER", left=True), Column("PID"), Column("STATE", left=True), Column("SLOTS", spare=4),
    Column("AGE", spare=3), Column("ACTIVE"), Column("TOTAL", spare=5), Column("CONNS", spare=2), Column("JOBS"),
    Column("MEMORY", spare=1),
)  # fmt: skip


def _workers(workers: Sequence[Mapping[str, Any]], width: int | None, ink: Ink) -> list[str]:
    rows = []
    for one in workers:
        requests, memory = a_dict(one, "requests"), a_dict(one, "memory")
        waiting = f" ({requests['waiting']} waiting)" if requests.get("waiting") else ""  # for a thread
        rows.append(
            (
                str(one.get("id", ABSENT)),
                str(one.get("pid", ABSENT)),
                ink.state(words.text(one.get("state"))),
                words.ranges(a_list(one, "slots")),
                duration(one.get("age")),
                f"{requests.get('active', ABSENT)}{waiting}",
                str(requests.get("total", ABSENT)),
                str(one.get("connections", ABSENT)),
                str(one.get("jobs", ABSENT)),
                size(memory.get("pss") or memory.get("rss")),
            )
        )
    return table(_WORKER, rows, width, ink)


_COMPANION = (
    Column("COMPANION", left=True), Column("PID", spare=2), Column("STATE", left=True), Column("AGE", spare=1),
    Column("RESTARTS"), Column("WHY", left=True, spare=3, usual=False),
)  # fmt: skip


def _companions(companions: Sequence[Mapping[str, Any]], width: int | None, ink: Ink) -> list[str]:
    rows = [
        (
            words.text(one.get("id") or one.get("name")),
            str(one.get("pid") or ABSENT),
            ink.state(words.text(one.get("failing") or one.get("state"))),
            duration(one.get("age")) if one.get("pid") else ABSENT,
            str(one.get("restarts", ABSENT)),
            words.text(one.get("why") or one.get("status")),
        )
        for one in companions
    ]
    return table(_COMPANION, rows, width, ink)


def _waits_for(generation: Mapping[str, Any], width: int | None, ink: Ink) -> list[str]:
    """What a drain waits for; of a generation that does not drain, its jobs."""
    waits = a_dict(generation, "waits_for")
    jobs = a_list(waits, "jobs")
    number, drains = generation.get("number"), generation.get("state") in ("draining", "ending")
    held = [f"  {line}" for line in words.held(waits)]
    if attending := [words.text(one.get("id")) for one in objects(generation, "workers") if _attends(one)]:
        held.append(f"  attending: {', '.join(attending)}; they serve the tenants that are kept here, and nothing else")
    if not drains and not jobs:
        return [f"generation {number}", *held] if held else []
    if drains:
        since = generation.get("since")
        lasts = f", draining for {duration(since)}" if since is not None else ""
        begin = f"generation {number} waits for {words.waiting_for(waits, jobs)}{lasts}"
    else:
        begin = f"generation {number} runs {words.count(len(jobs), 'job')}"
        jobs, more = jobs[:SHOWN], len(jobs) - SHOWN
    lines = [begin, *job_table(jobs, width, ink)]
    lines += [f"  companion {words.text(one)}" for one in a_list(waits, "companions") if drains]
    lines += held
    return lines if drains or more <= 0 else [*lines, f"  and {more} more"]


def _attends(worker: Mapping[str, Any]) -> bool:
    return worker.get("state") == "attending"


_JOB = (
    Column("JOB", left=True), Column("TENANT", left=True, usual=False), Column("AGE"),
    Column("PROGRESS", left=True, spare=2, usual=False), Column("DEADLINE", left=True, usual=False),
    Column("WHERE", left=True, spare=3, usual=False), Column("SAYS", left=True, spare=1, usual=False),
)  # fmt: skip


def job_table(jobs: Sequence[Any], width: int | None, ink: Ink) -> list[str]:
    """Jobs, indented, a line each."""
    if not jobs:
        return []
    lines = table(_JOB, [_job(job, ink) for job in jobs], None if width is None else max(20, width - 2), ink)
    return ["  " + line for line in lines]


def _job(job: Any, ink: Ink) -> tuple[str, ...]:
    if not isinstance(job, dict):
        return (words.text(job), *[ABSENT] * (len(_JOB) - 1))
    share, left = job.get("progress"), job.get("left")
    if isinstance(left, int | float):
        deadline = f"in {duration(left)}" if left > 0 else ink.paint("bad", "has passed")
    else:
        deadline = ABSENT
    return (
        words.text(job.get("name", "?")),
        words.text(job.get("tenant")),
        duration(job.get("age")),
        f"{ink.bar(share, BAR)} {share:4.0%}" if isinstance(share, int | float) else ABSENT,
        deadline,
        f"process {job.get('pid')}" if job.get("where") == "process" else ABSENT,
        words.text(job.get("text")),
    )


def _lost(jobs: Sequence[Mapping[str, Any]], now: float, ink: Ink) -> list[str]:
    """The newest of the jobs that ended with their process."""
    lines = [ink.paint("bad", f"{words.count(len(jobs), 'job')} lost within the last hour")]
    for job in reversed(jobs[-LOST:]):
        tenant = f", tenant {words.text(job['tenant'])}" if job.get("tenant") else ""
        facts = [words.text(job.get("name", "?")) + tenant]
        facts += [f"{duration(job.get('age'))} old", f"{duration(now - job.get('at', now))} ago"]
        who = f"its process {job['pid']}" if job.get("pid") else f"worker {words.text(job.get('worker'))}"
        lines.append(f"  job {', '.join(facts)}: {who} {words.text(job.get('how'))}")
    return lines


def _last_release(release: Mapping[str, Any], now: float, width: int | None, ink: Ink) -> list[str]:
    at, seconds = release.get("at"), release.get("seconds")
    when = f", {duration(now - at)} ago" if isinstance(at, int | float) else ""
    took = f", took {seconds:.1f}s" if isinstance(seconds, int | float) else ""
    # A release whose configuration could not be read never got a number.
    number = release.get("number")
    which = "" if number is None else f"generation {number}, "
    lines = [f"last release: {which}{ink.state(words.text(release.get('outcome', 'ended')))}{when}{took}"]
    if release.get("by"):
        lines[0] += f", by {words.text(release['by'])}"
    if release.get("error"):
        error = words.text(release["error"])
        lines += textwrap.wrap(error, (width or sys.maxsize) - 2, break_on_hyphens=False)
    return [lines[0], *("  " + line for line in lines[1:])]
