"""`scripts/test`: pytest, with the arguments given."""

from __future__ import annotations

import os
import sys

from proving.bootstrap import CHECKOUT


def main() -> int:
    os.chdir(CHECKOUT)
    os.execv(sys.executable, [sys.executable, "-m", "pytest", *sys.argv[1:]])
