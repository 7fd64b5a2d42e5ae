"""Where lines go: the access log, its rotation and its end; Python's logging; JSON; a blocked request's name."""

from __future__ import annotations

import json
import signal

import pytest
from harness import wait_for

LOGGING = """\
[formatters.own]
format = "own %(name)s %(worker)s %(message)s"
[handlers.file]
class = "logging.FileHandler"
filename = "{path}"
formatter = "own"
[loggers."reuseport.error"]
handlers = ["file"]
level = "INFO"
[loggers."gunicorn.access"]
handlers = ["file"]
level = "INFO"
"""


def entries(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_request_has_its_line_through_releases_and_a_rotation(serve):
    server = serve("--access-log", "access.log", "--access-log-format", "json", "--request-id", "make").start()
    log, moved = server.root / "access.log", server.root / "access.log.1"
    with server.load() as load:
        server.renew()
        load.more(20)
        log.rename(moved)
        server.signal(signal.SIGUSR1)
        wait_for(log.exists, "a new file")
        load.more(20)
        assert server.release().exit == 0
        load.more(20)
    assert load.failures == []
    server.settle(3)
    server.signal(signal.SIGTERM)
    assert server.await_exit() == 0
    lines = entries(moved) + entries(log)
    assert len(lines) == load.answers
    assert {line["generation"] for line in lines} == {1, 2, 3}
    assert len({line["request_id"] for line in lines}) == len(lines)
    assert {line["status"] for line in lines} == {200}


def test_lines_go_through_logging_where_its_configuration_says_so(serve):
    server = serve("--log-config", "logging.toml", "--access-log-format", "%(r)s %(s)s", workers=1)
    path = server.root / "own.log"
    directory = server.write("one", code="application = lambda environ, start_response: 1 / 0\n")
    (directory / "logging.toml").write_text(LOGGING.format(path=path))
    server.start()
    server.get()
    wait_for(lambda: "GET / HTTP/1.1 500" in path.read_text(), "the line")
    text = path.read_text()
    assert "own gunicorn.access 1.1 GET / HTTP/1.1 500" in text
    assert "own reuseport.error 1.1 GET / failed" in text
    assert "ZeroDivisionError" in text
    assert "GET / failed" not in server.log_end()
    (directory / "logging.toml").write_text("[handlers.x]\nclass = 'no.Such'")
    outcome = server.release()
    assert outcome.exit == 1
    assert "--log-config logging.toml" in outcome.err
    assert server.status().serving == 1


@pytest.mark.parametrize(
    "option", [("--access-log-format", "%(z)s"), ("--access-log", "nowhere/x"), ("--request-id-header", "a b")]
)
def test_what_cannot_be_is_said_before_the_start(serve, option):
    outcome = serve(*option).run()
    assert outcome.exit != 0
    assert option[0] in outcome.err


def test_the_log_as_json_and_a_blocked_loop_with_its_request(serve):
    server = serve("--log-json", "--timeout", "0.5", workers=1).start()
    gate = server.gate("burn")
    later = server.get_later("/burn?name=burn")
    gate.await_entered()
    text = "It is answering GET /burn?name=burn from 127.0.0.1"
    wait_for(lambda: any(text in line["message"] for line in entries(server.log)), "the report")
    gate.open()
    assert later.result().status == 200
    (report,) = [line for line in entries(server.log) if text in line["message"]]
    assert (report["process"], report["level"]) == ("master", "warning")
    assert "in burn" in report["message"]
