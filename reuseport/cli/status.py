"""`reuseport status`: what lives, what serves, and what each old generation still waits for.

The text fits into the terminal and is for a person; scripts take --json, whose object only ever gains fields.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from reuseport.cli import frame, place
from reuseport.cli.failure import Failure
from reuseport.cli.ink import Ink, ink_for, is_terminal
from reuseport.cli.live import Screen, size_of
from reuseport.cli.overview import WIDTH, render
from reuseport.cli.words import a_dict, duration, objects, text
from reuseport.options import OptionError, kinds
from reuseport.options.arguments import one_line

SOON = 3.0  # seconds for an answer while watching: a key that is pressed meanwhile waits
SHORTEST = 0.1  # seconds between two pictures

ABOUT = """\
Shows the generations, newest first, their workers, what each drain waits for, and how the last release ended.

With --watch it goes on: on a terminal in place, until q; else, for a file or a pipe, one block after the other, and \
with --json one line each. It survives the master, and waits for the next one.

Exit status: 0 the master answered; 1 it did not; 2 wrong usage; 3 no master there. With --check, 1 also says that \
nothing serves yet ("booting"), that the server was told to stop ("stopping"), or that a companion of the generation \
that serves fails ("degraded"): it crash-loops, was not ready in time, or has ended for good with a failure."""

OPTIONS = (
    frame.json_option("the state as one JSON object"),
    frame.option(
        "watch",
        kinds.SECONDS,
        None,
        "Show it again and again.",
        metavar="[TIME]",
        unit="time between two looks; 1s if none is said",
        default_text="once",
        bare=("1", "a bare --watch stands for --watch 1s"),
    ),
    frame.option(
        "check",
        kinds.SWITCH,
        False,
        'Print one word, and exit with 1 unless it is "running". Why it is "degraded" goes to standard error.',
    ),
)
TAKES = (*OPTIONS, *place.WHERE)


def help_text() -> str:
    return frame.help_of("status [--watch [TIME]] [--json | --check]", ABOUT, TAKES)


def run(argv: Sequence[str]) -> int:
    """Print the state and return the exit status. Raises OptionError and Failure."""
    values, words = place.read(argv, OPTIONS)
    master = place.find(words)
    if values["watch"] is not None:
        if values["watch"] < SHORTEST:
            raise OptionError(f"--watch: {values['watch']:g} s is too often, {SHORTEST:g} s is the least")
        return _watch(master, values["watch"], values["json"])
    state = _ask(master, frame.ANSWER_SECONDS)
    if values["check"]:
        return _check(state)
    _print(state, values["json"])
    return 0


def _ask(master: place.Master, timeout: float) -> dict[str, Any]:
    done = frame.checked(master.ask({"do": "status"}, timeout=timeout), "no status")
    if not isinstance(done.get("status"), dict):
        raise Failure("no status: the master gave none")
    return done["status"]


def _check(status: Mapping[str, Any]) -> int:
    word = a_dict(status, "master").get("state")
    failing = [
        companion
        for one in objects(status, "generations")
        for companion in objects(one, "companions")
        if companion.get("failing")
    ]
    if failing and word == "running":
        word = "degraded"
        for one in failing:
            why = f" ({text(one.get('why'))})" if one.get("why") else ""
            sys.stderr.write(f"reuseport: companion {text(one.get('id'))}: {text(one.get('failing'))}{why}\n")
    print(word)
    return 0 if word == "running" else 1


def _print(status: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(status), flush=True)
        return
    # A pipe has no width, and what reads it wants whole paths.
    width = shutil.get_terminal_size((WIDTH, 0)).columns if sys.stdout.isatty() else None
    print(render(status, time.time(), width, ink_for(sys.stdout)), flush=True)


def _watch(master: place.Master, every: float, as_json: bool) -> int:
    status = _ask(master, frame.ANSWER_SECONDS)  # a wrong name is told before anything is drawn
    if as_json or not is_terminal(sys.stdout):
        return _repeat(master, status, every, as_json)
    ink = ink_for(sys.stdout)
    failure, answered = "", time.monotonic()
    with Screen(sys.stdout, sys.stdin).open() as screen:
        try:
            while True:
                gone = time.monotonic() - answered if failure else 0.0
                screen.show(picture(status, time.time(), size_of(sys.stdout).columns, ink, every, failure, gone))
                if screen.wait(every) == "quit":
                    return 0
                try:
                    status, failure, answered = _ask(master, SOON), "", time.monotonic()
                except Failure as error:
                    failure = one_line(str(error))
        except KeyboardInterrupt:
            return 0  # that is how one leaves it


def picture(
    status: Mapping[str, Any], now: float, width: int, ink: Ink, every: float, failure: str = "", gone: float = 0.0
) -> list[str]:
    """The lines of one picture. With a `failure` it is an old one, of `gone` seconds ago."""
    head = f"{time.strftime('%H:%M:%S', time.localtime(now))}  every {every:g}s, q quits"
    lines = [ink.paint("faint", head)]
    if failure:
        lines.append(ink.paint("bad", f"{failure}; this is what it was {duration(gone)} ago"))
    return [*lines, "", *render(status, now, width, ink).splitlines()]


def _repeat(master: place.Master, status: Mapping[str, Any] | None, every: float, as_json: bool) -> int:
    """For a file or a pipe: block after block, or line after line. Ends with its reader, or by ctrl-c."""
    while True:
        if status is not None:
            if not as_json:
                print(time.strftime("--- %Y-%m-%d %H:%M:%S"))
            _print(status, as_json)
            if not as_json:
                print(flush=True)
        time.sleep(every)
        try:
            status = _ask(master, SOON)
        except Failure as error:
            status = None
            sys.stderr.write(f"reuseport: {one_line(str(error))}\n")
