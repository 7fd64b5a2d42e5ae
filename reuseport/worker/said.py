"""What a worker, or a job's process, says: its log, and with --capture-output what the application prints.

Both go straight to --log-file, each line with whose it is. Only where --log-config configures a logger for it does the
log go through Python's logging; what is printed never does, since a handler that prints would hear itself.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable
from typing import Any

from reuseport.ipc.inherited import STDOUT_COPY
from reuseport.ipc.logfile import Passed
from reuseport.ipc.logline import LEVELS, LOGGED, form_of, plain
from reuseport.ipc.post import Post
from reuseport.options import Settings, logplace


class Said:
    """Any thread may call it: `said(level, text)`. `who` is the process's id. Whoever has a logger sets `logger`.

    `passed` has the files that the master has opened. `boot_output`: while the generation boots, the descriptor of its
    boot log, whose end the asker of the release sees if the release fails.
    """

    def __init__(self, settings: Settings, who: str, passed: Passed | None = None) -> None:
        self._who = who
        self._threshold = LEVELS[settings.log_level]
        self._path = settings.log_file
        self._place = logplace.parse(settings.log_file)
        self._form = form_of(self._place, settings)
        self._passed = passed or Passed()
        self._fd = STDOUT_COPY if self._place.number == 1 else 2
        self._owns_fd = False
        self._post: Post | None = None
        self.logger: Callable[[str, str], None] | None = None
        self.boot_output: int | None = None
        self.reopen()

    def __call__(self, level: str, text: str) -> None:
        if self.boot_output is not None and LEVELS[level] >= LEVELS["warning"] and not self._prints:
            with contextlib.suppress(OSError):  # a full disk: the log may have room
                _write_all(self.boot_output, b"".join(LOGGED + line for line in plain(self._who, level, text)))
        if self.logger is not None:
            self.logger(level, text)
        elif LEVELS[level] >= self._threshold:
            self._write(level, text)

    def printed(self, stream: str, text: str) -> None:
        """The application has printed whole lines: no --log-level filters those."""
        for line in text.splitlines():
            self._write(stream, line)

    def _write(self, level: str, text: str) -> None:
        with contextlib.suppress(OSError):  # nobody reads the log any more, or not so fast: nowhere to say so
            for entry in self._form(self._who, level, text):
                if self._post is None:
                    os.write(self._fd, entry)
                else:
                    self._post.send(entry)

    @property
    def _prints(self) -> bool:
        """Whether the log goes to a descriptor that is the boot log's while the generation boots."""
        return self.logger is None and self._post is None and self._fd == 2

    def reopen(self) -> None:
        """As after a rotation."""
        if self._place.kind == logplace.STREAM or self._place.number in (1, 2):
            return
        try:
            if self._place.by_datagrams:
                self._post = self._post or Post(self._place)
                return
            fd = self._passed.open(self._path)
        except OSError as error:
            self("error", f"the log could not be opened again: {error}")
            return
        if not self._owns_fd:
            self._fd, self._owns_fd = fd, True
        else:
            # The number stays: another thread may be about to write to it.
            os.dup2(fd, self._fd, inheritable=False)
            os.close(fd)


class Printed(io.RawIOBase):
    """The bytes that the application prints to one stream: to its descriptor, until `said` is there to take lines."""

    said: Said | None = None  # the process's own: a forked one has another

    def __init__(self, stream: str, fd: int) -> None:
        super().__init__()
        self._stream = stream
        self._fd = fd
        self._rest = b""  # of a line that has not ended yet

    def write(self, data: Any) -> int:
        data = bytes(data)
        if self.said is None:
            _write_all(self._fd, data)
        else:
            lines, newline, self._rest = (self._rest + data).rpartition(b"\n")
            if newline:
                self.said.printed(self._stream, lines.decode(errors="backslashreplace"))
        return len(data)

    def end_line(self) -> None:
        """Say what has come of a line without an end."""
        if self._rest and self.said is not None:
            rest, self._rest = self._rest, b""
            self.said.printed(self._stream, rest.decode(errors="backslashreplace"))

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        # For subprocess and faulthandler, whose output stays what it is.
        return self._fd


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def capture() -> None:
    """Let sys.stdout and sys.stderr be such streams, before the application's import can keep the ones there were."""
    for name, fd in (("stdout", 1), ("stderr", 2)):
        getattr(sys, name).flush()
        stream = io.TextIOWrapper(
            io.BufferedWriter(Printed(name, fd)),
            encoding="utf-8",
            errors="backslashreplace",
            line_buffering=True,
        )
        setattr(sys, name, stream)


def speak_through(said: Said) -> None:
    """From now on what this process prints is said by it, if it was captured."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(printed := _printed(stream), Printed):
            stream.flush()
            printed.said = said


def end_lines() -> None:
    """At a process's end: a line that nobody has ended is one, too."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(printed := _printed(stream), Printed):
            printed.end_line()


def _printed(stream: Any) -> Any:
    return getattr(getattr(stream, "buffer", None), "raw", None)
