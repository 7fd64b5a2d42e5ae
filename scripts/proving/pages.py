"""Writes the pages that follow from the code."""

from __future__ import annotations

from proving.bootstrap import CHECKOUT


def main() -> int:
    from reuseport.options.manual import options_page

    (CHECKOUT / "docs" / "options.md").write_text(options_page(), encoding="utf-8")
    return 0
