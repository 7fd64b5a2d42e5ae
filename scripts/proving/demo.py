"""`scripts/demo`: a server under load is released again and again, once with code that cannot start, once back, and
nobody notices; a tenant with a job stays with its version until the job is over.

On a terminal it draws what happens while it happens; elsewhere it prints plain lines. It ends with a verdict in
figures, and exit status 0 if nobody was interrupted, 1 if anybody was.
"""

from __future__ import annotations

import argparse
import sys

from rich.console import Console

from proving.display import show_live, show_plain, show_verdict
from proving.ending import orderly
from proving.round import Round
from proving.story import Story
from proving.verdict import verdict


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--fast", action="store_true", help="a shorter round, about 20 s")
    parser.add_argument("--plain", action="store_true", help="plain lines, also on a terminal")
    parser.add_argument("--workers", type=int, default=3, metavar="N", help="workers of each generation (3)")
    options = parser.parse_args()
    return orderly(lambda: demonstrate(options.workers, options.fast, options.plain))


def demonstrate(workers: int, fast: bool, plain: bool) -> int:
    console = Console()
    print("starting the sample monolith under `reuseport serve` ...", file=sys.stderr)
    with Round(workers=workers, tenants=True) as rounds:
        story = Story(rounds, fast)
        story.begin()
        if console.is_terminal and not plain:
            show_live(story, console)
        else:
            show_plain(story)
        account = rounds.finish()
        if story.failure is not None:
            raise story.failure
        end = verdict(story, account)
        show_verdict(end, story, account, console if not plain else Console(force_terminal=False))
        return 0 if end.clean else 1
