"""What `reuseport status --json` shows. Keys are only ever added: other programs read this."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from reuseport.core.companions import failing
from reuseport.core.model import (
    ACCEPTING,
    ALIVE,
    BOOTING,
    KILLED,
    LAUNCHED,
    LEAVING,
    RUNNING,
    STOPPING,
    TOLD,
    YOUTH,
    ZYGOTE,
    Cluster,
    Companion,
    Generation,
    Key,
    Worker,
    slots_of,
)
from reuseport.ipc import scoreboard
from reuseport.master.memory import Looks
from reuseport.master.processes import Process, Processes


def of(
    cluster: Cluster, processes: Processes, board: scoreboard.Scoreboard, master: Mapping[str, Any], now: float
) -> dict[str, Any]:
    """The whole status, JSON-able. `master` is what the master says of itself."""
    serving = cluster.serving
    state = "stopping" if cluster.leaving else "running" if serving else "booting"
    looks = Looks()
    return {
        "master": {**master, "state": state, "workers_wanted": serving.wanted if serving else 0},
        "serving": serving.number if serving else None,
        "generations": [
            _generation(cluster.generations[n], processes, board, cluster.slots, looks, now)
            for n in sorted(cluster.generations)
        ],
    }


def _generation(
    g: Generation, processes: Processes, board: scoreboard.Scoreboard, slots: int, looks: Looks, now: float
) -> dict[str, Any]:
    workers = [_worker(g, n, w, processes, board, slots, looks, now) for n, w in sorted(g.workers.items())]
    companions = [_companion(g, c, now) for _, c in sorted(g.companions.items())]
    zygote = processes.get(Key(g.number, ZYGOTE)) if g.zygote else None
    loaded = bool(g.zygote and g.zygote.loaded)
    of_zygote = looks.at(zygote, boots=not loaded) if zygote else None
    return {
        "number": g.number,
        "state": "booting" if g.state in BOOTING else g.state,
        "stage": g.state,
        "directory": g.release.recipe.get("directory", ""),
        "interpreter": g.release.recipe.get("interpreter", ""),
        "packages": zygote.packages if zygote else None,  # None: its zygote has told nothing, or has gone
        "app": g.release.recipe.get("app"),
        "label": g.release.recipe.get("label", ""),
        "source": g.release.source,
        "zygote": {"pid": zygote.pid, "loaded": loaded, "memory": of_zygote} if zygote else None,
        "age": round(now - g.born, 3),
        "since": round(now - g.since, 3),
        "failure": f"{g.ended_as} {g.failure}" if g.ended_as else g.failure,
        "by": g.release.by,
        "operator": dict(g.release.operator),
        "wanted": g.wanted,
        "memory": sum(w["memory"]["pss"] or w["memory"]["rss"] for w in workers)
        + (of_zygote["pss"] if of_zygote else 0),  # and not its resident memory, which is the workers', too
        "workers": workers,
        "companions": companions,
        "waits_for": {
            "requests": sum(w["requests"]["active"] for w in workers),
            "connections": sum(max(0, w["connections"] - w["requests"]["active"]) for w in workers),
            "jobs": [{**job, "worker": w["id"]} for w in workers for job in w["jobs_now"]],
            "companions": [c["id"] for c in companions if c["pid"]],
        },
    }


def _worker(
    g: Generation,
    number: int,
    w: Worker,
    processes: Processes,
    board: scoreboard.Scoreboard,
    slots: int,
    looks: Looks,
    now: float,
) -> dict[str, Any]:
    process = processes.get(Key(g.number, number))
    counters = figures(process, board)
    owns = slots_of(w.place, g.wanted, slots) if w.state in (TOLD, ACCEPTING) else ()
    return {
        "id": str(Key(g.number, number)),
        "pid": w.pid,
        "place": w.place,
        "slots": list(owns),
        "state": "blocked" if w.blocked else _STATES.get(w.state, w.state),
        "age": round(now - process.started, 3) if process and process.pid else 0.0,
        "requests": {
            "active": counters["requests_active"],
            "waiting": counters["requests_waiting"],
            "total": counters["requests_total"],
        },
        "connections": counters["connections"],
        "accepted": counters["accepted"],
        "stolen": counters["stolen"],
        "taken": counters["taken"],
        "errors": counters["errors"],
        "warmups": {"total": counters["warmups"], "errors": counters["warmup_errors"]},
        "memory": (
            looks.at(process) if process and process.key.is_job else {"rss": counters["rss"], "pss": counters["pss"]}
        ),
        "jobs": counters["jobs"] or (len(process.jobs) if process and process.key.is_job else 0),
        "jobs_now": jobs_of(process) if process else [],
        "retiring": w.retiring,
    }


def _companion(g: Generation, c: Companion, now: float) -> dict[str, Any]:
    """`age` is in seconds, of its process or of its stop signal. `why`: why it waits or is not ready, or how it ended
    last. `readiness`: how it shows that it is ready. `failing`: see `core.companions.failing`. `status`: what its
    process says of itself (STATUS=)."""
    return {
        "id": f"{g.number}.{c.label}",
        "name": c.terms.name,
        "pid": c.pid,
        "state": _COMPANION_STATES.get(c.state, c.state),
        "exclusive": c.terms.exclusive,
        "age": round(now - c.since, 3) if c.state in ALIVE else 0.0,
        "restarts": c.restarts,
        "why": c.why,
        "readiness": c.terms.ready,
        "ready": c.state == RUNNING,
        "failing": failing(g, c, now),
        "status": c.status,
    }


def waits_for(
    cluster: Cluster, number: int, processes: Processes, board: scoreboard.Scoreboard, held: Sequence[str] = ()
) -> tuple[int, list[str]]:
    """How many requests, and which jobs, companions and `held` tenants, a drain waits for, in words that do not change
    while nothing ends."""
    work = work_of(cluster.generations[number], processes, board)
    jobs = [f"job {job['name']!r}" + (f" of {job['tenant']}" if job["tenant"] else "") for job in work["jobs"]]
    jobs += [f"companion {name}" for name in work["companions"]]
    return work["requests"], jobs + [f"tenant {tenant} is held here" for tenant in held]


def work_of(g: Generation, processes: Processes, board: scoreboard.Scoreboard) -> dict[str, Any]:
    """The `requests` that a generation has, its `jobs`, and its `companions` by name."""
    found = [p for worker in g.workers if (p := processes.get(Key(g.number, worker)))]
    return {
        "requests": sum(figures(p, board)["requests_active"] for p in found),
        "jobs": [job for p in found for job in jobs_of(p)],
        "companions": [f"{g.number}.{c.label}" for c in g.company.values()],
    }


def jobs_of(process: Process) -> list[dict[str, Any]]:
    """The jobs that a process has told of, oldest first; ages in seconds."""
    return sorted((job_of(process, job) for job in process.jobs.values()), key=lambda job: -job["age"])


def job_of(process: Process, job: Mapping[str, Any]) -> dict[str, Any]:
    """A job that a process has told of, as `status` shows it."""
    now = time.time()
    return {
        "name": job["name"],
        "tenant": job["tenant"],
        "age": round(now - job["started"], 3),
        "progress": job["fraction"],
        "text": job["text"],
        "where": job.get("where", ""),
        "pid": process.pid,
        "deadline": job.get("deadline"),
        "left": None if job.get("deadline") is None else round(job["started"] + job["deadline"] - now, 3),
        "overdue": bool(job.get("overdue")),
    }


def told(job: Mapping[str, Any]) -> str:
    """A job in a few words."""
    return f"job {job['name']!r}" + (f" of {job['tenant']}" if job["tenant"] else "") + f", {job['age']:.0f} s"


_COMPANION_STATES = {LAUNCHED: "starting", YOUTH: "starting", STOPPING: "draining", KILLED: "ending"}
_STATES = {ACCEPTING: "serving", LEAVING: "draining", TOLD: "ready", "forking": "starting", "quitting": "ending"}


def figures(process: Process | None, board: scoreboard.Scoreboard) -> dict[str, int]:
    """The counters of a worker's row by name; zeros where it has none."""
    if process is None or process.row < 0:
        return dict.fromkeys(scoreboard.NAMES, 0)
    row = board.row(process.row)
    return {name: row[field] for name, field in scoreboard.NAMES.items()}
