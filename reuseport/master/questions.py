"""What the command line may ask: `QUESTIONS` has, for each word, who answers it.

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
from reuseport.master import status
from reuseport.master.control import Client
from reuseport.version import __version__

if TYPE_CHECKING:
    from reuseport.master.main import Master

Question = dict[str, Any]


def _status(master: Master, client: Client, question: Question) -> None:
    client.done(True, status=whole_status(master))


def _release(master: Master, client: Client, question: Question) -> None:
    canary = question.get("canary")
    master.releases.ask(client, _wait(question), str(question.get("label", "")), canary)


def _promote(master: Master, client: Client, question: Question) -> None:
    master.releases.promote(client, _wait(question))


def _rollback(master: Master, client: Client, question: Question) -> None:
    number = question.get("generation")
    master.releases.back(client, None if number is None else int(number), _wait(question))


def _await_drain(master: Master, client: Client, question: Question) -> None:
    """What a client asks who has waited for that at a master from which this one has taken over."""
    client.watching = True
    master.events.append(ev.DrainAwaited(Asker(client.name, "drained"), int(question["generation"])))


def _history(master: Master, client: Client, question: Question) -> None:
    samples = {"samples": master.numbers.samples.encoded()} if question.get("samples") else {}
    client.done(True, samples, history=master.releases.history.shown())


def _stop(master: Master, client: Client, question: Question) -> None:
    client.watching = True
    master.events.append(ev.StopAsked(quick=True) if question.get("now") else master.stop_asked())


def _upgrade(master: Master, client: Client, question: Question) -> None:
    master.upgrade.ask(client)


def _tenants(master: Master, client: Client, question: Question) -> None:
    tenant = str(question.get("tenant", ""))
    ok, answer = master.tenants.answer(question["do"], tenant, master.cluster, master.releases.settings)
    client.done(ok, **answer)


def _quarantine(master: Master, client: Client, question: Question) -> None:
    if not question.get("clear"):
        client.done(True, quarantine=master.quarantine.shown())
        return
    count = master.quarantine.clear()
    if count:
        master.log.write("info", f"quarantine: {count} cleared by an operator")
    client.done(True, cleared=count, text=f"{count} request{'s' * (count != 1)} cleared")


def _wait(question: Question) -> str:
    return str(question.get("wait", "ready"))


def whole_status(master: Master) -> dict[str, Any]:
    """What `reuseport status --json` prints."""
    about = {
        "pid": os.getpid(),
        "name": master.first.name,
        "version": __version__,
        "python": sys.version.split()[0],
        "started": master.started,
        "uptime": round(time.time() - master.started, 3),
        "run_dir": master.run_dir.path,
        "addresses": master.slots.addresses,
        "metrics": master.telling.address,
        "earlier": master.predecessors.pids,
        "takeover": master.succession.shown(),
    }
    whole = status.of(master.cluster, master.processes, master.board, about, time.monotonic())
    quarantined = master.quarantine.counts()
    for g in whole["generations"]:
        g["numbers"] = master.numbers.shown(g["number"])
        g["quarantined"] = quarantined[g["number"]]
    whole |= {"numbers": master.numbers.shown(), "slots": master.slots.shown()}
    whole |= {"quarantine": master.quarantine.shown()}
    return {**whole, "releases": master.releases.shown(), "lost": master.losses.shown()}


QUESTIONS: dict[str, Callable[[Master, Client, Question], None]] = {
    "status": _status,
    "release": _release,
    "promote": _promote,
    "rollback": _rollback,
    "await drain": _await_drain,
    "history": _history,
    "stop": _stop,
    "upgrade": _upgrade,
    "quarantine": _quarantine,
    "tenants": _tenants,
    "hold": _tenants,
    "move": _tenants,
}
