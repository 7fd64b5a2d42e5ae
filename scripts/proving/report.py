"""What `scripts/bench peers` leaves behind: a page of tables, and a chart (SVG, written by hand)."""

from __future__ import annotations

import os
import platform
import time
from html import escape
from pathlib import Path

from proving.burdens import Table
from proving.peers import Peer, version
from proving.speed import Measured, Results
from proving.wrk import Case

OURS = "reuseport"
COLOURS = {OURS: "#c2410c"}
OTHER = "#94a3b8"


def machine() -> str:
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    return f"{os.cpu_count()} cores ({model}), Linux {platform.release()}, Python {platform.python_version()}"


def versions(peers: list[Peer]) -> str:
    """Each package once, with its version; those that reuseport and gunicorn stand on too."""
    packages = [(peer.package or "reuseport").partition("[")[0] for peer in peers]
    return ", ".join(f"{package} {version(package)}" for package in dict.fromkeys([*packages, "gevent", "flask"]))


def cell(measured: Measured, figure: str) -> str:
    if not measured.runs:
        return "failed"
    marks = []
    if measured.failed:
        marks.append(f"{measured.failed:,} errors")
    if measured.broken:
        marks.append(f"{measured.broken:,} broken")
    if measured.trouble:
        marks.append("ended early")
    return figure + (f" ✘ {', '.join(marks)}" if marks else "")


def rate_rows(case: Case, peers: list[Peer], results: Results) -> list[list[str]]:
    """server, requests/s, spread, ours against it, p50, p99. (wrk does not tell latencies of pipelined requests.)"""
    by_server = results[case.name]
    ours = by_server[OURS].rate if OURS in by_server else 0.0
    rows = []
    for peer in sorted(peers, key=lambda peer: -by_server[peer.name].rate if peer.name in by_server else 0):
        if peer.name not in by_server:
            continue
        measured = by_server[peer.name]
        ratio = f"{ours / measured.rate:.2f}" if ours and measured.rate and not measured.errs else ""
        rows.append([
            peer.name, cell(measured, f"{measured.rate:,.0f}"), f"±{measured.spread:.0%}", ratio,
            *(("", "") if case.pipelined > 1 else (f"{measured.p50 * 1000:.2f}", f"{measured.p99 * 1000:.2f}")),
        ])  # fmt: skip
    return rows


HEADS = ["server", "requests/s", "spread", "reuseport is x times", "p50 ms", "p99 ms"]


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def page(
    peers: list[Peer],
    cases: list[Case],
    families: dict[int, tuple[list[Case], Results]],
    burdens: list[tuple[str, Table]],
    *,
    rounds: int,
    seconds: float,
    busy: float,
) -> str:
    """`families`: cases and results by the number of workers; `burdens`: what each other table is, and the table."""
    parts = [
        "# Side by side\n",
        f"`scripts/bench peers`, {time.strftime('%d %B %Y', time.gmtime())}: {machine()}. {versions(peers)}.\n",
        f"Medians of {rounds} rounds. In a round each server is started alone, with one worker bound to one core, and "
        f"wrk drives it from the other for {seconds:g} s in each case. Rounds are interleaved, and each begins with "
        "another server. Each server is configured as its documentation recommends for production, with keep-alive and "
        "without an access log; reuseport has all its defaults. The spread is half the range of the rounds. wrk is a "
        "closed loop (a connection asks again when it was answered), 64 connections, 16 where requests are pipelined. "
        "Latencies at a fixed rate are further down. ✘ marks a server that erred.\n",
        f"Something on the machine waited for a CPU {busy:.0%} of the time (on a quiet one: a few percent).\n",
        "![requests per second](bench.svg)\n",
    ]
    for workers, (measured, results) in families.items():
        for case in measured:
            many = "" if workers == 1 else f", {workers} workers (the client shares their cores)"
            parts += [f"## {case.title}{many}\n", table(HEADS, rate_rows(case, peers, results)) + "\n"]
    for what, (title, columns, rows) in burdens:
        parts += [f"## {title}\n", what + "\n"]
        parts.append(
            table(["", *columns], [[name, *cells, *[""] * (len(columns) - len(cells))] for name, cells in rows.items()])
            + "\n"
        )
    return "\n".join(parts)


# --- the chart

WIDTH, PANEL, LABEL, ROW, HEAD = 920, 440, 128, 20, 34


def chart(peers: list[Peer], cases: list[Case], results: Results) -> str:
    """A panel for each case, two beside each other; a bar for each server, the fastest on top, ours in colour."""
    height_of = HEAD + ROW * len(peers) + 18
    height = 44 + height_of * ((len(cases) + 1) // 2)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="system-ui, Helvetica, Arial, sans-serif" font-size="12" fill="#1e293b">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        '<text x="16" y="27" font-size="16" font-weight="600">Requests per second, one worker on one core</text>',
    ]
    for number, case in enumerate(cases):
        x, y = 16 + (number % 2) * (PANEL + 16), 44 + (number // 2) * height_of
        parts.append(f'<text x="{x}" y="{y + 20}" font-weight="600">{escape(case.title)}</text>')
        ordered = sorted(peers, key=lambda peer: -results[case.name][peer.name].rate)
        most = max((results[case.name][peer.name].rate for peer in peers), default=0.0) or 1.0
        for row, peer in enumerate(ordered):
            measured = results[case.name][peer.name]
            top = y + HEAD + row * ROW
            length = measured.rate / most * (PANEL - LABEL - 76)
            ours = peer.name == OURS
            weight = ' font-weight="600"' if ours else ""
            said = cell(measured, f"{measured.rate:,.0f}").replace("✘", "✘ ").partition("  ")[0]
            parts += [
                f'<text x="{x + LABEL - 8}" y="{top + 12}" text-anchor="end"{weight}>{escape(peer.name)}</text>',
                f'<rect x="{x + LABEL}" y="{top}" width="{max(length, 1):.1f}" height="15" rx="2" '
                f'fill="{COLOURS.get(peer.name, OTHER)}"/>',
                f'<text x="{x + LABEL + length + 6:.1f}" y="{top + 12}"{weight}>{escape(said)}</text>',
            ]
    return "\n".join([*parts, "</svg>"]) + "\n"
