"""The master's log. Writing to it never blocks: a full pipe or a stuck terminal must not hold up a release.

So no line of the master's goes through `logging`, whose handlers are the application's and may wait for anything.
"""

from __future__ import annotations

from reuseport.ipc.logfile import open_file
from reuseport.ipc.logline import LEVELS, form_of
from reuseport.ipc.outlet import Outlet
from reuseport.ipc.post import Post
from reuseport.options import Settings, logplace
from reuseport.options.checks import find_user


class Log(Outlet):
    """Goes where --log-file says. When lines were lost, because nobody read them, a line says so."""

    def __init__(self, settings: Settings, post: Post | None = None) -> None:
        self._threshold = LEVELS[settings.log_level]
        place = logplace.parse(settings.log_file)
        ids = find_user(settings)
        super().__init__(
            settings.log_file,
            place.number if place.kind == logplace.DESCRIPTOR else 2,
            post,
            lambda path: open_file(path, ids[:1] if ids else ()),
        )
        self._form = form_of(self.place, settings)
        self._formed = self.place.by_datagrams or settings.capture_output

    def write(self, level: str, text: str) -> None:
        if LEVELS[level] >= self._threshold:
            self._say("master", level, text)

    def printed(self, generation: int, data: bytes) -> None:
        """What a generation has printed while it boots: as it is, unless each line is to tell whose it is."""
        if self._formed:
            for line in data.decode(errors="backslashreplace").splitlines():
                self._say(str(generation), "output", line)
        else:
            self.raw(data)

    def _say(self, who: str, level: str, text: str) -> None:
        for line in self._form(who, level, text):
            self.raw(line)

    def say(self, who: str, text: str) -> None:
        """What somebody else has printed. No level is known of it, so --log-level lets it pass."""
        self._say(who, "output", text)

    def notice(self, lost: int) -> bytes:
        # One entry: a daemon takes no two in one datagram.
        return self._form("master", "error", f"{lost} lines of this log were lost: nobody read it")[0]
