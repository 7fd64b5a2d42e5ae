"""The recipes of docs/frameworks.md for Sentry and OpenTelemetry, as they stand there, with a collector of the test's.

The application also starts Sentry at its import and sends an event there, and is preloaded all the same: the worst case
for what is forked.
"""

from __future__ import annotations

import gzip
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from harness import CHECKOUT, wait_for

pytest.importorskip("sentry_sdk", reason="sentry-sdk is not installed: it is in the extra `client`")
pytest.importorskip(
    "opentelemetry.exporter.otlp.proto.http",
    reason="opentelemetry-exporter-otlp-proto-http is not installed: it is in the extra `client`",
)

PAGE = (CHECKOUT / "docs/frameworks.md").read_text()
HOOKS = "".join(
    block[block.index("@reuseport.on_start") :]
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    if "sentry_sdk.init" in block or "TracerProvider(" in block
)
APP = f"""
import os
import reuseport
import sentry_sdk
from basic import pass_gate
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

DSN = os.environ["TEST_DSN"]
sentry_sdk.init(dsn=DSN)
sentry_sdk.capture_message("at import")
sentry_sdk.flush(5)

{HOOKS}

def report_in_time(text):
    # At its exit, a process waits for two seconds only.
    sentry_sdk.capture_message(text)
    sentry_sdk.flush(60)

def application(environ, start_response):
    what, _, name = environ["PATH_INFO"].strip("/").partition("/")
    if what == "slow":
        pass_gate("slow")
    if what == "span":
        with trace.get_tracer("shop").start_as_current_span(name):
            pass
    elif what == "job":
        reuseport.spawn(report_in_time, name, where="process").result(120)
    elif what == "slow":
        report_in_time(name)
    else:
        sentry_sdk.capture_message(name)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]
"""


class Collector:
    def __init__(self) -> None:
        self.got: list[bytes] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["Content-Length"]))
                collector.got.append(gzip.decompress(data) if self.headers["Content-Encoding"] == "gzip" else data)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]

    def await_all(self, *texts: str) -> None:
        """Wait until one message has all of these."""
        wanted = [text.encode() for text in texts]
        wait_for(lambda: any(all(text in data for text in wanted) for data in list(self.got)), f"{texts} arrives")


@pytest.fixture
def collector() -> Iterator[Collector]:
    one = Collector()
    thread = threading.Thread(target=one.server.serve_forever, daemon=True)
    thread.start()
    yield one
    one.server.shutdown()
    one.server.server_close()
    thread.join()


@pytest.mark.parametrize("mode", [(), ("--threads", "4")], ids=["greenlets", "threads"])
def test_events_and_spans_of_workers_and_jobs_arrive(serve, collector, mode):
    assert HOOKS.count("@reuseport.on_start") == 2 and HOOKS.count("on_drain") == 2
    environment = {
        "TEST_DSN": f"http://key@127.0.0.1:{collector.port}/1",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.port}",
        "OTEL_BSP_SCHEDULE_DELAY": "600000",  # ms: so a span arrives by a flush, or at the process's exit
    }
    server = serve(*mode, "--preload", "always", workers=1, env=environment)
    server.write("one", APP)
    server.start()
    collector.await_all("at import")
    pid = server.get("/event/first-event").body.decode()
    collector.await_all("first-event")
    server.get("/span/early-span")
    slow = server.get_later("/slow/late-event")
    server.gate("slow").await_entered()
    assert server.release().exit == 0
    collector.await_all("early-span", f"1-{pid}")
    assert not slow.done, "the hook flushes when the drain begins"
    server.gate("slow").open()
    assert slow.result().status == 200
    collector.await_all("late-event")
    server.settle(2)
    server.get("/job/event-in-a-job")
    collector.await_all("event-in-a-job")
