"""`scripts/bench`: the bars that a release of this project must clear, measured one after the other.

About ten minutes for all of them; name some to measure only those. Exit status 0 if all were cleared.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from proving.ending import orderly
from proving.scenarios import SCENARIOS, measure


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__.partition("\n\n")[0])
    parser.add_argument("bars", nargs="*", metavar="BAR", help=f"some of: {', '.join(SCENARIOS)} (all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write figures and reports there")
    options = parser.parse_args()
    for name in options.bars:
        if name not in SCENARIOS:
            parser.error(f"no bar is called {name!r}; there are: {', '.join(SCENARIOS)}")
    return orderly(lambda: measure(options.bars or list(SCENARIOS), options.json))
