"""`scripts/test`: pytest, with the arguments given.

Most tests of `integration/` wait for the servers that they have started, so several processes run tests side by side,
each of them its own share. Who names files wants to see them run, one after another, with what `-s` and `--pdb` show.
"""

from __future__ import annotations

import os
import sys

from proving.bootstrap import CHECKOUT

OLDEST = (
    "tests/unit",
    *(
        f"tests/integration/test_{name}.py"
        for name in (
            *("release", "rollback", "tenants", "handover", "preload", "signals", "stacks_of_workers", "frameworks"),
            *("native_threads", "jobs", "job_processes", "websockets", "embedding", "logs", "hard_cases"),
        )
    ),
)
PROCESSES = 3  # more than the cores of a small machine, whose tests wait; more than these gain nothing there


def main() -> int:
    os.chdir(CHECKOUT)
    given = [word for word in sys.argv[1:] if word != "--oldest"]
    if "--python" in given:
        at = given.index("--python")
        del given[at : at + 2]
    # `-n` and `--dist` among the arguments come later, and win.
    side_by_side = [] if any(".py" in word for word in given) else ["-n", "auto", "--dist", "worksteal"]
    if "--oldest" in sys.argv and not any(word.startswith("tests") for word in given):
        given += OLDEST
    os.environ.setdefault("PYTEST_XDIST_AUTO_NUM_WORKERS", str(PROCESSES))
    os.execv(sys.executable, [sys.executable, "-m", "pytest", *side_by_side, *given])
