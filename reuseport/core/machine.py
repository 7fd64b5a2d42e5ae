"""The cluster's decisions: `step(state, event, now) -> (state, commands)`.

An event only writes down a fact (`facts`). What follows from the facts is then worked out by the policies
(`policies`), which look at nothing but the state and the time, and run until none of them finds anything left to do.
So it does not matter in which order facts arrive, nor which of them was missed: the same state leads to the same
commands. The master executes these in their order and decides nothing itself.

The rules that must hold whatever happens, and which the tests drive through arbitrary stories:

- a slot with a serving generation always has an acceptor, or one on its way;
- no old worker gets SIGTERM because of a release before every worker of the new generation is ready;
- a failed release changes nothing about the generations that served before it;
- a companion gets one stop signal, when its generation leaves, and an exclusive one never runs beside another;
- every release ends, and every drain ends when its workers have.
"""

from __future__ import annotations

from reuseport.core import companions
from reuseport.core import events as ev
from reuseport.core.facts import HANDLERS
from reuseport.core.model import DRAINING, FORKING, READY, SERVING, STAFFED, STANDBY, STARTING, Cluster
from reuseport.core.policies import (
    POLICIES,
    boot_overdue_at,
    confirmed_at,
    copy_overdue_at,
    promotion_overdue_at,
    standby_until,
)
from reuseport.core.turn import Turn, attendance, missing


def step(state: Cluster, event: ev.Event, now: float) -> tuple[Cluster, tuple[ev.Command, ...]]:
    """What the cluster becomes by `event` at time `now` (seconds, monotonic), and what must be done, in order."""
    turn = Turn(state, now)
    HANDLERS[type(event)](turn, event)
    while True:
        before = turn.state
        for policy in POLICIES:
            policy(turn)
        if turn.state == before:
            # An answer is the last act: who has it may do anything, kill the master even.
            return turn.state, tuple(sorted(turn.commands, key=lambda command: isinstance(command, ev.Answer)))


def wake_at(state: Cluster) -> float | None:
    """When a Tick is due, if nothing happens before: the earliest of all deadlines, or None."""
    times: list[float] = [at for at in (state.stop_at, state.stop_by) if at is not None]
    for g in state.generations.values():
        if (at := boot_overdue_at(g)) is not None:
            times.append(at)
        if (at := copy_overdue_at(state, g)) is not None:
            times.append(at)
        if g.state == SERVING:
            if g.askers and not g.verdict:
                times.append(confirmed_at(g))
            if state.having(STANDBY) and not g.verdict:
                times.append(standby_until(g))
        if g.state in STAFFED:
            if g.zygote is None:
                times.append(g.zygote_after)
            elif g.zygote.loaded and not g.zygote.leaving and missing(g):
                times.append(g.fork_after)
            times += [w.since + g.release.boot_timeout for w in g.having(FORKING, STARTING, READY).values()]
        if g.state == DRAINING:
            if g.pinned and not state.stopping and g.zygote and g.zygote.loaded and not g.zygote.leaving:
                times += [g.fork_after] if attendance(g).short else []
            times += [w.since + g.release.boot_timeout for w in g.having(FORKING, STARTING, READY).values()]
        if (at := promotion_overdue_at(g)) is not None:
            times.append(at)
        times += companions.due(state, g)
        times += [w.kill_at for w in g.workers.values() if w.kill_at is not None]
        if g.zygote is not None and g.zygote.kill_at is not None:
            times.append(g.zygote.kill_at)
    return min(times, default=None)
