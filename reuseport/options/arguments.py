"""A command line into (option, flag, text), in the order it was typed.

Not argparse: its prefixes make every later option a breaking change, its optional values swallow the application's
name (`--preload shop:app`), and its errors leave the process. The rules are the usual ones: --name VALUE, --name=VALUE,
-n VALUE, -nVALUE, and -- ends the options.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence

from reuseport.options.option import FLAG, Foreign, Option


def one_line(text: str) -> str:
    """`text` with what would break the line, or move a terminal's cursor, spelled out."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


class OptionError(ValueError):
    """A user's mistake, in one line that names the option and where it came from."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


Said = tuple[Option | Foreign, str, str | None]


def scan(argv: Sequence[str], options: Iterable[Option], foreign: Iterable[Foreign] = ()) -> Iterator[Said]:
    """Yield (option, the flag as typed, its text); the text is None for a switch and for a flag's bare form.

    A switch that is turned off (--no-NAME) yields the text "false". Raises OptionError for what is not declared, for a
    missing or a superfluous value, and for a second positional argument.
    """
    options = list(options)
    known = flags_of(options, foreign)
    positional = [option for option in options if option.positional]
    words = list(argv)
    while words:
        word = words.pop(0)
        if word == "--":
            for rest in words:
                yield _place(rest, positional), rest, rest
            return
        if not word.startswith("-") or word == "-":
            yield _place(word, positional), word, word
            continue
        flag, value = _cut(word, known)
        if flag not in known:
            raise OptionError(f"unknown option {flag}{did_you_mean(flag, known)}")
        entry = known[flag]
        if not _wants_value(entry):
            if value is not None:
                raise OptionError(f"{flag}: takes no value, but was given {value!r}")
            value = "false" if flag.startswith("--no-") and isinstance(entry, Option) else None
        elif value is None:
            if isinstance(entry, Option) and entry.bare:
                value = words.pop(0) if words and (not words[0].strip() or _fits(entry, words[0])) else None
            elif not words or _cut(words[0], known)[0] in known:
                raise OptionError(f"{flag}: wants a value, {flag} {_metavar(entry)}")
            else:
                value = words.pop(0)
        yield entry, flag, value


def flags_of(options: Iterable[Option], foreign: Iterable[Foreign] = ()) -> dict[str, Option | Foreign]:
    """Every flag that may be typed."""
    known: dict[str, Option | Foreign] = {}
    for option in options:
        if FLAG in option.where and not option.positional:
            for flag in (option.flag, *option.flags, *option.aliases):
                known[flag] = option
            if option.is_switch:
                known["--no-" + option.flag.removeprefix("--")] = option
    for entry in foreign:
        for flag in entry.flags:
            known[flag] = entry
    return known


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    """The end of an error about an unknown word: the known one that is closest, behind `prefix`, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.65)
    return f"; did you mean {prefix}{close[0]}?" if close else ""


def _cut(word: str, known: dict[str, Option | Foreign]) -> tuple[str, str | None]:
    if word.startswith("--"):
        flag, equals, value = word.partition("=")
        return flag, value if equals else None
    if len(word) > 2 and word[:2] in known:
        return word[:2], word[2:]
    return word, None


def _fits(option: Option, word: str) -> bool:
    """Whether the word behind a flag that may stand alone is its value."""
    try:
        option.kind.parse(word)
    except ValueError:
        return False
    return True


def _wants_value(entry: Option | Foreign) -> bool:
    return entry.takes_value if isinstance(entry, Foreign) else not entry.is_switch


def _metavar(entry: Option | Foreign) -> str:
    return "VALUE" if isinstance(entry, Foreign) else entry.metavar or entry.kind.metavar


def _place(word: str, positional: list[Option]) -> Option:
    if not positional:
        raise OptionError(f"unexpected argument {word!r}")
    return positional.pop(0)
