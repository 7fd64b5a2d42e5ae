"""`reuseport translate`: Gunicorn's configuration as a reuseport.toml, with a remark where something is different."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from reuseport.cli.failure import FAILED, Failure
from reuseport.cli.translate.table import SETTINGS, Row, concurrency
from reuseport.ipc.logline import printable
from reuseport.options import Option, OptionError, kinds
from reuseport.options.arguments import one_line
from reuseport.options.manual import manual, toml, toml_key
from reuseport.options.table import BY_NAME, FLAG, OPTIONS

DEFAULT_FILE = "gunicorn.conf.py"
VARIABLE = "GUNICORN_CMD_ARGS"
PATIENCE = 60.0  # seconds for the file to have run
WIDTH = 100

ABOUT = """\
Prints a reuseport.toml that does what a Gunicorn configuration did, with a remark for each setting that means \
something else here, has no counterpart, or is needless.

The file is run as Gunicorn runs it, in a process of its own; gunicorn.conf.py in the working directory if none is \
named. What GUNICORN_CMD_ARGS says counts more, and a command line behind -- the most:

    reuseport translate -- gunicorn -c conf/gunicorn.py -w 4 shop:app > reuseport.toml

Exit status: 0 it was printed; 1 the file cannot be run, or the application could not be served; 2 wrong usage."""

TAKES = (
    Option(
        "file",
        kinds.PATH,
        "",
        group="Options",
        positional=True,
        where=frozenset({FLAG}),
        default_text="gunicorn.conf.py, if it is there",
        help="Gunicorn's configuration, a Python file.",
    ),
)


@dataclass
class Translation:
    """`values` of options by name, with `remarks` on each; lines about what is `missing`, `needless` and `different` by
    default; `impossible`: why the application could not be served."""

    values: dict[str, Any] = field(default_factory=dict)
    remarks: dict[str, list[str]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    needless: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    impossible: list[str] = field(default_factory=list)


def help_text() -> str:
    usage = "reuseport translate [FILE] [-- gunicorn ARGUMENTS]"
    return manual(TAKES, usage, ABOUT, shutil.get_terminal_size().columns)


def run(argv: Sequence[str]) -> int:
    """Print the file and return the exit status. Raises OptionError and Failure."""
    end = argv.index("--") if "--" in argv else len(argv)
    files, command = list(argv[:end]), list(argv[end + 1 :])
    if bad := [word for word in files if word.startswith("-")]:
        raise OptionError(f"unknown option {bad[0]}; what Gunicorn was told goes behind --")
    if any(not word.strip() for word in files):
        raise OptionError("file: the value is empty (is a variable not set?); leave it out for its default")
    if len(files) > 1:
        raise OptionError(f"unexpected argument {files[1]!r}")
    said, source = read(files[0] if files else "", command, os.environ)
    made = translate(said, os.environ)
    sys.stdout.write(render(made, source))
    sys.stdout.flush()
    for reason in made.impossible:
        print(f"reuseport: {one_line(reason)}", file=sys.stderr)
    return FAILED if made.impossible else 0


# --- what Gunicorn was told


def read(path: str, command: Sequence[str], environ: Mapping[str, str]) -> tuple[dict[str, Any], str]:
    """What was said, by setting, and where. Raises OptionError and Failure."""
    typed, positional = arguments(_without_program(command), "the command line")
    try:
        words = shlex.split(environ.get(VARIABLE, ""))
    except ValueError as error:
        raise OptionError(f"{VARIABLE}: {str(error).lower()}") from error
    variable, _ = arguments(words, VARIABLE)
    path = path or typed.get("config") or variable.get("config") or ""
    if not path and os.path.exists(DEFAULT_FILE):
        path = DEFAULT_FILE
    in_file = execute(path) if path else {}
    said = {name: value for name, value in in_file.items() if name in SETTINGS}
    said |= variable | typed
    said.pop("config", None)
    if positional:
        said["wsgi_app"] = positional[0]
    sources = [path, VARIABLE if variable else "", shlex.join(command)]
    if not said:
        raise OptionError(f"translate: what? There is no {DEFAULT_FILE} here; name it: reuseport translate FILE")
    return {name: value for name, value in said.items() if value is not None}, ", ".join(filter(None, sources))


def _without_program(command: Sequence[str]) -> list[str]:
    """The arguments of "gunicorn", "/venv/bin/gunicorn" or "python -m gunicorn"."""
    words = list(command)
    for index, word in enumerate(words[:4]):
        if os.path.basename(word) == "gunicorn":
            return words[index + 1 :]
    return words


class _Parser(argparse.ArgumentParser):
    def __init__(self, place: str) -> None:
        super().__init__(add_help=False)
        self._place = place

    def error(self, message: str) -> NoReturn:
        raise OptionError(f"{self._place}: {message}")


def arguments(words: Sequence[str], place: str) -> tuple[dict[str, Any], list[str]]:
    """What Gunicorn's flags say, by setting, and what is no flag. Raises OptionError."""
    parser = _Parser(place)
    parser.add_argument("positional", nargs="*")
    for name, row in SETTINGS.items():
        if not row.flags:
            continue
        how: dict[str, Any] = {"dest": name, "action": row.action, "default": None}
        if row.action == "store":
            how["type"] = _number if row.number else str
        if row.action == "store_const":
            how["const"] = row.const
        if row.bare:
            how |= {"nargs": "?", "const": row.bare}
        parser.add_argument(*row.flags, **how)
    found = vars(parser.parse_args(list(words)))
    positional = found.pop("positional")
    return {name: value for name, value in found.items() if value is not None}, positional


def _number(text: str) -> int:
    # With a leading zero it is octal, as Gunicorn has it.
    return int(text, 8) if text.startswith("0") and text.isdigit() else int(text, 0)


def execute(location: str) -> dict[str, Any]:
    """The names that a configuration sets. Raises Failure with what it printed if it cannot be run."""
    path = location.removeprefix("file:")
    if not location.startswith("python:") and not os.path.isfile(path):
        raise Failure(f"there is no file {path}")
    with tempfile.TemporaryFile("w+", encoding="utf-8") as report:
        command = [sys.executable, "-P", "-m", "reuseport.cli.translate.execute", location, str(report.fileno())]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[report.fileno()],
                timeout=PATIENCE,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise Failure(f"{location} has not come to its end within {PATIENCE:g} s") from error
        report.seek(0)
        try:
            found = json.load(report)
        except ValueError as error:
            printed = done.stdout.decode(errors="replace").strip()
            print(printable(printed), file=sys.stderr)
            last = printed.splitlines()[-1] if printed else f"it ended with status {done.returncode}"
            raise Failure(f"{location} cannot be run: {last}") from error
    names: dict[str, Any] = found
    return names


# --- what that is here


def translate(said: Mapping[str, Any], environ: Mapping[str, str]) -> Translation:
    """`said`: Gunicorn's settings by name."""
    made = Translation()
    options, remarks, impossible = concurrency(said)
    made.impossible += [impossible] if impossible else []
    for name, value in options.items():
        made.values[name] = value
        made.remarks[name] = remarks
    if not options:
        made.needless += remarks
    for name, row in SETTINGS.items():
        if name in ("worker_class", "threads"):
            continue
        if name in said:
            _add(made, name, row, said[name])
        elif row.default:
            made.different.append(f"{row.default}.")
    if "certfile" not in made.values:
        for name in ("keyfile", "ca_certs", "cert_reqs"):
            if made.values.pop(name, None) is not None:
                made.needless.append(f"{name} concerns TLS, and there is no certfile.")
    _defaults(made, said, environ)
    return made


def _add(made: Translation, name: str, row: Row, value: Any) -> None:
    shown = f"{name} = {_shown(value)}"
    if row.impossible(value):
        made.impossible.append(f"{shown} {row.remark}")
        return
    if not row.option:
        if value and value != row.usual:
            what = name if isinstance(value, Mapping) else shown
            (made.needless if row.needless else made.missing).append(f"{what} {row.remark}.")
        return
    if value in ("", [], {}):
        return  # as if it had not been said
    option = BY_NAME[row.option]
    try:
        converted = row.convert(value)
        _check(option, converted)
    except (ValueError, TypeError, AttributeError) as error:
        reason = f"{shown} could not be taken over: {error}"
        if option.name == "app":
            made.impossible.append(reason)
        else:
            made.missing.append(f"{reason}.")
        return
    if row.option in made.values:
        made.needless.append(f"{shown}: {made.remarks.get(row.option, [''])[0] or row.option + ' is said already'}")
        return
    made.values[row.option] = converted
    notes = [f"{name}: {row.remark}."] if row.remark else []
    if row.inexact and converted != value:
        notes.append(f"{name} was {_shown(value)}.")
    made.remarks[row.option] = notes


def _defaults(made: Translation, said: Mapping[str, Any], environ: Mapping[str, str]) -> None:
    """What Gunicorn does if nothing is said, and reuseport does not."""
    if "workers" not in said and not environ.get("WEB_CONCURRENCY"):
        made.values["workers"] = 1
        made.remarks["workers"] = ["workers: Gunicorn's default. Without this line there is one for each usable core."]
    if "bind" not in said and environ.get("PORT", "").isdecimal():
        made.values["bind"] = [f"0.0.0.0:{environ['PORT']}"]
        made.remarks["bind"] = ["bind: Gunicorn takes the variable PORT for it, and reuseport does not."]
    if "app" not in made.values and not made.impossible:
        made.different.append('No application was named: app = "MODULE:APP", or on the command line.')


def _check(option: Option, value: Any) -> None:
    items = value if isinstance(value, list) else list(value.items()) if isinstance(value, dict) else [value]
    parsed = [option.kind.parse(item) for item in items]
    if option.check is not None:
        option.check(tuple(parsed) if option.repeatable else parsed[0])


def _shown(value: Any) -> str:
    if isinstance(value, Mapping) and set(value) <= {"callable", "object"}:
        return str(value.get("callable") or value.get("object"))
    text = toml(value)
    return text if len(text) <= 60 else text[:59] + "…"


# --- as a file


def render(made: Translation, source: str) -> str:
    """The text of the file, in the order of `reuseport serve --help`."""
    lines = [
        *_comment(f"Translated from {source} by `reuseport translate`: read the remarks, then throw them away."),
        *_comment("What it works out (os.environ, cpu_count()) is written as it came out here and now."),
    ]
    for option in OPTIONS:
        if option.name in made.values and option.kind is not kinds.ASSIGNMENT:
            lines.append("")
            for remark in made.remarks.get(option.name, []):
                lines += _comment(remark)
            lines.append(f"{option.name} = {toml(made.values[option.name])}")
    for title, remarks in (
        ("What has no counterpart here:", made.missing),
        ("What is needless here:", made.needless),
        ("What was not said, and is different by default:", made.different),
        ("What cannot be served here:", [f"{reason}." for reason in made.impossible]),
    ):
        if remarks:
            lines += ["", f"# {title}"]
            for remark in remarks:
                lines += _comment(remark, "#   ")
    if environment := made.values.get("env"):
        lines += ["", "[env]", *(f"{toml_key(key)} = {toml(text)}" for key, text in environment.items())]
    return "\n".join(lines) + "\n"


def _comment(text: str, begin: str = "# ") -> Iterator[str]:
    yield from textwrap.wrap(
        one_line(text), WIDTH, initial_indent=begin, subsequent_indent=begin + "  ", break_on_hyphens=False
    )
