"""`scripts/test`: pytest, with the arguments given.

Most tests of `integration/` wait for the servers that they have started, so several processes run tests side by side,
each of them its own share. Who names files wants to see them run, one after another, with what `-s` and `--pdb` show.
"""

from __future__ import annotations

import os
import sys

from proving.bootstrap import CHECKOUT

PROCESSES = 3  # more than the cores of a small machine, whose tests wait; more than these gain nothing there


def main() -> int:
    os.chdir(CHECKOUT)
    given = sys.argv[1:]
    # `-n` and `--dist` among the arguments come later, and win.
    side_by_side = [] if any(".py" in word for word in given) else ["-n", "auto", "--dist", "worksteal"]
    os.environ.setdefault("PYTEST_XDIST_AUTO_NUM_WORKERS", str(PROCESSES))
    os.execv(sys.executable, [sys.executable, "-m", "pytest", *side_by_side, *given])
