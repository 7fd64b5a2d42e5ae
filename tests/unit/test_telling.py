"""What is told of the metrics: names, formats, and how the few who ask are answered."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from reuseport import options
from reuseport.ipc import scoreboard
from reuseport.ipc.latencies import BOUNDS, BUCKETS, ROW_BYTES, count
from reuseport.ipc.scoreboard import REQUESTS, SUCCESSES
from reuseport.master import metrics
from reuseport.master.exposition import OPENMETRICS, TEXT, render, wanted
from reuseport.master.figures import Look, total
from reuseport.master.metrics import COUNTER, LATENCY_BOUNDS, METRICS, Facts
from reuseport.master.scrape import respond
from reuseport.master.statsd import DATAGRAM, Statsd, middle, packed, told
from reuseport.master.tally import Tally
from reuseport.master.telling import Telling
from reuseport.options import OptionError

DOCUMENT = Path(__file__).parent.parent.parent / "docs/metrics.md"


def figures(times: list[float], **counters: int) -> list[int]:
    row = memoryview(bytearray(ROW_BYTES)).cast("Q")
    count(row, list(times))
    nanoseconds = int(sum(times) * 1e9)
    board = [0] * scoreboard.FIELDS
    board[REQUESTS] = board[SUCCESSES] = len(times)
    for name, value in counters.items():
        board[scoreboard.NAMES[name]] = value
    return [*row[:BUCKETS].tolist(), nanoseconds, *board]


def generation(number: int, stage: str, label: str, jobs: int = 0) -> dict:
    worker = {
        "place": 0, "state": "serving", "requests": {"active": 1, "waiting": 0, "total": 3}, "connections": 4,
        "memory": {"rss": 2000, "pss": 1000},
    }  # fmt: skip
    of_a_job = {**worker, "place": -1, "state": "working", "requests": {"active": 0, "waiting": 0}, "connections": 0}
    return {
        "number": number, "stage": stage, "state": stage, "label": label, "wanted": 1, "since": 12.5,
        "workers": [worker, of_a_job], "zygote": {"memory": {"rss": 500, "pss": 300}} if stage == "serving" else None,
        "quarantined": 0,
        "waits_for": {"requests": 1, "connections": 3, "jobs": [{"overdue": n == 0} for n in range(jobs)]},
    }  # fmt: skip


@pytest.fixture
def facts() -> Facts:
    status = {
        "master": {"version": "9.9", "started": 1795665538.262},
        "serving": 8,
        "generations": [generation(7, "draining", 'the "old"\n\\one', jobs=3), generation(8, "serving", "v8")],
        "slots": [
            {"address": "[::1]:80", "index": 0, "queue": 3, "limit": 128},
            {"address": "unix:/run/s", "index": 0, "queue": None, "limit": None},
        ],
    }
    seven = figures([0.0005, 0.004, 0.3, 7200.0], requests_total=6, errors=2, server_errors=2, taken=5)
    eight = figures([0.1] * 3, connections=4)
    tally = Tally()
    tally.release_ends("serving", 2.0)
    tally.release_ends("failed", 1.0)
    return Facts(status, Look(1.0, total([seven, eight, eight]), {7: seven, 8: eight}), tally, 4)


def samples(text: str, parse=parse_text) -> dict[tuple, float]:
    found = {}
    for family in parse(text):
        for sample in family.samples:
            key = (sample.name, *sorted(sample.labels.items()))
            assert key not in found, key
            found[key] = sample.value
    return found


def test_the_reference_parsers_read_both_formats_and_see_the_same(facts):
    text = samples(render(METRICS, facts).decode())
    assert samples(render(METRICS, facts, OPENMETRICS).decode(), parse_openmetrics) == text
    assert text[("reuseport_up",)] == 1
    assert text[("reuseport_requests_total", ("code", "2xx"), ("generation", "7"))] == 4
    assert text[("reuseport_requests_total", ("code", "5xx"), ("generation", "7"))] == 2
    assert text[("reuseport_server_requests_total", ("code", "2xx"))] == 10
    assert text[("reuseport_handovers_total", ("generation", "7"))] == 5
    assert text[("reuseport_jobs", ("generation", "7"), ("state", "running"))] == 2
    assert text[("reuseport_jobs", ("generation", "7"), ("state", "overdue"))] == 1
    assert text[("reuseport_drain_age_seconds", ("generation", "7"))] == 12.5
    assert text[("reuseport_slot_queue_length", ("address", "[::1]:80"), ("slot", "0"))] == 3
    assert text[("reuseport_memory_bytes", ("generation", "8"), ("kind", "rss"))] == 4500  # a zygote's, too
    assert text[("reuseport_workers", ("generation", "8"), ("state", "serving"))] == 1
    assert text[("reuseport_releases_total", ("outcome", "serving"))] == 1
    assert text[("reuseport_releases_total", ("outcome", "taken_back"))] == 0
    assert text[("reuseport_release_duration_seconds_bucket", ("le", "2.5"))] == 1
    assert text[("reuseport_listen_overflows_total",)] == 4
    key = ("reuseport_generation_info", ("generation", "7"), ("label", 'the "old"\n\\one'), ("state", "draining"))
    assert text[key] == 1


def test_a_histogram_is_cumulative_and_ends_in_its_count(facts):
    text = samples(render(METRICS, facts).decode())
    name = "reuseport_request_duration_seconds"
    by_bound = {
        dict(labels)["le"]: value
        for (sample, *labels), value in text.items()
        if sample == name + "_bucket" and ("generation", "7") in labels
    }
    assert (by_bound["0.00025"], by_bound["0.0005"], by_bound["0.005"], by_bound["0.5"]) == (0, 1, 2, 3)
    assert (by_bound["900.0"], by_bound["+Inf"]) == (3, 4)
    assert list(by_bound.values()) == sorted(by_bound.values())
    assert text[(name + "_count", ("generation", "7"))] == 4
    assert text[(name + "_sum", ("generation", "7"))] == pytest.approx(7200.3045)
    assert set(LATENCY_BOUNDS) <= set(BOUNDS)


def test_names_and_labels_keep_the_conventions():
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert metric.name.startswith("reuseport_")
        assert metric.name.endswith("_total") == (metric.kind == COUNTER), metric.name
        assert metric.help.endswith(".") and "\n" not in metric.help and "|" not in metric.help
        # Whoever adds one of unbounded values makes somebody's Prometheus fall over.
        known = {"generation", "code", "state", "label", "version", "address", "slot", "kind", "outcome", "reason"}
        known.add("companion")  # its name, of which the configuration has a few
        assert set(metric.labels) <= known


def test_the_document_lists_what_is_declared():
    assert metrics.table() in DOCUMENT.read_text(), "python -m reuseport.master.metrics says what belongs there"


def test_what_nobody_knows_has_no_series(facts):
    unknown = Facts({**facts.status, "serving": None}, facts.look, facts.tally, None)
    text = render(METRICS, unknown).decode()
    assert "reuseport_up 0\n" in text
    assert "\nreuseport_listen_overflows_total" not in text
    assert "\nreuseport_serving_generation " not in text


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", TEXT),
        ("*/*", TEXT),
        ("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2", OPENMETRICS),
        ("text/plain, Application/OpenMetrics-Text", OPENMETRICS),
        ("application/openmetrics-text;q=0, text/plain", TEXT),
    ],
)
def test_openmetrics_is_for_who_asks_for_it(accept, content_type):
    assert wanted(accept) == content_type


# --- HTTP


@pytest.mark.parametrize(
    ("head", "status", "body"),
    [
        (b"GET /metrics HTTP/1.1\r\nHost: x", "200 OK", b"told "),
        (b"\r\nGET /metrics?x=1 HTTP/1.0", "200 OK", b"told "),
        (b"GET /metrics HTTP/1.1\r\nAccept: a\r\naccept: b", "200 OK", b"told  a, b"),
        (b"HEAD /metrics HTTP/1.1\r\nHost: x", "200 OK", b""),
        (b"GET / HTTP/1.1\r\nHost: x", "404 Not Found", b"The metrics are at /metrics.\n"),
        (b"POST /metrics HTTP/1.1\r\nHost: x", "405 Method Not Allowed", b""),
        (b"GET /metrics", "400 Bad Request", b""),
        (b"\x16\x03\x01\x02\x00", "400 Bad Request", b""),
        (b"GET /metrics HTTP/2.0", "400 Bad Request", b""),
    ],
)
def test_a_scrape_is_answered_and_nothing_else(head, status, body):
    answer = respond(head, lambda accept: ("text/x", b"told " + accept.encode()))
    answered, _, rest = answer.partition(b"\r\n\r\n")
    assert answered.startswith(f"HTTP/1.1 {status}\r\n".encode())
    assert b"\r\nConnection: close" in answered
    assert rest == body
    length = int(answered.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
    assert length == (5 if head.startswith(b"HEAD") else len(body))


# --- statsd


def test_who_came_before_a_rest_hears_what_was_true_when_it_began(facts):
    def see() -> Facts:
        looks.append(facts)
        return facts

    looks: list[Facts] = []
    loop = SimpleNamespace(watch=lambda *_: None, forget=lambda fd: None)
    telling = Telling(SimpleNamespace(metrics="127.0.0.1:0", statsd_host=""), loop, see)
    telling.open(0, (SimpleNamespace(setblocking=bool, fileno=lambda: -1, close=lambda: None), ""))
    telling.rest()
    assert telling._answer("") == telling._answer("")
    assert len(looks) == 1
    telling.go_on()
    telling._answer("")
    assert len(looks) == 2


def test_statsd_is_told_what_has_come_in_gunicorns_words():
    news = figures([0.01] * 100 + [2.0], requests_total=103, errors=2, server_errors=2)
    lines = list(told(news, news, 4))
    assert ("gunicorn.requests", "103|c") in lines
    assert ("gunicorn.request.status.2xx", "101|c") in lines
    assert ("gunicorn.request.status.5xx", "2|c") in lines
    assert ("gunicorn.workers", "4|g") in lines
    assert ("reuseport.errors", "2|c") in lines
    often, once = (value for name, value in lines if name == "gunicorn.request.duration")
    assert often == "9.5|ms|@0.01"
    assert float(once.partition("|")[0]) == pytest.approx(2000, rel=0.1)
    assert not any("status.4xx" in name for name, _ in lines)


def test_each_bucket_has_a_middle_and_datagrams_a_size():
    assert all(middle(bucket) <= BOUNDS[bucket] for bucket in range(len(BOUNDS)))
    assert middle(len(BOUNDS)) == BOUNDS[-1]
    lines = [f"gunicorn.request.duration:{n}|ms|@0.5|#env:prod" for n in range(200)]
    datagrams = list(packed(lines))
    assert all(len(datagram) <= DATAGRAM for datagram in datagrams)
    assert b"\n".join(datagrams).decode().split("\n") == lines
    assert len(datagrams) <= 9
    assert list(packed([])) == []


def test_prefix_and_tags_are_where_statsd_has_them():
    sent = []
    statsd = Statsd.__new__(Statsd)
    statsd._prefix, statsd._tags, statsd._last = "shop.", "|#env:prod", None
    statsd._socket, statsd._to = SimpleNamespace(sendto=lambda data, to: sent.append(data)), None
    zero, one = figures([]), figures([0.1])
    statsd.look(Look(0.0, zero, {}), 2)
    assert sent == []  # what was served before is no news
    statsd.look(Look(1.0, one, {}), 2)
    assert b"shop.gunicorn.requests:1|c|#env:prod" in sent[0].split(b"\n")


@pytest.mark.parametrize(
    ("option", "value", "why"),
    [
        ("--metrics", "9100", "'9100' has no port: write :9100"),
        ("--metrics", "unix:" + "x" * 200, "is longer than the 107 bytes"),
        ("--statsd-host", "localhost", "has no port"),
        ("--statsd-host", "localhost:0", "port 0 is no port that anybody listens on"),
        ("--statsd-prefix", "a:b", "'a:b' is not the beginning of a name"),
        ("--dogstatsd-tags", "a|b", "'a|b' is not a list of tags"),
    ],
)
def test_a_mistake_names_its_option(tmp_path, option, value, why):
    with pytest.raises(OptionError) as caught:
        options.load(["a:b", option, value], {}, str(tmp_path))
    assert str(caught.value).startswith(option)
    assert why in str(caught.value)


def test_gunicorns_spelling_of_a_unix_socket_is_taken(tmp_path):
    settings = options.load(["a:b", "--statsd-host", "unix:///run/statsd.sock"], {}, str(tmp_path))
    assert settings.statsd_host == "unix:/run/statsd.sock"
