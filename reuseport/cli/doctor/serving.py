"""The application as it loads, and the server as it runs. The checks judge facts, and touch nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator

from reuseport.cli.doctor.drivers import drivers
from reuseport.cli.doctor.findings import Facts, Finding, fine, generations, loaded, number, problem, warning
from reuseport.cli.words import duration, size
from reuseport.ipc.packages import in_words

HOUR = 3600
SHOWN = 3  # modules of a package that are named


def loading(facts: Facts) -> Iterator[Finding]:
    probe, settings = facts.application, facts.settings
    if probe is None:
        if settings.app is None:
            yield fine("the application was not looked at: name it, as to serve, or -c FILE")
        return
    if probe.get("error"):
        yield problem(
            f"the application cannot be loaded: {probe['error']}",
            "correct it: a release would fail, and change nothing",
            str(probe.get("output", "")),
        )
        return
    took = float(probe["seconds"])
    text = f"the application loads in {took:.1f} s and {size(probe['rss'])} (Python {probe['python']})"
    if took > settings.boot_timeout / 2:
        yield warning(f"{text}; --boot-timeout is {settings.boot_timeout:g} s", f"--boot-timeout {took * 4:.0f}")
    else:
        yield fine(text)
    if probe.get("version") != facts.version:
        yield warning(
            f"the application's interpreter has reuseport {probe.get('version')}, and this is {facts.version}",
            "install the same version in both environments, or none in the application's",
        )
    if found := probe.get("packages"):
        yield fine(f"it runs on {in_words(found)}")
    if mismatch := probe.get("mismatch"):
        warned, _, remedy = mismatch.partition(": ")
        yield warning(warned, remedy)


def fork_safety(facts: Facts) -> Iterator[Finding]:
    probe = loaded(facts)
    if probe is None:
        return
    left, preload = probe["left_behind"], facts.settings.preload
    if not left:
        yield fine("the import leaves nothing behind that does not survive a fork: workers share its memory")
    elif preload == "never":
        yield fine(f"the import leaves behind {'; '.join(left)}; each worker imports by itself (--preload never)")
    else:
        text = f"the import leaves behind {'; '.join(left)}, which does not survive a fork"
        remedy = (
            "begin threads, loops, pools and connections in a function that is @reuseport.on_start, or --preload never"
        )
        yield (
            problem(f"{text}, and --preload always forks all the same", remedy)
            if preload == "always"
            else warning(f"{text}: each worker imports by itself, and shares nothing", remedy)
        )


def patch_order(facts: Facts) -> Iterator[Finding]:
    probe = loaded(facts)
    if probe is None or facts.settings.threads:
        return
    remedy = "import it in the application, not in sitecustomize or a .pth file; or --threads N, which patches nothing"
    packages: dict[str, list[str]] = {}
    for held in probe["early"]:
        packages.setdefault(held.partition(" ")[0].partition(".")[0], []).append(held)
    for held in packages.values():
        more = f", and {len(held) - SHOWN} more," if len(held) > SHOWN else ""
        yield problem(f"{', '.join(held[:SHOWN])}{more} came before gevent's patches, and blocks its worker", remedy)
    if probe.get("ssl_early"):
        yield warning("ssl was imported before gevent's patches: errors, or connections that block", remedy)
    if not packages and not probe.get("ssl_early"):
        yield fine("nothing that waits was imported before gevent's patches")


def parallel(facts: Facts) -> Iterator[Finding]:
    """What of multiprocessing does not work in greenlets: docs/frameworks.md has it all."""
    probe = loaded(facts)
    if probe is None or facts.settings.threads:
        return
    users: dict[str, list[str]] = probe.get("multiprocessing", {})
    executors = [name for name, parts in users.items() if parts == ["ProcessPoolExecutor"]]
    others = [name for name in users if name not in executors]
    instead = "ProcessPoolExecutor with mp_context=multiprocessing.get_context('spawn')"
    if others:
        yield warning(
            f"{', '.join(others[:SHOWN])} can use multiprocessing, in which Pool, Manager, Queue.get and Lock.acquire "
            "block or fail in greenlets",
            f"{instead}, reuseport.spawn(..., where='process'), or --threads N",
        )
    version = tuple(int(part) for part in re.findall(r"\d+", str(probe["python"]))[:2])
    if users and probe.get("start_method") == "forkserver" and version >= (3, 14):
        yield warning(
            f"{', '.join(list(users)[:SHOWN])} can start processes by the start method forkserver, which fails in "
            "greenlets from Python 3.14 on",
            f"{instead}, or multiprocessing.set_start_method('spawn'), or --threads N",
        )


def clients(facts: Facts) -> Iterator[Finding]:
    if (probe := loaded(facts)) is not None:
        yield from drivers(probe, facts.settings.threads)


def running(facts: Facts) -> Iterator[Finding]:
    if facts.silent:
        yield problem(facts.silent, "its log may say why; `reuseport stacks` shows what its workers are at meanwhile")
    if facts.status is None:
        return
    master = facts.status.get("master") or {}
    if master.get("version") != facts.version:
        yield warning(
            f"the master is reuseport {master.get('version')}, and this is {facts.version}", "start the master anew"
        )
    blocked = [w for g in generations(facts) for w in g.get("workers", []) if w.get("state") == "blocked"]
    for one in blocked:
        yield problem(f"worker {one.get('id')} is blocked: its loop does not turn", f"reuseport stacks {one.get('id')}")
    for one in (c for g in generations(facts) for c in g.get("companions", []) if c.get("failing")):
        why = f": {one['why']}" if one.get("why") else ""
        yield problem(f"companion {one.get('id')} is {one['failing']}{why}", "look into the log for what it printed")
    if (facts.status.get("serving")) is None:
        yield problem("no generation serves", "look into the log; reuseport status tells the last failure")
    last = (facts.status.get("releases") or [{}])[-1]
    if last.get("outcome") in ("failed", "taken back"):
        error = str(last.get("error", "")).strip()
        text = f"the last release {'failed' if last['outcome'] == 'failed' else 'was taken back'}: {error}"
        yield warning(text, "correct that, and release again")
    if not blocked:
        yield fine(f"the master (pid {master.get('pid')}) answers, and no worker is blocked")


def drains(facts: Facts) -> Iterator[Finding]:
    for g in generations(facts):
        since = g.get("since") or 0
        if g.get("state") != "draining" or since < HOUR:
            continue
        waits = g.get("waits_for") or {}
        jobs = [f"job {job.get('name')!r}" for job in waits.get("jobs", [])[:3]]
        count = waits.get("requests")
        what = ", ".join([*jobs, *([f"{count} requests"] if count else [])]) or "its processes"
        yield warning(
            f"generation {g.get('number')} has drained for {duration(since)}, and waits for {what}",
            "--job-timeout, or a deadline of the job's own; reuseport stacks shows what it does",
        )


def losses(facts: Facts) -> Iterator[Finding]:
    if lost := ((facts.status or {}).get("lost") or {}).get("jobs"):
        yield warning(f"{len(lost)} jobs were lost within the last hour", "reuseport status tells which, and how")


def queues(facts: Facts) -> Iterator[Finding]:
    full = facts.settings.backlog
    if (most := number(facts.sysctls.get("net.core.somaxconn"))) is not None:
        full = min(full, most)
    for address, length in facts.queues:
        if length * 2 > full:
            yield problem(
                f"{length} connections wait in a queue of {full} ({address})", "more --workers, or see what blocks"
            )
