"""The access log's format: Gunicorn's atoms, read into pieces. What they mean is the worker's to know."""

from __future__ import annotations

import re

ATOMS = frozenset("hlutrmUqHsBbfaTMDLp")
GROUPS = frozenset("ioe")  # of %({NAME}i)s: a request's header, a response's header, a variable of environ
JSON = "json"
DEFAULT = '%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s"'

Piece = str | tuple[str, str]

_PIECE = re.compile(r"%(?:%|\(([A-Za-z])\)s|\(\{([^{}]+)\}([A-Za-z])\)s)|%")


def parse_format(text: str) -> list[Piece]:
    """Literal text, and (atom, name) for what is filled in; the name is "" but for the atoms i, o and e.

    ValueError that says what cannot be read.
    """
    pieces: list[Piece] = []
    at = 0
    for match in _PIECE.finditer(text):
        pieces.append(text[at : match.start()])
        at = match.end()
        atom, name, group = match.groups()
        if match[0] == "%%":
            pieces.append("%")
        elif atom is not None and atom in ATOMS:
            pieces.append((atom, ""))
        elif group is not None and group in GROUPS:
            pieces.append((group, name))
        else:
            what = re.match(r"%(\([^)]*\)?.?)?", text[match.start() :])
            raise ValueError(
                f"{what[0] if what else '%'!r} is no atom of an access log's format: it knows %(X)s with X of "
                f"{' '.join(sorted(ATOMS, key=str.lower))}, %({{NAME}}X)s with X of i o e, and %%"
            )
    pieces.append(text[at:])
    return [piece for piece in pieces if piece]


def check_format(text: str) -> None:
    """ValueError for what is neither "json" nor a format, or would not stay on one line."""
    if not text or not text.isprintable():
        raise ValueError(f"{text!r} is not one line of text")
    if text != JSON:
        parse_format(text)
