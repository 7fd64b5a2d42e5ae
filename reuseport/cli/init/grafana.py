"""A dashboard for Grafana, to be imported there (grafana.com/docs/grafana/latest, "Dashboard JSON model")."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from reuseport.cli.init.described import Described

SCHEMA = 39  # of Grafana 10.4 and later, which migrates older ones
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDE, HIGH = 24, 8  # columns of the grid, and rows of a graph
RATE = "[$__rate_interval]"


class Graph(NamedTuple):
    """`queries` are pairs of an expression, in which JOB stands for the labels, and a legend."""

    title: str
    unit: str
    queries: Sequence[tuple[str, str]]
    description: str
    kind: str = "timeseries"


def _by(function: str, metric: str, label: str = "generation") -> str:
    return f"sum by ({label}) ({function}({metric}{{JOB}}{RATE}))"


_SECONDS = "reuseport_request_duration_seconds_bucket"
_VERSION = "generation {{generation}}"

FIGURES = (
    Graph("Serving generation", "none", [("max(reuseport_serving_generation{JOB})", "")], "", "stat"),
    Graph("Requests/s", "reqps", [(f"sum(rate(reuseport_server_requests_total{{JOB}}{RATE}))", "")], "", "stat"),
    Graph(
        "Errors", "percentunit",
        [(
            f"sum(rate(reuseport_server_errors_total{{JOB}}{RATE})) "
            f"/ sum(rate(reuseport_server_requests_total{{JOB}}{RATE}))", "",
        )],
        "Answers of 500 and above, and exceptions, of all answers.", "stat",
    ),
    Graph("Requests in flight", "none", [("sum(reuseport_requests_in_flight{JOB})", "")], "", "stat"),
    Graph("Jobs", "none", [("sum(reuseport_jobs{JOB})", "")], "", "stat"),
    Graph("Releases in progress", "none", [("sum(reuseport_release_in_progress{JOB})", "")], "", "stat"),
)  # fmt: skip
GRAPHS = (
    Graph(
        "Requests by version", "reqps", [(_by("rate", "reuseport_requests_total"), _VERSION)],
        "During a release two versions serve.",
    ),
    Graph(
        "Errors by version", "percentunit",
        [(f"{_by('rate', 'reuseport_errors_total')} / {_by('rate', 'reuseport_requests_total')}", _VERSION)],
        "The new version beside the old one.",
    ),
    Graph(
        "Latency", "s",
        [
            (f"histogram_quantile({share}, sum by (le) (rate({_SECONDS}{{JOB}}{RATE})))", name)
            for share, name in ((0.5, "p50"), (0.9, "p90"), (0.99, "p99"))
        ],
        "From the arrival of a request's head until the kernel has the last byte of its response.",
    ),
    Graph(
        "p99 by version", "s",
        [(f"histogram_quantile(0.99, sum by (generation, le) (rate({_SECONDS}{{JOB}}{RATE})))", _VERSION)], "",
    ),
    Graph(
        "Answers by class", "reqps", [(_by("rate", "reuseport_server_requests_total", "code"), "{{code}}")],
        "none: the client went before there was an answer.",
    ),
    Graph(
        "In flight", "none",
        [
            ("sum by (generation) (reuseport_requests_in_flight{JOB})", f"{_VERSION}: requests"),
            ("sum by (generation) (reuseport_requests_waiting{JOB})", f"{_VERSION}: wait for a thread"),
        ],
        "",
    ),
    Graph(
        "Workers", "none", [("sum by (generation, state) (reuseport_workers{JOB})", f"{_VERSION}: {{{{state}}}}")], "",
    ),
    Graph(
        "Memory", "bytes", [('sum by (generation) (reuseport_memory_bytes{JOB,kind="pss"})', _VERSION)],
        "Shared pages are divided among the processes that share them (PSS).",
    ),
    Graph(
        "Jobs and drains", "none",
        [
            ("sum by (generation, state) (reuseport_jobs{JOB})", f"{_VERSION}: jobs {{{{state}}}}"),
            ("max by (generation) (reuseport_drain_age_seconds{JOB}) / 60", f"{_VERSION}: minutes of its drain"),
        ],
        "",
    ),
    Graph(
        "Connections", "none", [("sum by (generation) (reuseport_connections{JOB})", _VERSION)],
        "Idle connections move to the new version at a release.",
    ),
    Graph(
        "Accept queues", "none",
        [
            ("sum by (address) (reuseport_slot_queue_length{JOB})", "{{address}}"),
            ("sum by (address) (reuseport_slot_queue_limit{JOB})", "{{address}}: limit"),
        ],
        "Connections that wait to be accepted.",
    ),
    Graph(
        "Restarts, lost jobs, failed releases", "none",
        [
            (f"sum by (reason) (increase(reuseport_worker_restarts_total{{JOB}}{RATE}))", "worker: {{reason}}"),
            (f'sum(increase(reuseport_jobs_ended_total{{JOB,outcome="lost"}}{RATE}))', "jobs lost"),
            (
                f'sum by (outcome) (increase(reuseport_releases_total{{JOB,outcome=~"failed|taken_back"}}{RATE}))',
                "release: {{outcome}}",
            ),
        ],
        "",
    ),
)  # fmt: skip


def text(app: Described) -> str:
    panels = [
        _panel(number, one, x=number * 4, y=0, width=4, height=4) for number, one in enumerate(FIGURES)
    ]
    panels += [
        _panel(len(FIGURES) + number, one, x=number % 2 * 12, y=4 + number // 2 * HIGH, width=12, height=HIGH)
        for number, one in enumerate(GRAPHS)
    ]
    release = _labelled("changes(reuseport_serving_generation{JOB}[1m]) > 0")
    dashboard: dict[str, Any] = {
        "title": f"reuseport: {app.name}",
        "uid": f"reuseport-{app.name}"[:40],
        "tags": ["reuseport"],
        "schemaVersion": SCHEMA,
        "version": 1,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "label": "Source", "type": "datasource", "query": "prometheus"},
                _variable("job", "label_values(reuseport_up, job)", app.name),
                _variable("instance", 'label_values(reuseport_up{job="$job"}, instance)', "$__all"),
            ]
        },
        "annotations": {
            "list": [
                {
                    "name": "Releases",
                    "datasource": SOURCE,
                    "enable": True,
                    "iconColor": "blue",
                    "expr": release,
                    "step": "30s",
                    "titleFormat": "release",
                }
            ]
        },
        "panels": panels,
    }
    return json.dumps(dashboard, indent=2) + "\n"


def _variable(name: str, query: str, value: str) -> dict[str, Any]:
    every = value == "$__all"
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "includeAll": every,
        "multi": every,
        "current": {"text": "All" if every else value, "value": [value] if every else value},
    }


def _labelled(expression: str) -> str:
    labels = 'job="$job",instance=~"$instance"'
    return expression.replace("{JOB,", f"{{{labels},").replace("{JOB}", f"{{{labels}}}")


def _panel(number: int, one: Graph, **place: int) -> dict[str, Any]:
    return {
        "id": number + 1,
        "title": one.title,
        "description": one.description,
        "type": one.kind,
        "datasource": SOURCE,
        "gridPos": {"x": place["x"], "y": place["y"], "w": place["width"], "h": place["height"]},
        "fieldConfig": {"defaults": {"unit": one.unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": name, "datasource": SOURCE, "expr": _labelled(expression), "legendFormat": legend}
            for name, (expression, legend) in zip("ABC", one.queries, strict=False)
        ],
    }
