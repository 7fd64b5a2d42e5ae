"""The demo's two faces: a live display on a terminal, and plain lines everywhere else.

Both show the same story: generations as rows, with what each old one still waits for; the requests answered by each
version over time, in its colour; the kinds of clients; what happened, a sentence each.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.layout import Layout
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from proving.accounting import BUCKET, SHORT, Account, Window, percentile
from proving.round import version_of
from proving.story import TENANT, Export, Job, Line, Story
from proving.verdict import Verdict, ms

COLOURS = ("cyan", "magenta", "yellow", "red", "green", "blue", "bright_cyan", "bright_magenta", "bright_yellow")
MOODS = {"good": "✔", "bad": "✘", "note": "▸", "": "·"}
EIGHTHS = " ▁▂▃▄▅▆▇█"
STATES = {
    "booting": "◌ boots",
    "serving": "● serves",
    "draining": "◐ drains",
    "ending": "◔ ends",
    "standby": "◇ stands by",
}
PEOPLE = {
    "keep-alive": "keep their connection",
    "one-shot": "a new one each time",
    "idle": "silent for seconds on one",
    "slow": "ask for 3 s of waiting",
    "upload": "send a body in pieces",
    "stream": "get an answer in pieces",
    "export": "the one long request",
    "job": "begins work that goes on behind it",
}
FRAMES_A_SECOND = 6


def colour(version: int) -> str:
    return COLOURS[(version - 1) % len(COLOURS)] if version else "white"


def show_live(story: Story, console: Console) -> None:
    """Draw until the story is over."""
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while not story.over.is_set():
            story.look()
            with story.round.load.looking() as account:
                screen = whole(story, account, console)
            live.update(screen, refresh=True)
            story.over.wait(1 / FRAMES_A_SECOND)


def show_plain(story: Story) -> None:
    """A line for each thing that happens, and every 3 s one for how it goes."""
    told, due = 0, 3.0
    while True:
        ended = story.over.wait(0.1)
        for line in story.lines[told:]:
            print(f"{line.at:6.1f} s  {MOODS[line.mood]} {line.text}", flush=True)
            told += 1
        if ended and told == len(story.lines):
            return
        if story.elapsed >= due:
            due += 3.0
            story.look()
            with story.round.load.looking() as account:
                print(f"{story.elapsed:6.1f} s    {how_it_goes(story, account)}", flush=True)


def how_it_goes(story: Story, account: Account) -> str:
    """The state of everything in one plain line."""
    recent = recently(account, 3.0)
    by_version = Counter[int]()
    now = int((time.monotonic() - account.start) / BUCKET)
    for bucket in range(now - int(3 / BUCKET), now):
        by_version.update(account.timeline.get(bucket, {}))
    answers = ", ".join(f"v{version} {n / 3:.0f}/s" for version, n in sorted(by_version.items())) or "none"
    drains = [
        f"generation {number} (v{version_of(generation)}) waits for {waits_for(generation)}"
        for number, generation in sorted(story.seen.items())
        if number not in story.gone and generation["state"] == "draining"
    ]
    figures = [f"answers: {answers}", f"p99 {ms(percentile(recent, 0.99))}", f"failed {account.failed}"]
    tenants = ", ".join(f"{tenant} on v{version}" for tenant, version in whereabouts(account).items())
    return "; ".join([*figures, *([tenants] if tenants else []), *drains])


def whereabouts(account: Account) -> dict[str, int]:
    """The version that gave each tenant its last answer."""
    latest: dict[str, int] = {}
    for one in account.tenants[-100:]:
        latest[one.tenant] = one.version
    return dict(sorted(latest.items()))


def recently(account: Account, seconds: float) -> list[float]:
    now = time.monotonic()
    return account.latencies(SHORT, [Window(now - seconds, now)])


def waits_for(generation: dict[str, Any]) -> str:
    """What a drain still waits for, in words."""
    waits = generation.get("waits_for") or {}
    parts = [
        f"{n} {name if n == 1 else name + 's'}"
        for name, n in (("request", waits.get("requests", 0)), ("connection", waits.get("connections", 0)))
        if n
    ]
    for job in waits.get("jobs", []):
        whose = f" of {job['tenant']}" if job.get("tenant") else ""
        parts.append(f"job {job['name']}{whose}")
    return ", ".join(parts) or "its processes to end"


# --- the panels


def whole(story: Story, account: Account, console: Console) -> RenderableType:
    width, height = console.size
    rows = Layout()
    side_by_side = width >= 116 and height >= 32
    listed = 8 if side_by_side else 6 if height >= 28 else 4
    middle = Layout(size=listed + 3)
    if side_by_side:
        middle.split_row(Layout(generations(story, listed)), Layout(kinds(account)))
    else:
        middle.update(generations(story, listed))
    # Half of what is left is for the bars, the other half for the sentences.
    bars = min(9, max(4, (height - 4 - middle.size) // 2 - 4))
    parts = [
        Layout(header(story, account, width - 4), size=4),
        Layout(timeline(account, width - 4, bars, story), size=bars + 4),
        middle,
        Layout(events(story, height - 4 - (bars + 4) - middle.size - 2)),
    ]
    rows.split_column(*parts)
    return rows


def header(story: Story, account: Account, width: int) -> Panel:
    """Two lines; the second in fewer words where it would not fit."""
    recent = recently(account, 5.0)
    silence = account.longest_silence([story.round.load.busy])
    top = Text(f"one address, one master, {len(story.round.started)} releases asked for, ", "bold")
    top.append(*(("nobody interrupted", "bold") if account.clean_so_far else ("and trouble", "bold red")))
    top.append(f"    {story.elapsed:4.0f} s", "dim")

    def line(requests: str, p99: str, gap: str, on: str, between: str) -> Text:
        parts = [
            (f"{account.answered:,}{requests} answered", "bold"),
            (f"{account.failed} failed", "bold green" if not account.failed else "bold red"),
            (f"{p99} {ms(percentile(recent, 0.99))}", ""),
            (f"{gap} {ms(silence)}", ""),
            *((f"{tenant} {on}v{v}", colour(v)) for tenant, v in whereabouts(account).items()),
        ]
        return Text(between).join(Text(*part) for part in parts)

    below = line(" requests", "p99 now", "longest silence", "on ", "  ·  ")
    if below.cell_len > width:
        below = line("", "p99", "silence", "", " · ")
    return Panel(Group(top, below), box=box.HEAVY, title="reuseport", title_align="left", border_style="bold")


def timeline(account: Account, width: int, height: int, story: Story) -> Panel:
    """Requests answered per half second, stacked by version: the oldest at the bottom, so that one sees it thin out."""
    last = int((time.monotonic() - account.start) / BUCKET) - 1  # the running one would look like a slump
    first = max(0, last - width + 1)
    columns = [account.timeline.get(bucket, Counter[int]()) for bucket in range(first, last + 1)]
    highest = max((sum(column.values()) for column in columns), default=0) or 1
    cells = [stacked(column, highest, height) for column in columns]
    lines = []
    for row in range(height - 1, -1, -1):
        line = Text()
        for column in cells:
            character, version = column[row]
            line.append(character, colour(version))
        lines.append(line)
    lines.append(marks(story, account, first, len(columns)))
    lines.append(legend(account))
    return Panel(Group(*lines), box=box.ROUNDED, title="requests answered, by version", title_align="left")


def stacked(column: Counter[int], highest: int, height: int) -> list[tuple[str, int]]:
    """A column's cells from the bottom: its character and the version that has most of it."""
    steps = height * 8
    edges, total = [], 0
    for version in sorted(column):
        total += column[version]
        # Whoever answered at all is seen.
        edges.append((max(round(total * steps / highest), (edges[-1][0] if edges else 0) + 1), version))
    cells = []
    for row in range(height):
        owner = next((version for edge, version in edges if edge > row * 8), 0)
        filled = min(8, max(0, (edges[-1][0] if edges else 0) - row * 8))
        cells.append((EIGHTHS[filled], owner))
    return cells


def marks(story: Story, account: Account, first: int, count: int) -> Text:
    """Below the bars, where releases were served or refused."""
    places = {}
    for release in story.round.started:
        if release.outcome:
            place = int((release.ended - account.start) / BUCKET) - first
            places[place] = ("▲", colour(release.version)) if release.outcome == "served" else ("✘", "bold red")
    line = Text()
    for place in range(count):
        line.append(*places.get(place, ("─", "dim")))
    return line


def legend(account: Account) -> Text:
    line = Text()
    for version, n in sorted(account.by_version.items()):
        line.append(f"■ v{version} ", colour(version))
        line.append(f"{n:,}   ", "dim")
    line.append("▲ served  ✘ refused", "dim")
    return line


def generations(story: Story, rows: int) -> Panel:
    table = Table(box=None, expand=True, pad_edge=False, header_style="dim")
    for name, justify in (("gen", "left"), ("state", "left"), ("workers", "left"), ("answered", "right")):
        table.add_column(name, justify=justify, no_wrap=True)
    table.add_column("still waits for", ratio=1, no_wrap=True)
    # Those that live come first; where there is room, those that have gone.
    order = sorted(story.seen, key=lambda number: (number not in story.gone, number), reverse=True)[:rows]
    for number in sorted(order, reverse=True):
        generation = story.seen[number]
        version = version_of(generation)
        name = f"{number}  v{version}"
        if number in story.gone:
            state, what = ("✘ refused", "never served") if generation["state"] == "booting" else ("○ gone", "finished")
            table.add_row(name, state, "", "", f"{what}, {story.gone[number]:.0f} s", style="dim")
            continue
        waiting = Text(waits_for(generation) if generation["state"] == "draining" else "")
        if number == story.export.generation and story.export.begun and not story.export.ended:
            waiting = progress("export", story.export)
        if number == story.job.generation and not story.job.ended:
            waiting = Text("  ").join([waiting, progress(f"{TENANT}'s job", story.job)])
        answered = sum(worker["requests"]["total"] for worker in generation["workers"])
        state = STATES.get(generation["state"], generation["state"])
        dots = "●" * len(generation["workers"])
        table.add_row(name, state, dots, f"{answered:,}", waiting, style=colour(version))
    return Panel(table, box=box.ROUNDED, title="generations", title_align="left")


def progress(name: str, work: Export | Job) -> Text:
    share = min(1.0, (time.monotonic() - work.begun) / work.seconds)
    full = round(share * 8)
    return Text.assemble(f"{name} ", ("━" * full, "bold"), ("━" * (8 - full), "dim"), f" {share:.0%}")


def kinds(account: Account) -> Panel:
    table = Table(box=None, expand=True, pad_edge=False, header_style="dim")
    table.add_column("clients", no_wrap=True, ratio=1)
    for name in ("answered", "failed", "worst"):
        table.add_column(name, justify="right", no_wrap=True)
    failed = Counter(trouble.kind for trouble in account.failures)
    for kind, people in PEOPLE.items():
        if account.sent_by_kind[kind]:
            worst = ms(max(account.latencies([kind]), default=0.0)) if kind in SHORT else ""
            failures = Text(str(failed[kind]), "bold red" if failed[kind] else "green")
            table.add_row(f"[bold]{kind}[/]  [dim]{people}[/]", f"{account.by_kind[kind]:,}", failures, worst)
    return Panel(table, box=box.ROUNDED, title="clients", title_align="left")


def events(story: Story, rows: int, *, whole: bool = False) -> Panel:
    """The last sentences of the story, or all of them, in full."""
    lines = story.lines if whole else story.lines[-rows:]
    body = Group(*(sentence(line, whole) for line in lines))
    return Panel(body, box=box.ROUNDED, title="what happens", title_align="left")


def sentence(said: Line, whole: bool) -> Text:
    style = "bold red" if said.mood == "bad" else colour(said.version)
    line = Text() if whole else Text(no_wrap=True, overflow="ellipsis")
    line.append(f"{said.at:5.1f} s ", "dim")
    line.append(f"{MOODS[said.mood]} {said.text}", style)
    return line


# --- the end


def show_verdict(verdict: Verdict, story: Story, account: Account, console: Console) -> None:
    if not console.is_terminal:
        print_verdict(verdict)
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, figure in verdict.figures:
        table.add_row(name, figure)
    console.print(timeline(account, console.width - 4, 8, story))
    console.print(events(story, 0, whole=True))
    last = (
        Text("✔ Nobody was interrupted.", "bold green")
        if verdict.clean
        else Text("\n".join(f"✘ {trouble}" for trouble in verdict.troubles), "bold red")
    )
    body = Group(table, Padding(last, (1, 0, 0, 0)))
    console.print(Panel(body, box=box.HEAVY, title="the verdict", title_align="left"))


def print_verdict(verdict: Verdict) -> None:
    print("\nthe verdict")
    for name, figure in verdict.figures:
        print(f"  {name:16} {figure}")
    for trouble in verdict.troubles:
        print(f"  ✘ {trouble}")
    print("  ✔ Nobody was interrupted." if verdict.clean else "  ✘ This should not have happened.")
    sys.stdout.flush()
