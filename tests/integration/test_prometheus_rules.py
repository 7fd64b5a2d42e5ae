"""What `init prometheus` and `init grafana` print, checked by promtool (Debian's package prometheus)."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from reuseport.cli.main import main

PROMTOOL = shutil.which("promtool")
pytestmark = pytest.mark.skipif(PROMTOOL is None, reason="there is no promtool")

OF = 'job="shop",instance="h:1"'
# For each alert: series that must raise it at the end of half an hour, one value a minute (promtool's notation).
RAISE = {
    "ReuseportUnreachable": {f"up{{{OF}}}": "0x30"},
    "ReuseportServesNothing": {f"reuseport_up{{{OF}}}": "0x30"},
    "ReuseportErrors": {
        f'reuseport_errors_total{{{OF},generation="7"}}': "0+6x30",
        f'reuseport_requests_total{{{OF},generation="7",code="5xx"}}': "0+6x30",
        f'reuseport_requests_total{{{OF},generation="7",code="2xx"}}': "0+54x30",
    },
    "ReuseportReleaseFailed": {f'reuseport_releases_total{{{OF},outcome="failed"}}': "0x25 1x5"},
    "ReuseportReleaseTakesLong": {f"reuseport_release_in_progress{{{OF}}}": "1x30"},
    "ReuseportWorkersMissing": {
        f'reuseport_workers{{{OF},generation="7",state="serving"}}': "2x30",
        f'reuseport_workers_wanted{{{OF},generation="7"}}': "3x30",
    },
    "ReuseportWorkersBlocked": {f'reuseport_workers{{{OF},generation="7",state="blocked"}}': "1x30"},
    "ReuseportWorkersCrash": {f'reuseport_worker_restarts_total{{{OF},reason="crashed"}}': "0x20 5x10"},
    "ReuseportQuarantine": {f'reuseport_quarantine_entries{{{OF},generation="7"}}': "1x30"},
    "ReuseportJobsLost": {f'reuseport_jobs_ended_total{{{OF},outcome="lost"}}': "0x25 1x5"},
    "ReuseportJobsOverdue": {f'reuseport_jobs{{{OF},generation="7",state="overdue"}}': "1x30"},
    "ReuseportDrainTakesLong": {f'reuseport_drain_age_seconds{{{OF},generation="7"}}': "15000x30"},
    "ReuseportQueueFull": {
        f'reuseport_slot_queue_length{{{OF},address="a",slot="0"}}': "90x30",
        f'reuseport_slot_queue_limit{{{OF},address="a",slot="0"}}': "100x30",
    },
    "ReuseportThreadsBusy": {f'reuseport_requests_waiting{{{OF},generation="7"}}': "3x30"},
    "ReuseportCompanionsFail": {f'reuseport_companions_failing{{{OF},generation="7",companion="mail"}}': "1x30"},
}
# No worker serves at all: then there is no series of those that do.
NONE_LEFT = {f'reuseport_workers_wanted{{{OF},generation="7"}}': "3x30"}
# A server at which nothing is wrong raises nothing.
QUIET = {
    f"up{{{OF}}}": "1x30",
    f"reuseport_up{{{OF}}}": "1x30",
    f'reuseport_errors_total{{{OF},generation="7"}}': "0x30",
    f'reuseport_requests_total{{{OF},generation="7",code="2xx"}}': "0+60x30",
    f'reuseport_releases_total{{{OF},outcome="serving"}}': "0+1x30",
    f'reuseport_releases_total{{{OF},outcome="failed"}}': "3x30",
    f'reuseport_workers{{{OF},generation="7",state="serving"}}': "3x30",
    f'reuseport_workers_wanted{{{OF},generation="7"}}': "3x30",
    f'reuseport_worker_restarts_total{{{OF},reason="crashed"}}': "7x30",
    f'reuseport_worker_restarts_total{{{OF},reason="max_requests"}}': "0+5x30",
    f'reuseport_jobs_ended_total{{{OF},outcome="lost"}}': "1x30",
    f'reuseport_slot_queue_length{{{OF},address="a",slot="0"}}': "3x30",
    f'reuseport_slot_queue_limit{{{OF},address="a",slot="0"}}': "100x30",
    f'reuseport_drain_age_seconds{{{OF},generation="6"}}': "600x30",
}


def printed(capsys, *words: str) -> str:
    assert main(["init", *words, "shop:app", "--metrics", "127.0.0.1:9100"]) == 0
    return capsys.readouterr().out


def promtool(*words: str | Path) -> str:
    done = subprocess.run([PROMTOOL, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def case(series: dict[str, str], alert: str, raised: list[dict]) -> dict:
    inputs = [{"series": name, "values": values} for name, values in series.items()]
    return {
        "interval": "1m",
        "input_series": inputs,
        "alert_rule_test": [{"eval_time": "30m", "alertname": alert, "exp_alerts": raised}],
    }


def test_each_alert_is_raised_by_its_fault_and_by_nothing_else(capsys, tmp_path):
    rules = tmp_path / "shop.yml"
    rules.write_text(printed(capsys, "prometheus"))
    promtool("check", "rules", rules)
    [group] = yaml.safe_load(rules.read_text())["groups"]
    alerts = {one["alert"]: one for one in group["rules"] if "alert" in one}
    assert alerts.keys() == RAISE.keys()
    cases = [case(QUIET, name, []) for name in alerts]
    # promtool compares labels and texts, too; so the templates of the annotations are carried out here as there.
    values = {"ReuseportErrors": "10%", "ReuseportDrainTakesLong": "4h 10m 0s", "ReuseportThreadsBusy": "3"}
    for name, one in alerts.items():
        series = RAISE[name]
        labels = dict(part.split("=") for part in next(iter(series)).partition("{")[2].rstrip("}").split(","))
        labels = {key: value.strip('"') for key, value in labels.items() if key != "code"}
        if name in ("ReuseportErrors", "ReuseportWorkersMissing"):
            labels.pop("state", None)
        annotations = {}
        for what, text in one["annotations"].items():
            for key, value in labels.items():
                text = text.replace(f"{{{{ $labels.{key} }}}}", value)
            for template in ("{{ $value }}", "{{ $value | humanizePercentage }}", "{{ $value | humanizeDuration }}"):
                text = text.replace(template, values.get(name, "1"))
            annotations[what] = text
        raised = [{"exp_labels": {**labels, **one["labels"]}, "exp_annotations": annotations}]
        cases.append(case(series, name, raised))
    missing = cases[-len(alerts) + list(alerts).index("ReuseportWorkersMissing")]["alert_rule_test"][0]["exp_alerts"]
    three = json.loads(json.dumps(missing).replace("lacks 1 workers", "lacks 3 workers"))
    cases.append(case(NONE_LEFT, "ReuseportWorkersMissing", three))
    tests = tmp_path / "tests.yml"
    tests.write_text(yaml.safe_dump({"rule_files": [str(rules)], "evaluation_interval": "1m", "tests": cases}))
    promtool("test", "rules", tests)


def test_prometheus_reads_the_expressions_of_the_dashboard(capsys, tmp_path):
    board = json.loads(printed(capsys, "grafana"))
    found = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    found += [one["expr"] for one in board["annotations"]["list"]]
    replaced = [
        one.replace("$__rate_interval", "1m").replace("$job", "shop").replace("$instance", ".*") for one in found
    ]
    assert not any("$" in one for one in replaced)
    rules = [{"record": f"dashboard:{number}", "expr": one} for number, one in enumerate(replaced)]
    file = tmp_path / "dashboard.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"{len(found)} rules found" in promtool("check", "rules", file)


def test_the_scrape_configuration_in_the_comment_is_one(capsys, tmp_path):
    text = printed(capsys, "prometheus")
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "shop.yml").write_text(text)
    lines = [line.removeprefix("#     ") for line in text.splitlines() if line.startswith("#     ")]
    file = tmp_path / "prometheus.yml"
    file.write_text("\n".join(lines) + "\n")
    assert yaml.safe_load(file.read_text())["scrape_configs"][0]["static_configs"] == [{"targets": ["127.0.0.1:9100"]}]
    promtool("check", "config", file)
