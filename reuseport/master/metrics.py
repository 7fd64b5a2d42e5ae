"""The metrics: each declared once, with what it means and how it is read. docs/metrics.md is made of this table.

Names and units follow Prometheus' conventions (prometheus.io/docs/practices/naming): seconds, bytes, `_total` for what
only grows. Labels are few by their nature: generations that live, slots, fixed words; never a tenant, a pid or a path.
A generation that has gone keeps its counters for two minutes, for a last scrape, and then has no series.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from reuseport.core.model import DRAINING, STAFFED
from reuseport.ipc import scoreboard
from reuseport.ipc.latencies import BOUNDS, BUCKETS
from reuseport.master.figures import COUNTERS, NANOSECONDS, Figures, Look
from reuseport.master.hellos import REASONS as REFUSALS
from reuseport.master.tally import CRASHED, OTHER, REASONS, RELEASE_BOUNDS, Tally

COUNTER, GAUGE, HISTOGRAM, INFO = "counter", "gauge", "histogram", "info"

# Seconds; each is one of the bounds that latencies are counted by.
LATENCY_BOUNDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0),
)
CODES = {
    "1xx": scoreboard.UPGRADED,
    "2xx": scoreboard.SUCCESSES,
    "3xx": scoreboard.REDIRECTIONS,
    "4xx": scoreboard.CLIENT_ERRORS,
    "5xx": scoreboard.SERVER_ERRORS,
    "none": scoreboard.UNFINISHED,
}
OUTCOMES = ("serving", "failed", "superseded", "aborted", "canary", "taken back")


@dataclass(frozen=True)
class Facts:
    """What there is to tell. `status`: all of `reuseport status --json`; `overflows`: None where nobody knows."""

    status: Mapping[str, Any]
    look: Look
    tally: Tally
    overflows: int | None


@dataclass(frozen=True)
class Distribution:
    """A histogram's value: how many were at most each bound, how many in all, and their sum."""

    buckets: tuple[tuple[float, int], ...]
    count: int
    sum: float


Value = float | Distribution
Read = Callable[[Facts], Iterable[tuple[tuple[Any, ...], Value]]]


@dataclass(frozen=True)
class Metric:
    """`read` gives pairs of label values, in the order of `labels`, and a value; counters' names end in _total."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str
    read: Read


def overflows() -> int | None:
    """How many connections the kernel has not let into a full accept queue, in this network namespace (proc(5))."""
    try:
        with open("/proc/net/netstat", encoding="ascii") as file:
            lines = [line.split() for line in file if line.startswith("TcpExt:")]
    except OSError:
        return None
    found = dict(zip(*lines, strict=False)) if len(lines) == 2 else {}
    return int(found["ListenOverflows"]) if "ListenOverflows" in found else None


def _single(value: Callable[[Facts], float | None]) -> Read:
    def read(facts: Facts) -> Iterable[tuple[tuple[Any, ...], Value]]:
        found = value(facts)
        return [] if found is None else [((), found)]

    return read


def _counter(field: int) -> Read:
    """A field of the scoreboard, by generation."""
    return lambda facts: [((number,), figures[COUNTERS + field]) for number, figures in _generations(facts)]


def _generations(facts: Facts) -> list[tuple[int, Figures]]:
    return sorted(facts.look.generations.items())


def _living(value: Callable[[Mapping[str, Any]], float]) -> Read:
    """Something of each generation's status."""
    return lambda facts: [((g["number"],), value(g)) for g in facts.status["generations"]]


def _requests(facts: Facts) -> Iterable[tuple[tuple[Any, ...], Value]]:
    for number, figures in _generations(facts):
        for code, field in CODES.items():
            yield (number, code), figures[COUNTERS + field]


def _latency(figures: Figures) -> Distribution:
    counts = list(accumulate(figures[:BUCKETS]))
    buckets = tuple((bound, counts[bisect_left(BOUNDS, bound)]) for bound in LATENCY_BOUNDS)
    return Distribution(buckets, counts[-1], figures[NANOSECONDS] / 1e9)


def _release_durations(facts: Facts) -> Iterable[tuple[tuple[Any, ...], Value]]:
    counts = list(accumulate(facts.tally.release_buckets))
    buckets = tuple(zip(RELEASE_BOUNDS, counts, strict=False))
    return [((), Distribution(buckets, counts[-1], facts.tally.release_seconds))]


def _workers(g: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [w for w in g["workers"] if w["place"] >= 0]


def _by_state(facts: Facts) -> Iterable[tuple[tuple[Any, ...], Value]]:
    for g in facts.status["generations"]:
        for state, count in sorted(Counter(w["state"] for w in _workers(g)).items()):
            yield (g["number"], state), count


def _memory(facts: Facts) -> Iterable[tuple[tuple[Any, ...], Value]]:
    for g in facts.status["generations"]:
        for kind in ("pss", "rss"):
            yield (g["number"], kind), sum(one["memory"][kind] for one in [*g["workers"], g["zygote"]] if one)


def _jobs(facts: Facts) -> Iterable[tuple[tuple[Any, ...], Value]]:
    for g in facts.status["generations"]:
        jobs = g["waits_for"]["jobs"]
        overdue = sum(job["overdue"] for job in jobs)
        yield (g["number"], "running"), len(jobs) - overdue
        yield (g["number"], "overdue"), overdue


def _drains(facts: Facts) -> Iterable[tuple[tuple[Any, ...], Value]]:
    return [((g["number"],), g["since"]) for g in facts.status["generations"] if g["stage"] == DRAINING]


def _companions(value: Callable[[Mapping[str, Any]], int]) -> Read:
    """A sum over the processes of each companion, by generation and name."""

    def read(facts: Facts) -> Iterable[tuple[tuple[Any, ...], Value]]:
        for g in facts.status["generations"]:
            sums: Counter[str] = Counter()
            for one in g.get("companions", ()):
                sums[one["name"]] += value(one)
            for name, total in sorted(sums.items()):
                yield (g["number"], name), total

    return read


def _companions_by_state(facts: Facts) -> Iterable[tuple[tuple[Any, ...], Value]]:
    for g in facts.status["generations"]:
        for (name, state), count in sorted(Counter((c["name"], c["state"]) for c in g.get("companions", ())).items()):
            yield (g["number"], name, state), count


def _slots(what: str) -> Read:
    return lambda facts: [
        ((slot["address"], slot["index"]), slot[what]) for slot in facts.status["slots"] if slot[what] is not None
    ]


def _words(words: Iterable[str], count: Callable[[Tally], Mapping[str, int]]) -> Read:
    """One series for each word, also for what has not happened yet: a rate needs the zero."""
    known = tuple(words)
    return lambda facts: [((word.replace(" ", "_"),), count(facts.tally).get(word, 0)) for word in known]


# fmt: off
METRICS: tuple[Metric, ...] = (
    Metric(
        "reuseport_up", GAUGE, (), "1 while a generation serves, else 0.",
        _single(lambda f: int(f.status["serving"] is not None)),
    ),
    Metric(
        "reuseport_server", INFO, ("version",), "The version of the master.",
        lambda f: [((f.status["master"]["version"],), 1)],
    ),
    Metric(
        "reuseport_start_time_seconds", GAUGE, (), "When the master began, in Unix time.",
        _single(lambda f: f.status["master"]["started"]),
    ),
    Metric(
        "reuseport_serving_generation", GAUGE, (),
        "The number of the generation that serves; without a series while none does.",
        _single(lambda f: f.status["serving"]),
    ),
    Metric(
        "reuseport_generation", INFO, ("generation", "state", "label"), "The generations that live.",
        lambda f: [((g["number"], g["stage"], g["label"]), 1) for g in f.status["generations"]],
    ),
    Metric(
        "reuseport_requests_total", COUNTER, ("generation", "code"),
        "Requests of clients that have ended, by the class of their status; none: the client went before there was one."
        " An upgraded connection counts when it ends, as 1xx.", _requests,
    ),
    Metric(
        "reuseport_errors_total", COUNTER, ("generation",),
        "Requests among them that were answered 5xx or ended in an exception.", _counter(scoreboard.ERRORS),
    ),
    Metric(
        "reuseport_warmup_requests_total", COUNTER, ("generation",),
        "Warm-up requests that have ended (--warmup). No other metric counts them.", _counter(scoreboard.WARMUPS),
    ),
    Metric(
        "reuseport_warmup_errors_total", COUNTER, ("generation",),
        "Warm-up requests among them that were answered 5xx or ended in an exception.",
        _counter(scoreboard.WARMUP_ERRORS),
    ),
    Metric(
        "reuseport_server_requests_total", COUNTER, ("code",),
        "As reuseport_requests_total, but of all generations that there have been. Another master that adopts goes on "
        "with it.",
        lambda f: [((code,), f.look.server[COUNTERS + field]) for code, field in CODES.items()],
    ),
    Metric(
        "reuseport_server_errors_total", COUNTER, (), "As reuseport_errors_total, of all generations.",
        _single(lambda f: f.look.server[COUNTERS + scoreboard.ERRORS]),
    ),
    Metric(
        "reuseport_request_duration_seconds", HISTOGRAM, ("generation",),
        "From the arrival of a request's head until the last byte of its response was handed to the kernel. Without "
        "upgraded connections, and without what the server refused itself.",
        lambda f: [((number,), _latency(figures)) for number, figures in _generations(f)],
    ),
    Metric(
        "reuseport_quarantine_entries", GAUGE, ("generation",),
        "Requests (by method, target, Host and tenant) that are in quarantine (--quarantine).",
        _living(lambda g: g["quarantined"]),
    ),
    Metric(
        "reuseport_quarantined_requests_total", COUNTER, ("generation",),
        "Requests that were answered 503 because of that.", _counter(scoreboard.QUARANTINED),
    ),
    Metric(
        "reuseport_requests_in_flight", GAUGE, ("generation",), "Requests that the application works on.",
        _living(lambda g: g["waits_for"]["requests"]),
    ),
    Metric(
        "reuseport_requests_waiting", GAUGE, ("generation",), "Requests among them that wait for a thread (--threads).",
        _living(lambda g: sum(w["requests"]["waiting"] for w in g["workers"])),
    ),
    Metric(
        "reuseport_connections", GAUGE, ("generation",), "Open client connections.",
        _living(lambda g: sum(w["connections"] for w in g["workers"])),
    ),
    Metric(
        "reuseport_connections_accepted_total", COUNTER, ("generation",),
        "Connections that workers have accepted from their own slots.", _counter(scoreboard.ACCEPTED),
    ),
    Metric(
        "reuseport_connections_stolen_total", COUNTER, ("generation",),
        "Connections that workers have accepted from a sibling's slot, because that one was busy.",
        _counter(scoreboard.STOLEN),
    ),
    Metric(
        "reuseport_handovers_total", COUNTER, ("generation",),
        "Connections that were handed over to workers of this generation.", _counter(scoreboard.TAKEN),
    ),
    Metric(
        "reuseport_response_bytes_total", COUNTER, ("generation",), "Bytes of responses that the kernel has taken.",
        _counter(scoreboard.BYTES_OUT),
    ),
    Metric(
        "reuseport_slot_queue_length", GAUGE, ("address", "slot"),
        "Connections that wait to be accepted. Nobody knows that of a unix socket.", _slots("queue"),
    ),
    Metric("reuseport_slot_queue_limit", GAUGE, ("address", "slot"), "How many may wait there.", _slots("limit")),
    Metric(
        "reuseport_listen_overflows_total", COUNTER, (),
        "Connections that found their queue full, at all listening sockets of this network namespace.",
        _single(lambda f: f.overflows),
    ),
    Metric("reuseport_workers", GAUGE, ("generation", "state"), "Workers.", _by_state),
    Metric(
        "reuseport_workers_wanted", GAUGE, ("generation",),
        "How many workers a generation should have: the one that serves, and the canary.",
        lambda f: [((g["number"],), g["wanted"]) for g in f.status["generations"] if g["stage"] in STAFFED],
    ),
    Metric(
        "reuseport_worker_restarts_total", COUNTER, ("reason",),
        "Workers that have ended and whose place another got, since the master began.",
        _words((CRASHED, *REASONS.values(), OTHER), lambda tally: tally.restarts),
    ),
    Metric(
        "reuseport_memory_bytes", GAUGE, ("generation", "kind"),
        "Memory of workers, zygotes, jobs' processes: pss shares out what is common, rss counts it for each.", _memory,
    ),
    Metric(
        "reuseport_jobs", GAUGE, ("generation", "state"), "Registered jobs; overdue: still there after their deadline.",
        _jobs,
    ),
    Metric(
        "reuseport_jobs_ended_total", COUNTER, ("outcome",),
        "Jobs that have ended, or were lost with their process, since the master began.",
        _words(("ended", "lost"), lambda tally: tally.jobs),
    ),
    Metric(
        "reuseport_hello_connections", GAUGE, (),
        "Connections to hello.sock that wait for their first message. Zygotes, workers and jobs' processes send it at "
        "once.", _single(lambda f: f.status["master"].get("unidentified")),
    ),
    Metric(
        "reuseport_hello_refused_total", COUNTER, ("reason",),
        "Connections to hello.sock that the master has closed before it knew the process. user: of another user; "
        "crowd: too many waited; silent: no message in time; malformed: the message was none; impostor: it was not "
        "from the process that had connected, or not about it.", _words(REFUSALS, lambda tally: tally.hellos),
    ),
    Metric(
        "reuseport_companions", GAUGE, ("generation", "companion", "state"),
        "Processes of companions: waiting (for their turn, or to be started again), starting (not ready yet), running "
        "(ready), draining, ending, ended.", _companions_by_state,
    ),
    Metric(
        "reuseport_companions_failing", GAUGE, ("generation", "companion"),
        "Processes among them that crash-loop, were not ready in time, or have failed for good, while their "
        "generation serves.", _companions(lambda one: bool(one["failing"])),
    ),
    Metric(
        "reuseport_companion_restarts_total", COUNTER, ("generation", "companion"),
        "How often a companion was started again because it had ended by itself. A master that adopts it counts anew.",
        _companions(lambda one: one["restarts"]),
    ),
    Metric(
        "reuseport_drain_age_seconds", GAUGE, ("generation",), "For how long a generation has been draining.", _drains,
    ),
    Metric(
        "reuseport_releases_total", COUNTER, ("outcome",),
        "Releases that have ended, since the master began. One that is taken_back had been serving before.",
        _words(OUTCOMES, lambda tally: tally.releases),
    ),
    Metric(
        "reuseport_release_duration_seconds", HISTOGRAM, (),
        "From the beginning of a release until its generation served, since the master began.", _release_durations,
    ),
    Metric(
        "reuseport_release_in_progress", GAUGE, (), "1 while a generation boots, else 0.",
        _single(lambda f: int(any(g["state"] == "booting" for g in f.status["generations"]))),
    ),
)
# fmt: on


def table() -> str:
    """The metrics as a table of docs/metrics.md."""
    lines = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for metric in METRICS:
        name = metric.name + ("_info" if metric.kind == INFO else "")
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        lines.append(f"| `{name}` | {metric.kind} | {labels} | {metric.help} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
