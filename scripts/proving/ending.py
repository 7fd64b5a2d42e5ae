"""How a script ends: in order, whoever asks it to. Its server and its clients must not outlive it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from types import FrameType

from proving.server import ServerTrouble


def orderly(script: Callable[[], int]) -> int:
    """Run the script; a signal or a server that fails it ends it through its own `finally`s, with one clear line."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    try:
        return script()
    except KeyboardInterrupt:
        print("stopped; the server and the clients have been ended", file=sys.stderr)
        return 128 + signal.SIGINT
    except ServerTrouble as trouble:
        print(f"the server is in trouble: {trouble}", file=sys.stderr)
        return 1
