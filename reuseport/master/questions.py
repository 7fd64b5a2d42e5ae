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
from reuseport.master.releases import Operator
from reuseport.options.arguments import one_line
from reuseport.version import __version__

if TYPE_CHECKING:
    from reuseport.master.main import Master

Question = dict[str, Any]
LONGEST_NAME = 200  # characters of what a client says about its operator


def _status(master: Master, client: Client, question: Question) -> None:
    client.done(True, status=whole_status(master))


def _release(master: Master, client: Client, question: Question) -> None:
    canary = question.get("canary")
    master.releases.ask(client, _wait(question), str(question.get("label", "")), canary, _operator(question))


def _promote(master: Master, client: Client, question: Question) -> None:
    master.releases.promote(client, _wait(question), _operator(question), _came_from(question))


def _rollback(master: Master, client: Client, question: Question) -> None:
    number = question.get("generation")
    number = None if number is None else int(number)
    master.releases.back(client, number, _wait(question), _operator(question), _came_from(question))


def _abort(master: Master, client: Client, question: Question) -> None:
    master.releases.abort(client, _wait(question), _operator(question))


def _who(master: Master, client: Client, question: Question) -> None:
    """Which server this is, for a command that says on which one it acts."""
    client.done(True, name=master.first.name, pid=os.getpid(), run_dir=master.run_dir.path)


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


def _came_from(question: Question) -> int:
    return int(question.get("from") or 0)


def _operator(question: Question) -> Operator:
    """Who asks. `started` is the time at which the command was started, in seconds of CLOCK_BOOTTIME."""
    who = one_line(str(question.get("by") or ""))[:LONGEST_NAME]
    started = question.get("started")
    seen_at = None
    if isinstance(started, int | float):
        ago = time.clock_gettime(time.CLOCK_BOOTTIME) - started
        seen_at = time.monotonic() - max(0.0, ago)
    by = f"reuseport {question['do']}" + (f" ({who})" if who else "")
    return Operator(by, str(question.get("session") or "")[:LONGEST_NAME], seen_at)


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
        "unidentified": master.switchboard.hellos.waiting,
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
    "abort": _abort,
    "who": _who,
    "await drain": _await_drain,
    "history": _history,
    "stop": _stop,
    "upgrade": _upgrade,
    "quarantine": _quarantine,
    "tenants": _tenants,
    "hold": _tenants,
    "move": _tenants,
}
