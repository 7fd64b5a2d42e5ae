"""How many examples hypothesis tries: REUSEPORT_EXAMPLES=20 in the environment tries twenty times as many."""

from __future__ import annotations

import os

TIMES = int(os.environ.get("REUSEPORT_EXAMPLES", "1"))


def examples(count: int) -> int:
    """For max_examples: `count` in a usual test run."""
    return count * TIMES
