"""What the command line may ask: `QUESTIONS` has, for each word, who answers it.

An answer that takes a while, like a release's, comes from elsewhere, by the client that was handed on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from reuseport.core import events as ev
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


def _history(master: Master, client: Client, question: Question) -> None:
    client.done(True, history=master.releases.history.shown())


def _stop(master: Master, client: Client, question: Question) -> None:
    client.watching = True
    quick = bool(question.get("now"))
    timeout = 0.0 if quick else master.releases.settings.graceful_timeout
    master.events.append(ev.StopAsked(quick=quick, timeout=timeout))


def _tenants(master: Master, client: Client, question: Question) -> None:
    tenant = str(question.get("tenant", ""))
    ok, answer = master.tenants.answer(question["do"], tenant, master.cluster, master.releases.settings)
    client.done(ok, **answer)


def _wait(question: Question) -> str:
    return str(question.get("wait", "ready"))


def whole_status(master: Master) -> dict[str, Any]:
    """What `reuseport status --json` prints."""
    about = {
        "pid": os.getpid(),
        "name": master.first.name,
        "version": __version__,
        "started": master.started,
        "uptime": round(time.time() - master.started, 3),
        "run_dir": master.run_dir.path,
        "addresses": master.slots.addresses,
        "earlier": master.predecessors.pids,
        "takeover": master.succession.shown(),
    }
    whole = status.of(master.cluster, master.processes, master.board, about, time.monotonic())
    return {**whole, "releases": master.releases.shown(), "lost": master.losses.shown()}


QUESTIONS: dict[str, Callable[[Master, Client, Question], None]] = {
    "status": _status,
    "release": _release,
    "promote": _promote,
    "rollback": _rollback,
    "history": _history,
    "stop": _stop,
    "tenants": _tenants,
    "hold": _tenants,
    "move": _tenants,
}
