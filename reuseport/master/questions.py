"""What the command line may ask: `QUESTIONS` has, for each kind of question, the function that answers it.

An answer that takes a while, like a release's, comes from elsewhere, by the client that was handed on.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from reuseport.core import events as ev
from reuseport.core.model import Asker
from reuseport.ipc.messages import (
    AskAbort,
    AskDrain,
    AskHistory,
    AskHold,
    AskMove,
    AskPromote,
    AskQuarantine,
    AskRelease,
    AskRollback,
    AskStatus,
    AskStop,
    AskTenants,
    AskUpgrade,
    AskWho,
    Question,
)
from reuseport.master import status
from reuseport.master.control import Client
from reuseport.master.history import rfc3339
from reuseport.master.releases import Operator
from reuseport.master.tenants import SHOWN, trial_of
from reuseport.version import __version__

if TYPE_CHECKING:
    from reuseport.master.main import Master



def _status(master: Master, client: Client, question: AskStatus) -> None:
    client.done(True, status=whole_status(master))


def _release(master: Master, client: Client, question: AskRelease) -> None:
    for hint in master.tenants.hints(question.canary["tenants"], master.cluster) if question.canary else ():
        client.warn(hint)
    master.releases.ask(client, question.wait, question.label, question.canary, _operator(client, question))


def _promote(master: Master, client: Client, question: AskPromote) -> None:
    master.releases.promote(client, question.wait, _operator(client, question), question.came_from or 0)


def _rollback(master: Master, client: Client, question: AskRollback) -> None:
    operator = _operator(client, question)
    master.releases.back(client, question.generation, question.wait, operator, question.came_from or 0)


def _abort(master: Master, client: Client, question: AskAbort) -> None:
    master.releases.abort(client, question.wait, _operator(client, question))


def _who(master: Master, client: Client, question: AskWho) -> None:
    """Which server this is, for a command that says on which one it acts."""
    client.done(True, name=master.first.name, pid=os.getpid(), run_dir=master.run_dir.path)


def _await_drain(master: Master, client: Client, question: AskDrain) -> None:
    """What a client asks who has waited for that at a master from which this one has taken over."""
    client.watching = True
    master.events.append(ev.DrainAwaited(Asker(client.name, "drained"), question.generation))


def _history(master: Master, client: Client, question: AskHistory) -> None:
    samples = {"samples": master.numbers.samples.encoded()} if question.samples else {}
    client.done(True, samples, history=master.releases.history.shown())


def _stop(master: Master, client: Client, question: AskStop) -> None:
    client.watching = True
    master.events.append(ev.StopAsked(quick=True) if question.now else master.stop_asked())


def _upgrade(master: Master, client: Client, question: AskUpgrade) -> None:
    master.upgrade.ask(client)


def _tenants(master: Master, client: Client, question: AskTenants | AskHold | AskMove) -> None:
    tenant = "" if isinstance(question, AskTenants) else question.tenant
    ok, answer = master.tenants.answer(question.kind, tenant, master.cluster, master.releases.settings)
    client.done(ok, **answer)


def _quarantine(master: Master, client: Client, question: AskQuarantine) -> None:
    if not question.clear:
        client.done(True, quarantine=master.quarantine.shown())
        return
    count = master.quarantine.clear()
    if count:
        master.log.write("info", f"quarantine: {count} cleared by an operator")
    client.done(True, cleared=count, text=f"{count} request{'s' * (count != 1)} cleared")


def _operator(client: Client, question: Question) -> Operator:
    """Who asks."""
    seen_at = None
    if question.started is not None:
        ago = time.clock_gettime(time.CLOCK_BOOTTIME) - question.started
        seen_at = time.monotonic() - max(0.0, ago)
    by = f"reuseport {question.kind}" + (f" ({question.by})" if question.by else "")
    facts = {
        "uid": client.uid,
        "user": question.user or None,
        "sudo_user": question.sudo_user or None,
        "host": question.host or None,
        "by": question.on_behalf or None,
    }
    return Operator(by, question.session, seen_at, facts)


def whole_status(master: Master) -> dict[str, Any]:
    """What `reuseport status --json` prints."""
    about = {
        "pid": os.getpid(),
        "name": master.first.name,
        "version": __version__,
        "python": sys.version.split()[0],
        "started": master.started,
        "started_at": rfc3339(master.started),
        "uptime": round(time.time() - master.started, 3),
        "run_dir": master.run_dir.path,
        "addresses": master.slots.addresses,
        "metrics": master.telling.address,
        "earlier": master.predecessors.pids,
        "takeover": master.succession.shown(),
        "unidentified": master.switchboard.hellos.waiting,
    }
    whole = status.of(master.cluster, master.processes, master.board, about, time.monotonic())
    quarantined = master.quarantine.counts()
    for g in whole["generations"]:
        g["numbers"] = master.numbers.shown(g["number"])
        g["quarantined"] = quarantined[g["number"]]
        held = master.tenants.held_in(g["number"])
        g["waits_for"] |= {"held": held[:SHOWN], "more_held": max(0, len(held) - SHOWN)}
        g["canary"] = trial_of(master.cluster.generations[g["number"]]) if g["state"] == "canary" else None
    whole |= {"numbers": master.numbers.shown(), "slots": master.slots.shown()}
    whole |= {"quarantine": master.quarantine.shown()}
    return {**whole, "releases": master.releases.shown(), "lost": master.losses.shown()}


QUESTIONS: dict[type[Question], Callable[[Master, Client, Any], None]] = {
    AskStatus: _status,
    AskRelease: _release,
    AskPromote: _promote,
    AskRollback: _rollback,
    AskAbort: _abort,
    AskWho: _who,
    AskDrain: _await_drain,
    AskHistory: _history,
    AskStop: _stop,
    AskUpgrade: _upgrade,
    AskQuarantine: _quarantine,
    AskTenants: _tenants,
    AskHold: _tenants,
    AskMove: _tenants,
}
