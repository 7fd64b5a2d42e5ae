"""The history as one HTML page: a summary, the picture, and the same as a table for those who rather read.

It asks for nothing else, and has no script.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reuseport.cli import style
from reuseport.cli import timeline as tl
from reuseport.cli.drawing import svg
from reuseport.cli.telling import escaped, period, took
from reuseport.cli.timeline import Bar, Timeline


def html(
    line: Timeline, samples: Sequence[Mapping[str, Any]], name: str, rows: Sequence[Sequence[str]], head: Sequence[str]
) -> str:
    """The page: a summary, the picture, and `rows` under `head` for those who rather read."""
    title = f"{escaped(name)}: releases"
    cells = "".join(f"<th scope=col>{escaped(word)}</th>" for word in head)
    body = "".join(
        f"<tr{' class=bad' if _is_bad(row) else ''}>{''.join(f'<td>{escaped(cell)}</td>' for cell in row)}</tr>\n"
        for row in rows
    )
    facts = "".join(
        f"<div><dt>{escaped(what)}</dt><dd{' class=bad' if bad else ''}>{escaped(said)}"
        f"{f' <small>{escaped(remark)}</small>' if remark else ''}</dd></div>"
        for what, said, remark, bad in summary(line.bars)
    )
    return (
        '<!DOCTYPE html>\n<html lang="en" class="rp">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{title}</title>\n<style>{style.PICTURE}{style.PAGE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{title}</h1>\n<p>{escaped(period(line))}</p>\n<dl>{facts}</dl>\n"
        f"<figure>{svg(line, samples, name, alone=False)}</figure>\n"
        f'<div class="table"><table>\n<thead><tr>{cells}</tr></thead>\n<tbody>\n{body}</tbody>\n</table></div>\n'
        "</main>\n</body>\n</html>\n"
    )


def summary(bars: Sequence[Bar]) -> list[tuple[str, str, str, bool]]:
    """What, how much, a remark, and whether that is bad."""
    failed = [bar for bar in bars if bar.outcome == tl.FAILED]
    taken = [bar for bar in bars if bar.outcome == tl.TAKEN_BACK]
    lost = sum(job.lost for bar in bars for job in bar.jobs)
    facts = [("releases", str(len(bars)), "", False), ("failed", str(len(failed)), "", bool(failed))]
    if taken:
        facts.append(("taken back", str(len(taken)), "", True))
    boots = sorted(first - bar.begin for bar in bars if (first := bar.trial or bar.serve) is not None)
    if boots:
        facts.append(("boot, median", took(boots[len(boots) // 2]), "", False))
    drained = [bar for bar in bars if bar.drain is not None]
    if drained:
        longest = max(drained, key=lambda bar: bar.end - (bar.drain or bar.end))
        drain = longest.end - (longest.drain or longest.end)
        facts.append(("longest drain", took(drain), f"generation {longest.number}", False))
    facts.append(("jobs that drains waited for", str(sum(bar.waited for bar in bars)), "", False))
    if lost:
        facts.append(("jobs lost", str(lost), "", True))
    return facts


def _is_bad(row: Sequence[str]) -> bool:
    return any(cell.startswith((tl.FAILED, tl.TAKEN_BACK)) for cell in row[3:4])
