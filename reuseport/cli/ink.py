"""Colour, width and tables: text as a terminal shows it.

Everything that is printed is made as plain text first. Colours (SGR sequences) take no columns, and nothing of what an
application has said can hold one: `words.text` spells control characters out. So widths and clipping can be worked out
here, for text in any script, without a library.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TextIO

from reuseport.cli.words import ABSENT

_SGR = re.compile(r"\x1b\[[0-9;]*m")
_RESET = "\x1b[0m"
_STYLES = {
    "head": "2", "faint": "2", "strong": "1", "good": "32", "going": "33", "bad": "1;31", "busy": "36",
}  # fmt: skip
_OF_STATE = {
    **dict.fromkeys(("running", "serving", "ready", "accepting", "attending"), "good"),
    **dict.fromkeys(("draining", "ending", "stopping", "booting", "starting", "canary", "working"), "going"),
    **dict.fromkeys(("blocked", "failed", "taken back", "crashed", "backoff", "crash-looping", "not ready"), "bad"),
    "standby": "faint",
}


class Ink:
    """Paints, if `colour`; draws with more than ASCII, if `fancy`."""

    def __init__(self, *, colour: bool = False, fancy: bool = True) -> None:
        self.colour = colour
        self.fancy = fancy

    def paint(self, style: str, text: str) -> str:
        return f"\x1b[{_STYLES[style]}m{text}{_RESET}" if self.colour and style and text else text

    def state(self, word: str) -> str:
        """The word for a state in the colour of what it means."""
        return self.paint(_OF_STATE.get(word, ""), word)

    def bar(self, share: float, length: int) -> str:
        """A share from 0 to 1 as a bar of so many columns."""
        full = round(min(1.0, max(0.0, share)) * length)
        done, rest = ("█", "░") if self.fancy else ("#", ".")
        return self.paint("busy", done * full) + self.paint("faint", rest * (length - full))

    def mark(self, name: str) -> str:
        """A sign for what is done, failed, or still to come."""
        style, fancy, plain = {
            "done": ("good", "✓", "+"), "failed": ("bad", "✗", "x"), "later": ("faint", "·", "."),
        }[name]  # fmt: skip
        return self.paint(style, fancy if self.fancy else plain)


PLAIN = Ink()


def ink_for(stream: TextIO, environ: Mapping[str, str] = os.environ) -> Ink:
    """What may be used on this stream: colours on a terminal that has them (https://no-color.org), and its encoding."""
    colour = is_terminal(stream, environ) and not environ.get("NO_COLOR")
    try:
        "✓█░…⠋".encode(getattr(stream, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return Ink(colour=colour, fancy=False)
    return Ink(colour=colour)


def is_terminal(stream: TextIO, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether lines on it can be drawn over again."""
    return stream.isatty() and environ.get("TERM", "") not in ("", "dumb")


def columns(text: str) -> int:
    """How many columns a terminal takes for it (UAX #11: wide characters take two, combining ones none)."""
    if text.isascii() and "\x1b" not in text:
        return len(text)
    return sum(map(_columns, _SGR.sub("", text)))


def _columns(letter: str) -> int:
    if unicodedata.category(letter) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def clip(text: str, width: int) -> str:
    """Its beginning, in at most so many columns; colours that it begins end."""
    if columns(text) <= width:
        return text
    kept, taken, at = [], 0, 0
    while at < len(text):
        if found := _SGR.match(text, at):
            kept.append(found[0])
            at = found.end()
            continue
        taken += _columns(text[at])
        if taken > width - 1:
            break
        kept.append(text[at])
        at += 1
    return "".join(kept) + ("…" if width > 0 else "") + (_RESET if "\x1b" in text else "")


def clip_start(text: str, width: int) -> str:
    """Its end, likewise; for plain text, such as paths, whose ends differ."""
    if columns(text) <= width:
        return text
    kept = text
    while kept and columns(kept) > width - 1:
        kept = kept[1:]
    return "…" + kept if width > 0 else ""


class Column(NamedTuple):
    """`left`: words, and no figures that end in a line. `spare`: where there is no room those with the highest go
    first; 0 stays. `shrinks`: what its cells can be cut down to, from the left. `usual`: stays even if it is empty."""

    head: str
    left: bool = False
    spare: int = 0
    shrinks: int = 0
    usual: bool = True


def table(
    head: Sequence[Column], rows: Iterable[Sequence[str]], width: int | None = None, ink: Ink = PLAIN
) -> list[str]:
    """Lines of columns as wide as their cells, in at most `width` columns, None for as wide as it takes."""
    cells = [list(row) for row in rows]
    shown = [
        index
        for index, column in enumerate(head)
        if column.usual or any(row[index] not in (ABSENT, "") for row in cells)
    ]
    widths = {index: max([columns(head[index].head), *(columns(row[index]) for row in cells)]) for index in shown}
    if width is not None:
        while (over := _needed(head, widths) - width) > 0 and (spare := [i for i in widths if head[i].spare]):
            del widths[max(spare, key=lambda index: head[index].spare)]
        over = sum(widths.values()) + 2 * (len(widths) - 1) - width
        for index in [i for i in widths if head[i].shrinks and over > 0]:
            room = max(head[index].shrinks, widths[index] - over)
            over -= widths[index] - room
            widths[index] = room
            for row in cells:
                row[index] = clip_start(row[index], room)
    lines = [_line(head, widths, [column.head for column in head])]
    return [ink.paint("head", lines[0]), *(_line(head, widths, row) for row in cells)]


def _needed(head: Sequence[Column], widths: Mapping[int, int]) -> int:
    least = [min(width, head[index].shrinks) if head[index].shrinks else width for index, width in widths.items()]
    return sum(least) + 2 * (len(least) - 1)


def _line(head: Sequence[Column], widths: Mapping[int, int], cells: Sequence[str]) -> str:
    padded = []
    for index, width in widths.items():
        space = " " * (width - columns(cells[index]))
        padded.append(cells[index] + space if head[index].left else space + cells[index])
    return "  ".join(padded).rstrip()


def fit(lines: Iterable[str], width: int | None) -> list[str]:
    return [line if width is None else clip(line, width) for line in lines]
