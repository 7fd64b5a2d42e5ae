"""The handle on the clients: starts their process, tells it what to send, and keeps the account of what it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from proving.accounting import Account, Window

SCRIPTS = Path(__file__).resolve().parent.parent

# The first moments, in which the clients come one by one.
SETTLING = 0.5

# All kinds at once, about 150 requests a second: what a busy small company's server sees.
MIXED: dict[str, dict[str, float]] = {
    "keep-alive": {"users": 8, "every": 0.1, "requests": 40},
    "one-shot": {"rate": 50},
    "idle": {"users": 8, "seconds": 4.0},
    "slow": {"users": 2, "seconds": 3.0, "every": 0.5},
    "upload": {"users": 1, "seconds": 1.0, "every": 0.3},
    "stream": {"users": 2, "seconds": 2.0, "every": 0.3},
}


class Load:
    """Clients at work against one address. Use the account only under `looking()`: a thread writes it."""

    def __init__(self, address: tuple[str, int], *, seed: int = 1) -> None:
        self.account = Account(time.monotonic())
        self.busy = Window(time.monotonic(), float("inf"))  # while new requests are sent
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "proving.clients", address[0], str(address[1]), str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(SCRIPTS)},
            text=True,
        )
        self._reader = threading.Thread(target=self._read, name="account", daemon=True)
        self._reader.start()

    def __enter__(self) -> Load:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    @contextmanager
    def looking(self) -> Iterator[Account]:
        """The account, standing still meanwhile."""
        with self._lock:
            yield self.account

    def begin(self, mix: Mapping[str, Mapping[str, float | str]]) -> None:
        self.busy = Window(time.monotonic() + SETTLING, float("inf"))
        for kind, plan in mix.items():
            self._tell({"do": "begin", "kind": kind, "plan": dict(plan)})

    def once(self, kind: str, target: str, *, planned: float = 0.0, tenant: str = "") -> None:
        """One request, on a connection of its own."""
        ask = {"kind": kind, "target": target, "planned": planned, "keep": False, "tenant": tenant}
        self._tell({"do": "once", "ask": ask})

    def killed(self, pid: int, ports: Iterable[int]) -> None:
        with self._lock:
            self.account.kill(pid, ports, time.monotonic())

    def served(self, generation: int) -> None:
        with self._lock:
            self.account.serve(generation, time.monotonic())

    def finish(self, within: float = 60.0) -> Account:
        """Send nothing new, wait for the answers that are due, and close the account. It is then nobody else's."""
        self.busy = Window(self.busy.start, time.monotonic())
        self._tell({"do": "stop"})
        self._done.wait(within)
        with self._lock:
            self.account.close(time.monotonic())
        return self.account

    def _tell(self, command: dict[str, object]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise RuntimeError("the clients' process ended by itself: its error is above") from None

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            what, *told = json.loads(line)
            if what == "done":
                break
            with self._lock:
                getattr(self.account, what)(*told)
        self._done.set()
