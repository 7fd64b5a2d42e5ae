"""The history as bars, and as a picture that is well-formed whatever is in it."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reuseport.cli import drawing, history, page
from reuseport.cli import timeline as tl
from reuseport.cli.main import main
from reuseport.cli.timeline import Bar, Job, Scale, merge, pack, ticks, timeline

NOW = 1_795_600_000.0
SVG = "{http://www.w3.org/2000/svg}"


def release(
    number: int | None, at: float, outcome: str = "serving", seconds: float = 2.0, **more: Any
) -> dict[str, Any]:
    return {"event": "release", "number": number, "at": at, "outcome": outcome, "seconds": seconds, **more}


def drained(number: int, at: float, seconds: float, jobs: Any = (), before: Any = ()) -> dict[str, Any]:
    return {
        "event": "drained", "number": number, "at": at, "seconds": seconds, "jobs": list(jobs),
        "jobs_before": list(before),
    }  # fmt: skip


def job(at: float, seconds: float, **more: Any) -> dict[str, Any]:
    return {"name": "export", "tenant": "acme", "at": at, "seconds": seconds, "lost": False, **more}


def bars_of(lines: list[dict[str, Any]], status: Any = None, now: float = NOW) -> list[Bar]:
    return timeline(lines, status, now, 0).bars


# --- bars -------------------------------------------------------------------------------------------------------------


def test_a_generation_reaches_from_its_boot_to_its_last_job() -> None:
    [one, two] = bars_of(
        [
            release(1, 102.0),
            release(2, 200.0, seconds=5.0),
            drained(1, 260.0, 60.0, [job(260.0, 90.0)], [job(150.0, 10.0, tenant="globex")]),
        ],
        {"generations": [{"number": 2, "state": "serving", "age": 105.0}]},
        300.0,
    )
    assert one.phases() == [("boot", 100.0, 102.0), ("serve", 102.0, 200.0), ("drain", 200.0, 260.0)]
    assert one.jobs == [Job(140.0, 150.0, "export", "globex"), Job(170.0, 260.0, "export", "acme")]
    assert one.waited == 1 and not one.lives
    assert two.phases() == [("boot", 195.0, 200.0), ("serve", 200.0, 300.0)] and two.lives


def test_a_drain_that_goes_on_and_a_boot_are_known_from_the_master() -> None:
    waits = {"jobs": [{"name": "export", "tenant": "acme", "age": 50.0}]}
    status = {
        "generations": [
            {"number": 1, "state": "draining", "age": 200.0, "waits_for": waits},
            {"number": 2, "state": "serving", "age": 105.0},
            {"number": 3, "state": "booting", "age": 4.0, "label": "v3"},
        ]
    }
    one, two, three = bars_of([release(1, 102.0), release(2, 200.0)], status, 300.0)
    assert one.phases()[-1] == ("drain", 200.0, 300.0) and one.lives
    assert one.jobs == [Job(250.0, 300.0, "export", "acme", runs=True)]
    assert two.lives and three.phases() == [("boot", 296.0, 300.0)] and three.outcome == tl.BOOTING


def test_failures_are_bars_too() -> None:
    lines = [
        release(1, 102.0),
        release(2, 210.0, "failed", 8.0, error="ImportError"),
        release(None, 220.0, "failed", 0.0, error="bad file"),
        release(3, 230.0, "superseded"),
        release(4, 240.0),
        {"event": "taken back", "number": 4, "at": 250.0, "error": "5% errors"},
        release(5, 251.0, source=1, label="one"),
    ]
    found = {bar.number: bar for bar in bars_of(lines, None, 300.0)}
    assert found[2].phases() == [("boot", 202.0, 210.0)] and found[2].error == "ImportError"
    assert found[None].outcome == tl.FAILED and found[3].outcome == tl.SUPERSEDED
    assert found[4].outcome == tl.TAKEN_BACK and found[4].taken_back == 250.0 and found[4].error == "5% errors"
    assert drawing.label_of(found[5]) == "5 ← 1"


def test_a_canary_that_is_promoted_is_one_bar() -> None:
    [_, two] = bars_of([release(1, 100.0), release(2, 150.0, "canary"), release(2, 200.0)], None, 300.0)
    assert [phase for phase, _, _ in two.phases()] == ["boot", "trial", "serve"]


def test_what_a_killed_master_did_not_say_is_not_made_up() -> None:
    lines = [
        {"event": "started", "at": 90.0},
        release(1, 100.0),
        release(2, 200.0),
        {"event": "started", "at": 500.0, "adopted": []},
        release(3, 502.0),
        {"event": "stopped", "at": 600.0},
    ]
    line = timeline(lines, None, 900.0, 0)
    one, two, three = line.bars
    assert one.unknown and two.unknown and two.end == 200.0
    assert not three.unknown and three.end == 600.0
    assert line.idle == [(200.0, 500.0)]
    lines[3]["adopted"] = [2]
    assert timeline(lines, None, 900.0, 0).bars[1].drain == 502.0


def test_the_newest_are_shown() -> None:
    lines = [release(n, 100.0 * n) for n in range(1, 9)]
    assert [bar.number for bar in timeline(lines, None, 900.0, 3).bars] == [6, 7, 8]
    assert len(timeline(lines, None, 900.0, 0).bars) == 8


def test_no_history_is_drawn_too() -> None:
    line = timeline([], None, NOW, 0)
    assert ElementTree.fromstring(drawing.svg(line, [], "shop")).tag == SVG + "svg"
    assert "shop" in page.html(line, [], "shop", [], ["Generation"] * 7)


# --- lanes and axis ---------------------------------------------------------------------------------------------------

SECONDS = st.floats(0.0, 5e6, allow_nan=False)


@st.composite
def any_bars(draw: st.DrawFn) -> list[Bar]:
    bars = []
    for number in range(1, draw(st.integers(1, 25)) + 1):
        begin = draw(SECONDS)
        parts = [draw(st.floats(0.0, 1e5)) for _ in range(3)]
        serve = begin + parts[0] if draw(st.booleans()) else None
        drain = serve + parts[1] if serve is not None and draw(st.booleans()) else None
        bar = Bar(number, begin, max(begin, serve or 0.0, drain or 0.0) + parts[2], serve=serve, drain=drain)
        bar.outcome = draw(st.sampled_from((tl.SERVED, tl.FAILED, tl.TAKEN_BACK, tl.SUPERSEDED)))
        bar.lives, bar.source = draw(st.booleans()), draw(st.integers(0, 2))
        bars.append(bar)
    return sorted(bars, key=lambda bar: bar.begin)


@settings(deadline=None)
@given(any_bars(), st.integers(10, 90))
def test_bars_in_one_lane_do_not_touch(bars: list[Bar], wide: int) -> None:
    begin, end = min(bar.begin for bar in bars), max(bar.end for bar in bars) + 1.0
    scale = Scale(begin, end, [at for bar in bars for _, a, b in bar.phases() for at in (a, b)], 50.0, 1000.0)
    places = pack(bars, scale, 1040.0, lambda bar: float(wide), 3.0)
    lanes: dict[int, list[tuple[float, float]]] = {}
    for place in places:
        assert 50.0 <= place.x0 < place.x1 <= 1003.0
        low = place.x0 - wide if place.label == "left" else place.x0
        high = place.x1 + wide if place.label == "right" else place.x1
        assert high <= 1040.0
        lanes.setdefault(place.lane, []).append((low, high))
    for taken in lanes.values():
        for (_, first), (second, _) in pairwise(sorted(taken)):
            assert first < second
    assert sorted(lanes) == list(range(len(lanes))), "no lane is empty"


@given(st.lists(SECONDS, min_size=2, max_size=60, unique=True))
def test_the_axis_goes_forward_and_its_marks_do_not_collide(times: list[float]) -> None:
    begin, end = min(times), max(times) + 1.0
    scale = Scale(begin, end, times, 50.0, 1000.0)
    assert scale(begin) == pytest.approx(50.0) and scale(end) == pytest.approx(1000.0)
    places = [scale(at) for at in sorted(times)]
    assert places == sorted(places)
    marks = [scale(at) for at, _ in ticks(scale, 80.0)]
    assert all(second - first >= 80.0 for first, second in pairwise(marks))


def test_a_long_silence_is_drawn_shorter() -> None:
    times = [0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 1e6, 1e6 + 10, 1e6 + 20, 1e6 + 30]
    scale = Scale(0.0, 1e6 + 30, times, 0.0, 1000.0)
    assert scale.cuts == [(60.0, 1e6)]
    assert scale(60.0) > 300.0 and 1000.0 - scale(1e6) > 100.0
    assert not Scale(0.0, 300.0, [10.0, 20.0, 200.0], 0.0, 1000.0).cuts


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 9)), min_size=1, unique_by=lambda one: one[0]))
def test_samples_that_are_drawn_together_lose_no_request(found: list[tuple[int, int]]) -> None:
    samples = [
        {"at": at * 10.0 + 10.0, "seconds": 10.0, "requests": n, "errors": n % 2, "p50": 0.01 * n, "p99": 0.1 * n,
         "generations": {"7": n}}
        for at, n in found
    ]  # fmt: skip
    merged = merge(samples, Scale(0.0, 5100.0, [], 0.0, 300.0), 3.0)
    assert sum(one["requests"] for one in merged) == sum(n for _, n in found)
    assert sum(one["generations"]["7"] for one in merged) == sum(n for _, n in found)
    assert max(one["p99"] for one in merged) == pytest.approx(0.1 * max(n for _, n in found))
    for first, second in pairwise(merged):
        assert first["end"] <= second["begin"] + 1e-6


# --- the picture ------------------------------------------------------------------------------------------------------


def picture(lines: list[dict[str, Any]], samples: Any = ()) -> ElementTree.Element:
    return ElementTree.fromstring(drawing.svg(timeline(lines, None, NOW, 0), list(samples), "shop"))


def titles(root: ElementTree.Element) -> str:
    return "\n".join(one.text or "" for one in root.iter(SVG + "title"))


@settings(deadline=None, max_examples=50)
@given(st.text(), st.text(), st.text())
def test_whatever_is_said_it_is_well_formed_and_has_no_script(name: str, tenant: str, error: str) -> None:
    lines = [
        release(1, NOW - 500, label=name),
        release(2, NOW - 400, "failed", 3.0, error=error),
        release(3, NOW - 300),
        drained(1, NOW - 200, 100.0, [job(NOW - 200, 150.0, name=name, tenant=tenant)]),
    ]
    line = timeline(lines, None, NOW, 0)
    ElementTree.fromstring(drawing.svg(line, [], name))
    seen = set()

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: Any) -> None:
            seen.add(tag)
            assert not {key for key, _ in attrs} & {"src", "href", "onload", "onerror"}

    Parser().feed(page.html(line, [], name, history.rows(lines), ["Generation"] * 7))
    assert "script" not in seen and {"svg", "table", "title"} <= seen


def test_the_picture_says_what_happened() -> None:
    lines = [
        release(1, NOW - 500, label="one"),
        release(2, NOW - 400, "failed", 3.0, error="ImportError: no"),
        release(3, NOW - 300, source=1),
        drained(1, NOW - 200, 100.0, [job(NOW - 200, 150.0), job(NOW - 250, 9.0, tenant="globex", lost=True)]),
    ]
    root = picture(lines)
    said = titles(root)
    for fact in (
        "generation 1, one", "drained for 1m", "its drain waited for 2 jobs", "failed: ImportError: no",
        "back to the version of 1", "job export of acme: took 2m", "of globex: was lost after 9.0s",
    ):  # fmt: skip
        assert fact in said
    assert root.find(SVG + "desc").text.startswith("3 releases, 1 failed")
    assert {"acme"} <= {one.text for one in root.iter(SVG + "text")}


def test_traffic_is_drawn_where_there_are_samples() -> None:
    lines = [release(1, NOW - 500), release(2, NOW - 300)]
    samples = [
        {"at": NOW - 500 + 10 * n, "seconds": 10.0, "requests": 100, "errors": n == 7, "p50": 0.004, "p99": 0.02,
         "generations": {"1": 100} if n < 20 else {"1": 20, "2": 80}}
        for n in range(1, 30)
    ]  # fmt: skip
    texts = {one.text for one in picture(lines, samples).iter(SVG + "text")}
    assert {"requests/s", "p99 (pale: p50)"} <= texts
    said = titles(picture(lines, samples))
    assert "10 requests/s, p50 4.0ms, p99 20ms, 1 error" in said
    assert "requests/s" not in {one.text for one in picture(lines).iter(SVG + "text")}
    nothing = [{"at": NOW - 400, "seconds": 10.0}, {"at": None}, {}]
    picture(lines, nothing)


@pytest.mark.parametrize(("count", "period"), [(3, 300.0), (100, 30 * 86400.0)])
def test_three_releases_and_a_hundred_can_be_read(count: int, period: float) -> None:
    lines: list[dict[str, Any]] = []
    for n in range(1, count + 1):
        at = NOW - period + n * period / count
        lines.append(release(n, at, seconds=period / count / 20))
        if n > 1:
            lines.append(drained(n - 1, at + period / count / 3, period / count / 3, [job(at + 5, 60.0)]))
    line = timeline(lines, None, NOW, 0)
    width, _, places = drawing.layout(line)
    assert max(place.lane for place in places) < drawing.LANES
    assert width <= drawing.WIDTHS[-1] and (count > 3 or width == drawing.WIDTHS[0])


# --- the command, without a master ------------------------------------------------------------------------------------


@pytest.fixture
def left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run directory of a master that has gone."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    for name in ("REUSEPORT_RUN_DIR", "REUSEPORT_NAME", "REUSEPORT_STATE_DIR", "STATE_DIRECTORY", "RUNTIME_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    run_dir = tmp_path / "reuseport" / "shop"
    run_dir.mkdir(parents=True)
    (run_dir / "history.jsonl").write_text(
        '{"event":"release","number":1,"at":1000.0,"outcome":"serving","seconds":1.0,"label":"one"}\n{"torn'
    )
    return run_dir


@pytest.mark.parametrize("said", ["", "-n shop", "--state-dir reuseport/shop", "--run-dir reuseport/shop"])
def test_a_history_outlives_its_master(said: str, left: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = said.split()
    assert main(["history", *words]) == 0
    out, err = capsys.readouterr()
    assert "one" in out and "serving" in out
    assert ("no master lives here" in err and "history.jsonl" in err) or "--state-dir" in words
    assert main(["history", *words, "--html", "h.html"]) == 0
    assert main(["history", *words, "--svg", "h.svg"]) == 0
    assert ElementTree.parse("h.svg").getroot().tag == SVG + "svg"
    assert Path("h.html").read_text().startswith("<!DOCTYPE html>")
    capsys.readouterr()
    assert main(["history", *words, "--svg", "-"]) == 0
    assert ElementTree.fromstring(capsys.readouterr().out).tag == SVG + "svg"


def test_mistakes_are_told_in_one_line(left: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["history", "--html", "a", "--svg", "b"]) == 2
    assert main(["history", "--html", "/nowhere/h.html"]) == 1
    assert "--html: /nowhere/h.html: no such file" in capsys.readouterr().err
    assert main(["history", "--state-dir", "elsewhere"]) == 3
    assert "there is no history in" in capsys.readouterr().err
    (left.parent / "blog").mkdir()
    (left.parent / "blog" / "history.jsonl").touch()
    assert main(["history"]) == 2
    assert "-n blog, -n shop" in capsys.readouterr().err
