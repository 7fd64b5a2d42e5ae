"""Metrics as text: Prometheus' format 0.0.4, and OpenMetrics 1.0 for who asks for it.

They differ in little: how the family of a counter and of an info is called, and a last line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from reuseport import names
from reuseport.master.metrics import COUNTER, GAUGE, HISTOGRAM, INFO, Distribution, Facts, Metric

LONGEST = 1000  # characters of a label's value

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def wanted(accept: str) -> str:
    """The content type that an Accept header (RFC 9110 section 12.5.1) asks for."""
    kinds = [kind.partition(";") for kind in accept.lower().split(",")]
    named = {name.strip(): rest.replace(" ", "") for name, _, rest in kinds}
    parameters = named.get("application/openmetrics-text")
    return TEXT if parameters is None or parameters.endswith(("q=0", "q=0.0")) else OPENMETRICS


def render(metrics: Iterable[Metric], facts: Facts, content_type: str = TEXT) -> bytes:
    open_metrics = content_type == OPENMETRICS
    lines = [line for metric in metrics for line in _family(metric, facts, open_metrics)]
    if open_metrics:
        lines.append("# EOF")
    return "\n".join(lines).encode(errors="backslashreplace") + b"\n"


def _family(metric: Metric, facts: Facts, open_metrics: bool) -> Iterator[str]:
    sample = metric.name + ("_info" if metric.kind == INFO else "")
    family, kind = sample, metric.kind
    if open_metrics:
        family = metric.name.removesuffix("_total") if kind == COUNTER else metric.name
    elif kind == INFO:
        kind = GAUGE
    yield f"# HELP {family} {_escaped(metric.help, open_metrics)}"
    yield f"# TYPE {family} {kind}"
    for values, value in metric.read(facts):
        shown = [_escaped(names.lines(str(value), LONGEST), True) for value in values]
        labels = [f'{name}="{text}"' for name, text in zip(metric.labels, shown, strict=True)]
        if not isinstance(value, Distribution):
            yield f"{sample}{_braced(labels)} {value}"
            continue
        assert metric.kind == HISTOGRAM
        for bound, count in (*value.buckets, ("+Inf", value.count)):
            edge = f'le="{bound}"'
            yield f"{sample}_bucket{_braced([*labels, edge])} {count}"
        yield f"{sample}_sum{_braced(labels)} {value.sum}"
        yield f"{sample}_count{_braced(labels)} {value.count}"


def _braced(labels: list[str]) -> str:
    return "{" + ",".join(labels) + "}" if labels else ""


def _escaped(text: str, quotes: bool) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quotes else text
