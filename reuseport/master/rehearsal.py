"""The trial's own side of an upgrade in place: could a master of this version go on from the state of the running one?

It is tried out by making one, of the real estate and the real files. Only the descriptors are others: each is a
stand-in at which nobody listens, so whatever the new master would say or take is said to nobody, and taken from nobody.
What it would do to its log or to its supervisor is kept from them likewise. So an estate of another shape is found
before the exec, whether or not somebody thought of `estate.VERSION`.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from reuseport.core import events as ev
from reuseport.core import machine
from reuseport.ipc.rundir import RunDirError
from reuseport.master import estate
from reuseport.master.estate import Estate, EstateError
from reuseport.options import OptionError
from reuseport.options.checks import find_user

if TYPE_CHECKING:
    from reuseport.master.main import Master

Make = Callable[[Estate], "Master"]

NOBODY = "@reuseport-rehearsal"  # a supervisor's address in the abstract namespace, where no supervisor is


def run(said: Mapping[str, Any], make: Make) -> int:
    """`said` names the descriptors of the state and of the answer. What this raises is an answer, too: a traceback."""
    error = rehearse(said["state"], make)
    with open(said["answer"], "w", encoding="utf-8") as file:
        json.dump({"v": estate.VERSION, "version": estate.this_version(), "error": error}, file)
    return 1 if error else 0


def rehearse(state: int, make: Make) -> str:
    """Whether a master that `make` makes could go on from there; "", or why not. Changes nothing.

    What the new master would open is opened, what the configuration says now is read, each of its parts gets its own,
    and the core takes a step.
    """
    data = estate.load(state)
    try:
        left = estate.estate_of(data)
        _stand_in(left.fds)
        find_user(left.first)
        left.renewed()
        estate.open_log(left.first)
        master = make(estate.estate_of(_unheard(data)))
    except (EstateError, OptionError, RunDirError) as error:
        return str(error)
    machine.step(master.cluster, ev.Tick(), time.monotonic())
    return ""


def _stand_in(fds: tuple[int, ...]) -> None:
    """Open something under each of these numbers that a loop can watch, and to which anything can be sent."""
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # Out of their way; the second one stays open until the process ends, so that whoever sends finds a peer.
    stand_in, _ = (fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, max(fds) + 1) for one in pair)
    for one in pair:
        one.close()
    os.set_blocking(stand_in, False)
    for fd in fds:
        os.dup2(stand_in, fd, inheritable=False)


def _unheard(data: Mapping[str, Any]) -> dict[str, Any]:
    """The same estate, of a master that neither a log nor a supervisor hears of."""
    first, notifier = data["first"], data["parts"]["notifier"]
    supervision = notifier["supervision"]
    if supervision.get("notify"):
        supervision = {**supervision, "notify": NOBODY}
    return {
        **data,
        "first": {**first, "values": {**first["values"], "log_file": os.devnull}},
        "parts": {**data["parts"], "notifier": {**notifier, "supervision": supervision}},
    }
