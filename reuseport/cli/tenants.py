"""`reuseport tenants`: which tenants are kept where, and why. Whoever is not listed is where everybody is."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from reuseport.cli import frame, place, words
from reuseport.cli.ink import Column, ink_for, table
from reuseport.cli.words import a_dict, duration, text

ABOUT = """\
Shows the tenants that have jobs or are held: the generation that serves each, and what keeps it there. All others are \
served by the generation that serves everybody.

Exit status: 0 the master answered; 1 it did not, or it knows no tenants; 2 wrong usage; 3 no master there."""

OPTIONS = (frame.json_option("the answer as one JSON object"),)
_HEAD = (Column("TENANT", left=True), Column("GENERATION"), Column("WHY", left=True))
TAKES = (*OPTIONS, *place.WHERE)


def help_text() -> str:
    return frame.help_of("tenants [--json]", ABOUT, TAKES)


def run(argv: Sequence[str]) -> int:
    """Print who is where and return the exit status. Raises OptionError and Failure."""
    values, typed = place.read(argv, OPTIONS)
    done = frame.ask(typed, {"do": "tenants"})
    if values["json"]:
        facts = {name: done.get(name) for name in ("serving", "canary")}
        print(json.dumps({**facts, "tenants": done.get("tenants", [])}))
        return 0
    rows = [(text(one["tenant"]), str(one["generation"]), _why(one)) for one in done.get("tenants", [])]
    if rows:
        print("\n".join(table(_HEAD, rows, ink=ink_for(sys.stdout))))
    if trial := a_dict(done, "canary"):
        print(f"canary: generation {trial.get('generation')}: {words.trial(trial)}")
    others = "all others" if rows else "all tenants"
    print(f"{others}: generation {done.get('serving') or 'none yet'}")
    return 0


def _why(one: dict[str, Any]) -> str:
    reasons = []
    if one.get("held") is not None:
        here = one["held"] == one["generation"]
        reasons.append("is held here" if here else f"is held in generation {one['held']}")
    if one.get("next_attempt") is not None:
        reasons.append(f"its requests did not end in time; next attempt in {duration(one['next_attempt'])}")
    for job in one.get("jobs", []):
        where = "" if job["generation"] == one["generation"] else f" in generation {job['generation']}"
        reasons.append(f"job {text(job['name'])}{where}, {duration(job['age'])}")
    return "; ".join(reasons) or str(one.get("why", ""))
