"""`scripts/lint`: ruff over everything, mypy over what pyproject.toml says. Exit status 0 if both are content."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from proving.bootstrap import CHECKOUT


def main() -> int:
    os.chdir(CHECKOUT)
    # The scripts have no suffix by which ruff would know them.
    scripts = [str(path) for path in sorted(Path("scripts").iterdir()) if path.is_file()]
    checks = [["ruff", "check", ".", *scripts], ["mypy"]]
    failed = [check[0] for check in checks if subprocess.run([sys.executable, "-m", *check]).returncode]
    if failed:
        print(f"scripts/lint: {' and '.join(failed)} found something", file=sys.stderr)
    return 1 if failed else 0
