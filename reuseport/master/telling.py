"""Who is told of the numbers: whoever scrapes them (--metrics), and a statsd (--statsd-host)."""

from __future__ import annotations

from collections.abc import Callable

from reuseport.master.exposition import render, wanted
from reuseport.master.figures import Look
from reuseport.master.loop import Loop
from reuseport.master.metrics import METRICS, Facts
from reuseport.master.scrape import Scrape
from reuseport.master.statsd import Statsd
from reuseport.options import Settings


class Telling:
    """`facts()` is asked for at each scrape. OptionError where an address is not to be had."""

    def __init__(self, settings: Settings, umask: int, loop: Loop, facts: Callable[[], Facts]) -> None:
        self._facts = facts
        self._statsd = Statsd(settings) if settings.statsd_host else None
        self._scrape: Scrape | None = None
        if settings.metrics:
            self._scrape = Scrape(settings.metrics, settings.where("metrics"), umask, loop, self._answer)

    @property
    def address(self) -> str | None:
        """Where the metrics are, if anywhere."""
        return self._scrape.address if self._scrape else None

    def tell(self, look: Look, workers: int) -> None:
        """To be called each second; `workers`: how many accept."""
        if self._scrape is not None:
            self._scrape.look()
        if self._statsd is not None:
            self._statsd.look(look, workers)

    def close(self, look: Look) -> None:
        """For the last time."""
        self.tell(look, 0)
        if self._scrape is not None:
            self._scrape.close()

    def _answer(self, accept: str) -> tuple[str, bytes]:
        content_type = wanted(accept)
        return content_type, render(METRICS, self._facts(), content_type)
