"""What commands show: text in any script, tables in any width, states that may miss anything, a release's steps."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reuseport.cli.ink import PLAIN, Column, Ink, clip, clip_start, columns, ink_for, table
from reuseport.cli.overview import render
from reuseport.cli.progress import Lines, Steps
from reuseport.cli.status import picture
from reuseport.cli.words import latency, rate, text
from reuseport.core.events import Accepting, Exited, Forked, LetGo, Loaded, Ready, ReleaseAsked, Started, StopAsked
from reuseport.core.machine import step
from reuseport.core.model import ZYGOTE, Asker, Cluster, Key, Release
from reuseport.master import progress

COLOURED = Ink(colour=True)


def generation(number: int, state: str = "draining", **more: Any) -> dict[str, Any]:
    return {
        "number": number, "state": state, "age": 60.0 * number, "since": 30.0, "memory": 50 << 20,
        "directory": f"/srv/shop/releases/{number}", "workers": [],
        "waits_for": {"requests": 0, "connections": 0, "jobs": []}, **more,
    }  # fmt: skip


def facts_of(line: str) -> list[str]:
    return line.split()


# --- width and colour -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shown", "width"),
    [("", 0), ("abc", 3), ("株式会社", 8), ("é", 1), ("e\u0301", 1), ("\x1b[31mred\x1b[0m", 3), ("👍", 2), ("Ⅷ", 1)],
)
def test_columns_are_those_of_a_terminal(shown: str, width: int) -> None:
    assert columns(shown) == width


@given(st.text(), st.integers(1, 40))
def test_what_is_clipped_fits(value: str, width: int) -> None:
    safe = text(value)
    for clipped in (clip(safe, width), clip(COLOURED.paint("good", safe), width), clip_start(safe, width)):
        assert columns(clipped) <= width
    assert columns(safe) > width or clip(safe, width) == safe == clip_start(safe, width)


def test_a_colour_that_is_clipped_ends() -> None:
    assert clip(COLOURED.paint("bad", "failed again"), 4).endswith("\x1b[0m")


@given(st.lists(st.tuples(st.text(max_size=30), st.text(max_size=30)), max_size=8), st.integers(20, 60))
def test_a_table_stays_in_its_width(rows: list[tuple[str, str]], width: int) -> None:
    head = (Column("NAME", left=True, shrinks=8), Column("SAYS", left=True, spare=1))
    lines = table(head, [(text(a), text(b)) for a, b in rows], width)
    assert len(lines) == len(rows) + 1
    assert max(map(columns, lines)) <= width


def test_columns_that_matter_least_go_first_and_empty_ones_need_not_be_there() -> None:
    head = (Column("A"), Column("BBBB", spare=1), Column("CCCC", spare=2), Column("NEW", usual=False))
    row = ("1", "2", "3", "-")
    assert facts_of(table(head, [row])[0]) == ["A", "BBBB", "CCCC"]
    assert facts_of(table(head, [row], 8)[0]) == ["A", "BBBB"]
    assert facts_of(table(head, [row], 3)[0]) == ["A"]
    assert facts_of(table(head, [(*row[:3], "4")])[0])[-1] == "NEW"


class Stream(io.StringIO):
    def __init__(self, terminal: bool, encoding: str) -> None:
        super().__init__()
        self._terminal = terminal
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    def isatty(self) -> bool:
        return self._terminal


@pytest.mark.parametrize(
    ("terminal", "environ", "coloured"),
    [
        (True, {"TERM": "xterm"}, True),
        (True, {"TERM": "xterm", "NO_COLOR": ""}, True),  # https://no-color.org: present and not empty
        (True, {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (True, {"TERM": "dumb"}, False),
        (True, {}, False),
        (False, {"TERM": "xterm"}, False),
    ],
)
def test_who_gets_colours(terminal: bool, environ: dict[str, str], coloured: bool) -> None:
    assert ink_for(Stream(terminal, "utf-8"), environ).colour is coloured


def test_a_terminal_that_has_only_ascii_gets_only_that() -> None:
    ink = ink_for(Stream(True, "ascii"), {"TERM": "xterm"})
    (ink.bar(0.5, 10) + ink.mark("done") + ink.mark("failed")).encode("ascii")


def test_figures() -> None:
    seconds, numbers = (None, 0.0004, 0.012, 0.9996, 1.26, 150), (None, 0, 0.42, 12.4, 999.9, 3210, 64000)
    assert [latency(s) for s in seconds] == ["-", "0.4ms", "12ms", "1.0s", "1.3s", "2m"]
    assert [rate(n) for n in numbers] == ["-", "0", "0.4", "12", "1.0k", "3.2k", "64k"]


# --- status -----------------------------------------------------------------------------------------------------------

NUMBERS = {"requests_per_second": 3210.0, "errors_per_second": 0.5, "p50": 0.004, "p99": 0.038, "in_flight": 12}


@pytest.mark.parametrize("count", [0, 1, 50])
@pytest.mark.parametrize("width", [30, 80, 200, None])
def test_any_number_of_generations_in_any_width(count: int, width: int | None) -> None:
    generations = [generation(n, "serving" if n == count else "draining", numbers=NUMBERS) for n in range(1, count + 1)]
    lines = render({"generations": generations}, 0, width).splitlines()
    if width is not None:
        assert max(map(columns, lines)) <= width
    assert sum(bool(re.match(r"\d+ +(serving|draining)", line)) for line in lines) == count


def test_numbers_are_shown_where_a_master_has_them() -> None:
    status = {"numbers": NUMBERS, "generations": [generation(7, "serving", numbers=NUMBERS)]}
    shown = render(status, 0, None)
    row = next(line for line in shown.splitlines() if line.startswith("7 "))
    assert {"3.2k", "4.0ms", "38ms", "0.5"} <= set(facts_of(row))
    assert "3.2k requests/s" in shown and "12 in flight" in shown
    assert "REQ/S" not in render({"generations": [generation(7)]}, 0, None)


@pytest.mark.parametrize(
    ("queues", "said"),
    [([0, 0], "nothing queued (limit 128)"), ([0, 3], "queued 0 3 (limit 128)"),
     ([1] * 20, "queued 20 in 20 slots, at most 1 (limit 128)")],
)  # fmt: skip
def test_what_waits_in_the_kernel(queues: list[int], said: str) -> None:
    slots = [{"address": "a:1", "index": n, "queue": queue, "limit": 128} for n, queue in enumerate(queues)]
    assert said in render({"master": {"addresses": ["a:1"]}, "slots": slots}, 0)


def test_what_a_drain_waits_for() -> None:
    jobs = [
        {"name": "export", "tenant": "株式会社", "age": 660, "progress": 0.4, "text": "page 12", "left": 125,
         "where": "process", "pid": 4711},
        {"name": "late", "tenant": "", "age": 5, "progress": None, "left": -1},
        "a job of another version",
    ]  # fmt: skip
    lines = render({"generations": [generation(6, waits_for={"requests": 1, "jobs": jobs})]}, 0, None).splitlines()
    assert any(line.startswith("generation 6 waits for 1 request, 3 jobs") for line in lines)
    export = next(line for line in lines if "export" in line)
    for fact in ("株式会社", "11m", "40%", "page 12", "in 2m", "process 4711"):
        assert fact in export
    assert "has passed" in next(line for line in lines if "late" in line)


def test_a_held_tenant_is_what_its_generation_waits_for() -> None:
    waits = {"requests": 0, "connections": 0, "jobs": [], "held": ["acme"]}
    workers = [{"id": f"6.{n}", "state": "attending"} for n in (1, 2)]
    shown = render({"generations": [generation(6, waits_for=waits, workers=workers)]}, 0, None)
    assert "generation 6 waits for tenant acme, which is held here, draining for" in shown
    assert "tenant acme is held here (reuseport move acme lets go of it)" in shown
    assert "attending: 6.1, 6.2; they serve the tenants that are kept here" in shown
    waits |= {"held": ["a b", "acme"], "more_held": 3, "requests": 1}
    shown = render({"generations": [generation(6, waits_for=waits)]}, 0, None)
    assert "waits for 1 request, 5 held tenants" in shown and "and 3 other tenants" in shown and "move 'a b'" in shown
    # Before a release, too.
    shown = render({"generations": [generation(6, "serving", waits_for=waits)]}, 0, None)
    assert "tenant acme is held here" in shown
    steps = Steps()
    steps.hear({"stage": "draining", "generation": 7, "generations": [{"number": 6, "held": ["acme"], "jobs": []}]}, 0)
    assert steps.waits() == "generation 6 waits for tenant acme, which is held here"
    assert any("tenant acme is held here" in line for line in steps.lines(0))


@pytest.mark.parametrize(
    ("canary", "said"),
    [
        ({"tenants": ["acme"], "percent": 0}, "tenant acme"),
        ({"tenants": ["acme", "b"], "more": 7, "percent": 2.5}, "tenants acme, b, 7 more, and 2.5 % of the others"),
        ({"tenants": [], "percent": 10.0}, "10 % of all tenants"),
    ],
)
def test_who_tries_a_canary_out_is_shown(canary: dict[str, Any], said: str) -> None:
    generations = [generation(6, "serving"), generation(7, "canary", canary=canary)]
    assert f"generation 7 is on trial: {said}\n" in render({"generations": generations}, 0, None) + "\n"


def test_companions_and_what_is_lost_are_shown() -> None:
    companions = [
        {"id": "3.huey", "name": "huey", "pid": 9, "state": "running", "age": 5, "restarts": 2},
        {"name": "beat", "pid": 0, "state": "waiting", "age": 0, "restarts": 0, "why": "for 2.beat"},
        {"id": "3.rq", "name": "rq", "pid": 8, "state": "starting", "failing": "not ready", "why": "no broker"},
        {"id": "3.post", "name": "post", "pid": 7, "state": "running", "failing": "", "why": "", "status": "2 tasks"},
    ]
    waits = {"requests": 0, "jobs": [], "companions": ["3.huey"]}
    lost = {"jobs": [{"name": "export", "tenant": "acme", "age": 9, "at": 90.0, "pid": 7, "how": "was killed"}]}
    one = generation(3, "serving", companions=companions)
    shown = render({"generations": [one], "lost": lost}, 100.0)
    assert facts_of(next(line for line in shown.splitlines() if "huey" in line))[:3] == ["3.huey", "9", "running"]
    assert "for 2.beat" in shown
    assert "not ready" in (line := next(line for line in shown.splitlines() if "3.rq" in line)) and "no broker" in line
    assert "2 tasks" in next(line for line in shown.splitlines() if "3.post" in line)
    drains = render({"generations": [{**one, "state": "draining", "waits_for": waits}]}, 100.0)
    assert "waits for 1 companion" in drains and "for 2.beat" not in drains
    assert "1 job lost" in shown and "acme" in shown


def test_nothing_that_an_application_says_moves_the_cursor() -> None:
    evil = "\x1b[2Jgone\r\n"
    jobs = [{"name": evil, "tenant": evil, "text": evil, "age": 1, "progress": 0.5}]
    status = {
        "master": {"name": evil, "addresses": [evil], "state": evil},
        "generations": [generation(1, directory=evil, waits_for={"jobs": jobs})],
        "releases": [{"number": 1, "error": evil, "outcome": evil}],
    }
    shown = render(status, 0, None)
    assert "\x1b" not in shown and "\r" not in shown and "\\x1b[2Jgone" in shown


def test_colours_change_no_layout() -> None:
    status = {"numbers": NUMBERS, "generations": [generation(n, "serving") for n in (1, 2)]}
    painted = render(status, 0, 80, COLOURED)
    assert "\x1b[32m" in painted
    assert re.sub(r"\x1b\[[0-9;]*m", "", painted) == render(status, 0, 80)


def test_a_picture_of_a_master_that_has_gone_says_so() -> None:
    lines = picture({"serving": 3}, 0, 80, PLAIN, 1.0, "no master in /run/shop", 12.0)
    assert any("no master in /run/shop" in line and "12s ago" in line for line in lines)
    assert any("serving generation 3" in line for line in lines)


# --- the steps of a release -------------------------------------------------------------------------------------------

LOADING = {"event": "progress", "generation": 8, "stage": "loading", "since": 0.0, "of": 4, "ready": 0, "deadline": 120}


def stage(name: str, **more: Any) -> dict[str, Any]:
    return {**LOADING, "stage": name, **more}


def test_a_release_that_succeeds() -> None:
    steps = Steps()
    steps.hear(LOADING, 10.0)
    assert "loading" in steps.lines(11.0)[0] and "given up in 1m" in steps.lines(11.0)[0]
    steps.hear(stage("warming"), 12.5)
    steps.hear(stage("warming", ready=3, since=0.5), 13.0)
    lines = steps.lines(13.0)
    assert "loaded" in lines[0] and "2.5s" in lines[0]
    assert "workers ready 3/4" in lines[1] and "0.5s" in lines[1]
    steps.hear(stage("warming", ready=4, since=0.7, companions=["8.mail", "8.rq"], deadline=90), 13.2)
    assert "waiting for 8.mail, 8.rq, given up in 1m" in steps.lines(13.3)[1]
    steps.hear(stage("opening", accepting=1), 14.0)
    steps.hear(stage("letting go", lingering=2, deadline=None), 14.2)
    assert "2 old workers not yet" in steps.lines(14.3)[-1]
    jobs = [{"name": "export", "tenant": "acme", "age": 60, "progress": 0.4}]
    steps.hear(stage("draining", generations=[{"number": 7, "requests": 0, "jobs": jobs}]), 15.0)
    below = "\n".join(steps.lines(16.0))
    for fact in ("generation 7 waits for 1 job", "export", "acme", "40%"):
        assert fact in below
    steps.end(True, 18.0)
    lines = steps.lines(99.0)
    assert len(lines) == 5 and "drained" in lines[-1] and "3.0s" in lines[-1] and "export" not in "\n".join(lines)
    assert all(line.split()[0] == PLAIN.mark("done") for line in lines)


def test_a_release_that_fails_has_failed_where_it_was() -> None:
    steps = Steps()
    steps.hear(LOADING, 1.0)
    steps.hear(stage("warming", ready=1), 2.0)
    steps.end(False, 4.0)
    first, last = steps.lines(9.0)
    assert first.split()[0] == PLAIN.mark("done")
    assert last.split()[0] == PLAIN.mark("failed") and "1/4" in last


def test_a_newer_release_takes_the_place_of_the_one_before() -> None:
    steps = Steps()
    steps.hear({"stage": "waiting", "for": 8}, 1.0)
    assert "generation 8" in steps.lines(1.0)[0]
    steps.hear({**LOADING, "generation": 9}, 2.0)
    assert len(steps.lines(2.0)) == 1 and "loading" in steps.lines(2.0)[0]


def test_a_master_of_another_version_says_little_or_much() -> None:
    steps = Steps()
    assert steps.lines(0.0) == [] and steps.waits() == ""
    steps.hear({"stage": "something new"}, 1.0)
    assert "something new" in steps.lines(2.0)[0]
    steps.hear({}, 1.0)
    assert steps.lines(3.0)


def test_plain_lines_say_once_what_is_waited_for() -> None:
    out = io.StringIO()
    lines = Lines(out)
    lines.hear({"event": "stage", "text": "generation 8: loading"})
    lines.hear(LOADING)
    for _ in range(3):
        lines.hear(stage("draining", generations=[{"number": 7, "requests": 0, "jobs": [{"name": "export"}]}]))
    assert out.getvalue() == "generation 8: loading\ngeneration 7 waits for 1 job\n"
    assert lines.last == "generation 7 waits for 1 job"


# --- and what the master says of them ---------------------------------------------------------------------------------


def told(cluster: Cluster, now: float, asker: str = "me") -> dict[str, Any] | None:
    return progress.of(cluster, asker, lambda g: {"requests": 0, "jobs": [{"name": str(n)} for n in range(30)]}, now)


def test_the_master_tells_each_stage_to_who_asked() -> None:
    cluster, now = Cluster(), 0.0

    def tell(*events: Any) -> dict[str, Any]:
        nonlocal cluster, now
        for event in events:
            now += 1.0
            cluster, _ = step(cluster, event, now)
        return told(cluster, now) or {}

    def boots(number: int) -> list[Any]:
        return [Started(Key(number, ZYGOTE), 100), Loaded(Key(number, ZYGOTE))]

    release = Release(recipe={"directory": "/srv"}, workers=2, boot_timeout=60.0)
    tell(ReleaseAsked(release), *boots(1))
    for event in (Forked, Ready, Accepting):
        tell(*(event(Key(1, n), 10 + n) if event is Forked else event(Key(1, n)) for n in (1, 2)))
    assert cluster.serving is not None and told(cluster, now) is None

    first = tell(ReleaseAsked(release, Asker("me", "drained")))
    assert (first["stage"], first["generation"], first["of"], first["deadline"]) == ("loading", 2, 2, 60.0)
    assert told(cluster, now, "somebody else") is None
    assert tell(*boots(2))["stage"] == "warming"
    half = tell(Forked(Key(2, 1), 21), Forked(Key(2, 2), 22), Ready(Key(2, 1)))
    assert (half["stage"], half["ready"]) == ("warming", 1)
    assert tell(Ready(Key(2, 2)))["stage"] == "opening"
    assert tell(Accepting(Key(2, 1)))["accepting"] == 1
    assert tell(Accepting(Key(2, 2)))["stage"] == "letting go"
    drains = tell(LetGo(Key(1, 1)), LetGo(Key(1, 2)))
    assert drains["stage"] == "draining"
    [waits] = drains["generations"]
    assert (waits["number"], len(waits["jobs"]), waits["more"]) == (1, progress.SHOWN, 30 - progress.SHOWN)
    assert tell(Exited(Key(1, 1)), Exited(Key(1, 2)), Exited(Key(1, ZYGOTE))) == {}
    assert tell(StopAsked())["stage"] == "stopping"
