"""Who is told of the numbers: whoever scrapes them (--metrics), and a statsd (--statsd-host)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from reuseport.master.exposition import render, wanted
from reuseport.master.figures import Look, look_of
from reuseport.master.loop import Loop
from reuseport.master.metrics import METRICS, Facts
from reuseport.master.scrape import Scrape, ScrapedAt, inherited, listen
from reuseport.master.statsd import Statsd
from reuseport.options import Settings


class Telling:
    """`facts()` is asked for at each scrape. Nobody is told anything before `open`, or `inherit`."""

    def __init__(self, settings: Settings, loop: Loop, facts: Callable[[], Facts]) -> None:
        self._settings = settings
        self._loop = loop
        self._facts = facts
        self._last: Facts | None = None  # during a rest, what was true when it began
        self._scrape: Scrape | None = None
        self._statsd: Statsd | None = None

    def open(self, umask: int, scraped_at: ScrapedAt | None = None) -> None:
        """`scraped_at` is where, if that is open already. OptionError where an address is not to be had."""
        settings = self._settings
        if settings.statsd_host:
            self._statsd = Statsd(settings)
        if settings.metrics:
            scraped_at = scraped_at or listen(settings.metrics, settings.where("metrics"), umask)
            self._scrape = Scrape(ScrapedAt(*scraped_at), self._loop, self._answer)

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

    def estate(self, lend: Callable[[int], int]) -> dict[str, Any]:
        """What the master goes on with behind an exec: the sockets, since a name server, say, may be away just now."""
        return {
            "scrape": self._scrape.estate(lend) if self._scrape is not None else None,
            "statsd": self._statsd.estate(lend) if self._statsd is not None else None,
        }

    def inherit(self, left: Mapping[str, Any]) -> None:
        if scrape := left["scrape"]:
            at = inherited(scrape["socket"], scrape["path"], scrape.get("file"))
            self._scrape = Scrape(at, self._loop, self._answer)
            self._scrape.inherit(scrape)
        if statsd := left["statsd"]:
            self._statsd = Statsd(self._settings, statsd)

    # --- beside another master ----------------------------------------------------------------------------------------

    def rest(self) -> None:
        """Answer nobody who comes from now on, see `Scrape.rest`. Who has come hears what is true now: another master
        may move the counters, and totals would seem to go back."""
        if self._scrape is not None:
            self._scrape.rest()
            self._last = self._facts()

    def go_on(self) -> None:
        """After a rest."""
        self._last = None
        if self._scrape is not None:
            self._scrape.go_on()

    def go_on_from(self, left: Mapping[str, Any]) -> None:
        """Of an estate what is no socket: that the statsd of another master knows all until then."""
        if self._statsd is not None and left["statsd"] and left["statsd"]["last"]:
            self._statsd.go_on_from(look_of(left["statsd"]["last"]))

    def leave(self, *, keep_path: bool) -> None:
        """Another master tells. `keep_path`: at the same unix socket."""
        if self._scrape is not None:
            self._scrape.close(keep_path=keep_path)

    def close(self, look: Look) -> str:
        """For the last time. Returns what is to be said of the socket's file, see `Scrape.close`."""
        self.tell(look, 0)
        return self._scrape.close() if self._scrape is not None else ""

    def _answer(self, accept: str) -> tuple[str, bytes]:
        content_type = wanted(accept)
        return content_type, render(METRICS, self._last or self._facts(), content_type)
