"""Signals: a handler only enqueues, and the loop hears it: `MEANINGS` has, for each, what it asks for."""

from __future__ import annotations

import contextlib
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from reuseport.core import events as ev
from reuseport.ipc.inherited import SIGNALS
from reuseport.master.releases import Operator

if TYPE_CHECKING:
    from reuseport.master.main import Master


# The second of them means more than the first. Any other that waits already says all that there is to say, as in the
# kernel: so whoever sends without a pause cannot keep the master from everything else.
COUNTED = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGTTIN, signal.SIGTTOU})


class Signals:
    """They wait from the moment this is made, before the master has written its pid file, until `listen`."""

    def __init__(self, master: Master) -> None:
        self._master = master
        self._come: deque[int] = deque()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    def listen(self) -> None:
        """From now on each makes the loop's one blocking call return, by the wake-up fd (signal(7))."""
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

        def drain() -> None:
            with contextlib.suppress(BlockingIOError):
                while os.read(reader, 4096):
                    pass

        self._master.loop.watch(reader, drain)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, lambda received, _: self._take(received))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def _take(self, number: int) -> None:
        if number in COUNTED or number not in self._come:
            self._come.append(number)

    def come(self) -> Iterator[int]:
        """Those that have come until now, and none that comes while they are acted on."""
        for _ in range(len(self._come)):
            yield self._come.popleft()

    def hear(self) -> None:
        """Do what those mean that have come."""
        for number in self.come():
            meaning = MEANINGS[number]
            self._master.loop.call(lambda meaning=meaning: meaning(self._master))


def _reopen_logs(master: Master) -> None:
    try:
        master.log.reopen()
    except OSError as error:
        master.log.write("error", f"the log could not be opened again, and goes on in the old file: {error}")
    master.log_files.reopen(g.release.recipe for g in master.cluster.generations.values())
    master.switchboard.pass_logs(rotated=True)


MEANINGS: dict[int, Callable[[Master], None]] = {
    signal.SIGCHLD: lambda master: master.processes.reap(),
    signal.SIGHUP: lambda master: master.releases.ask(None, operator=Operator("SIGHUP")),
    signal.SIGTERM: lambda master: master.events.append(master.stop_asked(insist=True)),
    signal.SIGINT: lambda master: master.events.append(ev.StopAsked(quick=True)),
    signal.SIGQUIT: lambda master: master.events.append(ev.StopAsked(quick=True)),
    signal.SIGTTIN: lambda master: master.events.append(ev.ScaleAsked(1)),
    signal.SIGTTOU: lambda master: master.events.append(ev.ScaleAsked(-1)),
    signal.SIGUSR1: _reopen_logs,
    signal.SIGUSR2: lambda master: master.upgrade.ask(),
}
