"""A log for errors that come again several times a second: a worker without descriptors must not fill the disk."""

from __future__ import annotations

import time
from collections.abc import Callable

SECONDS = 10.0  # between two entries of the same text
TEXTS = 100  # texts that are remembered


class Seldom:
    """Passes the first entry of each text on, and then one every SECONDS seconds."""

    def __init__(self, log: Callable[[str, str], None], now: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._now = now
        self._last: dict[str, float] = {}

    def __call__(self, level: str, text: str) -> None:
        now = self._now()
        if now < self._last.get(text, float("-inf")) + SECONDS:
            return
        if len(self._last) >= TEXTS:
            self._last.clear()
        self._last[text] = now
        self._log(level, text)
