"""A terminal that is drawn over again: the whole of it (`Screen`) or some lines at the end of the output (`Block`).

Each picture is one write, from the top, and every line ends by erasing what was behind it: nothing is ever cleared
first, so nothing flickers. Whatever ends the program on the way, the terminal is as it was.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any, TextIO

from reuseport.cli.ink import clip, columns

_HIDE, _SHOW = "\x1b[?25l", "\x1b[?25h"
_OTHER, _BACK = "\x1b[?1049h", "\x1b[?1049l"  # xterm's alternate screen
_BEGIN, _END = "\x1b[?2026h", "\x1b[?2026l"  # synchronized output; a terminal that does not know it passes over it
_REST_OF_LINE, _REST = "\x1b[K", "\x1b[J"
_ENDING = (signal.SIGTERM, signal.SIGHUP)

KEYS = {
    b"q": "quit", b"Q": "quit", b"\x03": "quit", b"\x1b": "quit",
    b"j": "down", b"\x1b[B": "down", b"\x1bOB": "down", b"k": "up", b"\x1b[A": "up", b"\x1bOA": "up",
    b" ": "page down", b"\x1b[6~": "page down", b"b": "page up", b"\x1b[5~": "page up", b"g": "top", b"\x1b[H": "top",
}  # fmt: skip

_KEY = re.compile(rb"\x1b[\[O][0-9;]*[A-Za-z~]|.", re.DOTALL)  # ECMA-48: one key may be several bytes


def size_of(stream: TextIO) -> os.terminal_size:
    """Columns and lines of the terminal behind the stream, as they are now."""
    try:
        found = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        return shutil.get_terminal_size()
    # Some consoles say 0 by 0.
    return os.terminal_size((found.columns or 80, found.lines or 24))


class Screen:
    """The alternate screen of `out`, and the keys that are pressed meanwhile."""

    def __init__(self, out: TextIO, keys: TextIO) -> None:
        self._out = out
        self._keys = keys.fileno() if keys.isatty() else None
        self._before: list[Any] | None = None
        self._top = 0
        self._lines: Sequence[str] = ()

    @contextlib.contextmanager
    def open(self) -> Iterator[Screen]:
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._woken = reader
        handlers = {number: signal.signal(number, self._end) for number in _ENDING}
        handlers[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, lambda *_: None)
        handlers[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, self._suspend)
        wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        try:
            self._enter()
            yield self
        finally:
            self._leave()
            signal.set_wakeup_fd(wakeup)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            os.close(reader)
            os.close(writer)

    def show(self, lines: Sequence[str]) -> None:
        """Draw this. What does not fit below can be scrolled to."""
        self._lines = lines
        self._draw()

    def wait(self, seconds: float) -> str:
        """ "quit" if that is what is pressed meanwhile; "" when the time is over, or another picture is due before."""
        until = time.monotonic() + seconds
        while True:
            watched = [self._woken, *([] if self._keys is None else [self._keys])]
            left = until - time.monotonic()
            if left <= 0:
                return ""
            ready, _, _ = select.select(watched, [], [], left)
            if self._woken in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._woken, 4096)
                return ""  # the terminal has another size, or is ours again
            if self._keys in ready:
                pressed = os.read(self._keys, 32)
                if not pressed:
                    return "quit"  # the terminal has gone
                for key in (KEYS.get(one, "") for one in _KEY.findall(pressed)):
                    if key == "quit":
                        return key
                    self._scroll(key)

    def _scroll(self, key: str) -> None:
        page = max(1, size_of(self._out).lines - 2)
        by = {"down": 1, "up": -1, "page down": page, "page up": -page, "top": -self._top}.get(key, 0)
        self._top = max(0, self._top + by)
        self._draw()

    def _draw(self) -> None:
        width, height = size_of(self._out)
        self._top = max(0, min(self._top, len(self._lines) - height))
        lines = list(self._lines[self._top : self._top + height])
        if (below := len(self._lines) - self._top - height) > 0:
            lines[-1] = f"… {below + 1} more lines: space, j, k"
        text = f"{_REST_OF_LINE}\r\n".join(clip(line, width) for line in lines)
        self._write(f"{_BEGIN}\x1b[H{text}{_REST_OF_LINE}{_REST}{_END}")

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()

    def _enter(self) -> None:
        if self._keys is not None:
            self._before = termios.tcgetattr(self._keys)
            tty.setcbreak(self._keys)
        self._write(_OTHER + _HIDE)

    def _leave(self) -> None:
        with contextlib.suppress(OSError):  # the terminal may have gone
            self._write(_SHOW + _BACK)
        if self._keys is not None and self._before is not None:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._keys, termios.TCSADRAIN, self._before)

    def _suspend(self, number: int, frame: FrameType | None) -> None:
        """Ctrl-Z: give the terminal back, stop, and take it again when we go on."""
        self._leave()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, self._suspend)
        self._enter()

    def _end(self, number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)


class Block:
    """Lines at the end of the output that change; what is said for good goes above them."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._drawn: list[str] = []

    @contextlib.contextmanager
    def open(self) -> Iterator[Block]:
        self._write(_HIDE)
        try:
            yield self
        finally:
            with contextlib.suppress(OSError):  # the terminal may have gone
                self._write(_SHOW)

    def draw(self, lines: Sequence[str], *, above: Sequence[str] = ()) -> None:
        """Draw the lines in place of the last ones; `above` stays."""
        width, height = size_of(self._out)
        shown = [clip(line, width - 1) for line in lines[: height - 1]]
        # A terminal that has become narrower has wrapped what it had.
        rows = sum(max(1, -(-columns(line) // width)) for line in self._drawn)
        up = f"\x1b[{rows}A" if rows else ""
        text = "".join(f"{line}{_REST_OF_LINE}\n" for line in [*above, *shown])
        self._write(f"{_BEGIN}\r{up}{text}{_REST}{_END}")
        self._drawn = shown

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()
