"""What `scripts/bench peers` makes of figures: ratios, marks for servers that err, a chart that is well-formed."""

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from proving import bench, report, wrk
from proving.peers import PEERS
from proving.speed import Measured
from proving.wrk import HEADLINE, Run

OURS, GUNICORN, GTHREAD = PEERS[:3]


def measured(*rates, failed=0, broken=0):
    return Measured([Run(1000, rate, 0.001, 0.002, 0.003, failed, broken) for rate in rates])


@pytest.fixture
def results():
    by_server = defaultdict(Measured)
    by_server[OURS.name] = measured(900, 1000, 1200)
    by_server[GUNICORN.name] = measured(250, 250, 250)
    by_server[GTHREAD.name] = measured(4000, failed=7, broken=1)
    return {HEADLINE.name: by_server}


def test_medians_spreads_and_ratios(results):
    rows = {row[0]: row for row in report.rate_rows(HEADLINE, [OURS, GUNICORN], results)}
    assert rows[OURS.name][1:4] == ["1,000", "±15%", "1.00"]
    assert rows[GUNICORN.name][1:4] == ["250", "±0%", "4.00"]


def test_a_server_that_errs_is_marked_and_no_ratio_is_made_of_it(results):
    (row,) = report.rate_rows(HEADLINE, [GTHREAD], results)
    assert row[1] == "4,000 ✘ 7 errors, 1 broken" and row[3] == ""


def test_a_server_that_did_not_run_is_not_left_out(results):
    results[HEADLINE.name][GTHREAD.name] = Measured(trouble="it ended")
    assert report.rate_rows(HEADLINE, [GTHREAD], results)[0][1] == "failed"


def test_the_chart_is_well_formed(results):
    svg = report.chart([OURS, GUNICORN, GTHREAD], [HEADLINE], results)
    bars = [node for node in ElementTree.fromstring(svg) if node.tag.endswith("rect")]
    assert len(bars) == 4  # and the background


@pytest.mark.parametrize("case", wrk.CASES, ids=lambda case: case.name)
def test_fields_are_quoted_for_lua(case):
    script = case.script()
    for name, value in case.fields:
        assert f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}" in script
    assert "%d do" not in script


def test_a_word_that_is_none_of_them_is_told():
    with pytest.raises(argparse.ArgumentTypeError, match="'y' is none of: a, x"):
        bench.words(["a", "x"])("x, y")
