"""Names and texts of clients and applications, made safe to show where they enter the server.

A tenant's name comes from a request, a job's name from the application. Such a text can hold a NUL, a newline, an
escape sequence of a terminal, a lone surrogate, or 70 kB. setproctitle(3) refuses a NUL, UTF-8 has no surrogates, and a
log line must stay one line. So each text passes one of these functions once, and the rest of the server can print it.

What is escaped is a fixed set of code points and not `str.isprintable`, whose answer depends on the Unicode version
of the interpreter: two generations must give a tenant the same name.
"""

from __future__ import annotations

import re
from hashlib import blake2b

LONGEST = 200  # characters of a name or of a progress text
DIGEST = 12  # hexadecimal digits behind a name that was changed

# Controls (C0, DEL, C1), spaces that look like others, line and paragraph separators, marks that change the direction
# of writing (UAX #9), invisible marks, surrogates, and tags.
_UNSAFE = (
    "\x00-\x1f\x7f-\xa0\xad\u061c\u115f\u1160\u1680\u180e\u2000-\u200b\u200e\u200f\u2028-\u202f\u205f-\u206f\u3000"
    "\u3164\ufeff\uffa0\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e0fff"
)
_in_a_line = re.compile(f"[{_UNSAFE}]")
_in_lines = re.compile(f"(?![\n\t])[{_UNSAFE}]")
_in_a_changed_name = re.compile(f"[\\\\{_UNSAFE}]")


def name(text: str, longest: int = LONGEST) -> str:
    """The name under which the server knows a tenant or a job.

    A name that is printable and has at most `longest` characters stays as it is. Any other is escaped and shortened,
    and gets `~` and a digest of the raw name, so that two raw names never become one. The result is such a name itself,
    so a name can pass here twice, and an operator can use the name that `reuseport status` shows.
    """
    if len(text) <= longest and not _in_a_line.search(text):
        return text
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=DIGEST // 2).hexdigest()
    # An escape is never longer than 10 characters, so this much of the text is enough for any `longest`.
    return f"{_in_a_changed_name.sub(_escape, text[:longest])[: longest - DIGEST - 1]}~{digest}"


def line(text: str, longest: int = LONGEST) -> str:
    """The text as one printable line of at most `longest` characters; one that was longer ends in `...`."""
    return _shown(text, longest, _in_a_line)


def lines(text: str, longest: int) -> str:
    """As `line`, but newlines and tabs stay: for an error that fills several lines."""
    return _shown(text, longest, _in_lines)


def _shown(text: str, longest: int, unsafe: re.Pattern[str]) -> str:
    shown = unsafe.sub(_escape, text[: longest + 1])
    return shown if len(shown) <= longest else shown[: longest - 3] + "..."


def _escape(found: re.Match[str]) -> str:
    """As Python writes the character in a string."""
    return found[0].encode("unicode_escape").decode("ascii")
