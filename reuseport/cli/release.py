"""`reuseport release`: ask for a release, follow its stages, and exit with its outcome.

Who asks gets the answer: 0 means that the new generation serves, 1 that the old one still does, and then standard error
shows what the application said.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from reuseport.cli import frame, operator, place, progress
from reuseport.cli.failure import FAILED, INTERRUPTED, SUPERSEDED, Failure
from reuseport.ipc.logline import printable
from reuseport.options import OptionError, kinds
from reuseport.options.arguments import one_line
from reuseport.options.reading import Words

ABOUT = """\
Reads the configuration again, loads the application's new version, and lets it take over as soon as it is ready. If \
anything fails, the old version serves on.

Exit status: 0 the new generation serves; 1 the release failed, and what the application said is on standard error; \
2 wrong usage; 3 no master there; 4 the release was aborted, or a newer one or a rollback has taken its place."""

LABEL = frame.option(
    "label",
    kinds.TEXT,
    "",
    "What this version is called in `reuseport status` and `reuseport history`: a tag, a commit.",
    default_text="--label of serve",
)
FOLLOWING = (
    frame.option(
        "wait",
        kinds.choice("ready", "drained", "none"),
        "ready",
        "ready: return when the new generation serves. drained: when the old ones have ended too. none: when the "
        "release has begun.",
        metavar="UNTIL",
    ),
    frame.BY,
    frame.json_option("the outcome as one JSON object, and no stages"),
)
CANARY = frame.option(
    "canary",
    kinds.TEXT,
    "",
    "Let only these tenants try the new version, with commas between their names, or a share of all such as 10%; "
    "or both. `reuseport promote` then gives it to everybody, `reuseport rollback` to nobody.",
    metavar="WHO",
    default_text="everybody",
)
OPTIONS = (*FOLLOWING, LABEL, CANARY)
TAKES = (*OPTIONS, *place.WHERE)


def help_text() -> str:
    return frame.help_of("release [--wait UNTIL] [--label TEXT] [--canary WHO] [--by TEXT] [--json]", ABOUT, TAKES)


def run(argv: Sequence[str]) -> int:
    """Release and return the exit status. Raises OptionError and Failure."""
    values, words = place.read(argv, OPTIONS)
    question: dict[str, Any] = {"do": "release", "wait": values["wait"], "label": values["label"]}
    question["on_behalf"] = values["by"]
    if values["canary"]:
        question["canary"] = _canary(values["canary"])
    return follow(words, question, "release", values["json"])


def _canary(text: str) -> dict[str, Any]:
    """Who tries it out. OptionError."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    shares = [word[:-1] for word in words if word.endswith("%")]
    try:
        percent = sum(float(share) for share in shares)
    except ValueError:
        raise OptionError(f"--canary: {text!r} is neither tenants nor a share of them (acme,globex or 10%)") from None
    if not words or len(shares) > 1 or not 0 <= percent <= 100:
        raise OptionError(f"--canary: {text!r} is neither tenants nor a share of them (acme,globex or 10%)")
    return {"tenants": [word for word in words if not word.endswith("%")], "percent": percent}


def follow(words: Words, question: dict[str, Any], what: str, as_json: bool) -> int:
    """Ask for a release of some kind, show its stages, and return the exit status. Raises OptionError and Failure."""
    master = place.find(words)
    server = master.server()
    frame.check_from(server, question.get("from"))
    frame.show(server, as_json)
    question = {**question, **operator.words(question.get("on_behalf", ""))}
    try:
        with progress.shown(as_json) as shown:
            done = master.ask(question, on_event=shown.hear, tick=(progress.TICK, shown.tick))
            shown.end(bool(done.get("ok")))
    except KeyboardInterrupt:
        raise Failure(f"no longer waiting; the {what} goes on (reuseport status shows it)", INTERRUPTED) from None
    if as_json:
        print(json.dumps(frame.with_server(done, server)), flush=True)
    if done.get("ok"):
        text = one_line(str(done.get("text") or f"generation {done.get('generation')} serves"))
        # The last stage is often the outcome itself.
        if not as_json and shown.last != text:
            print(text)
        if not as_json:
            frame.warn(done)
        return 0
    sys.stdout.flush()
    error = one_line(str(done.get("error") or "the master gave no reason"))
    output = str(done.get("output") or "")
    if output:
        print(printable(output.rstrip("\n")), file=sys.stderr)
    if not as_json:
        frame.warn(done)
    if done.get("outcome"):
        # The release has not failed: an operator, or a newer release, has ended it.
        print(f"reuseport: {error}", file=sys.stderr)
        return SUPERSEDED
    # Last, where it is seen: behind a long traceback the prompt follows.
    print(f"reuseport: {what} failed: {error}", file=sys.stderr)
    return FAILED
