"""--tenant: how its rules are read, and whose a request is by them."""

from __future__ import annotations

import os
import threading

import pytest
from http_harness import Harness, echo, wait_for

from reuseport.ipc.marks import Table
from reuseport.ipc.pins import JOBS, REQUESTS, Pins, number_of
from reuseport.options.kinds import TENANT
from reuseport.worker.application import LoadError
from reuseport.worker.router import Router
from reuseport.worker.tenancy import LONGEST, finder, valid

ENVIRON = {
    "HTTP_HOST": "Acme.Example.org:8000",
    "HTTP_X_TENANT": "acme",
    "HTTP_COOKIE": 'a=1; who="acme"; who=globex; x',
    "PATH_INFO": "/t/acme/x",
}


@pytest.mark.parametrize("rule, tenant", [
    ("header:X-Tenant", "acme"), ("header:x-other", None), ("host", "acme.example.org"), ("host:1", "acme"),
    ("host:4", None), ("path:1", "t"), ("path:2", "acme"), ("path:9", None), ("cookie:who", "acme"),
    ("cookie:b", None),
])  # fmt: skip
def test_whose(rule, tenant):
    find, may_block = finder(rule)
    assert valid(find(ENVIRON)) == tenant and not may_block


def test_an_ipv6_host_is_whole():
    assert finder("host")[0]({"HTTP_HOST": "[::1]:8000"}) == "[::1]"


@pytest.mark.parametrize("rule", [
    "header:", "header", "header:X_Tenant", "header:a b", "cookie:", "host:0", "host:x", "path", "path:", "path:0",
    "path:100", "acme", "a-b:c", "a:b()", "x:",
])  # fmt: skip
def test_a_rule_that_is_none(rule):
    with pytest.raises(ValueError, match=r"header|cookie|host|path|none of"):
        TENANT.parse(rule)


def test_the_application_may_say_it_and_must_have_the_function():
    assert finder("json:dumps")[1]
    for rule, message in [("json:nothing", "has no 'nothing'"), ("no_such:x", "no module"), ("json:__name__", "str")]:
        with pytest.raises(LoadError, match=message):
            finder(rule)


def test_what_counts_as_a_name():
    assert valid("") is None and valid(None) is None and valid("x" * (LONGEST + 1)) is None
    assert valid("x" * LONGEST)
    with pytest.raises(TypeError, match="int"):
        valid(7)


@pytest.mark.parametrize("buffered", [False, True])
def test_the_applications_function_sees_the_head_alone(tmp_path, monkeypatch, buffered):
    """A body that it had read would be missing from a request that is then handed over."""

    def tenant_of(environ):
        assert environ["wsgi.input"].read() == b"" and "gunicorn.socket" not in environ
        environ["wsgi.input"] = None
        return environ["PATH_INFO"]

    def application(environ, start_response):
        assert ("gunicorn.socket" in environ) == ("HTTP_UPGRADE" in environ)
        return echo(environ, start_response)

    harness = Harness(application, buffer_chunked=buffered)
    marks = Table(str(tmp_path / "marks"))
    pins = Pins(os.open(tmp_path / "pins", os.O_RDWR | os.O_CREAT), JOBS, 3, threading.Lock())
    monkeypatch.setattr("reuseport.jobs.pin", None)  # a router sets it
    nothing = lambda *_, **__: None  # noqa: E731
    Router(harness.engine, 3, tenant_of, True, marks, pins, None, nothing, nothing, nothing, nothing)
    head = b"POST /acme HTTP/1.1\r\nHost: x\r\n"
    answers = harness.talk(
        head + b"Content-Length: 4\r\n\r\nbody",
        head + b"Transfer-Encoding: chunked\r\n\r\n",
        b"4\r\nbody\r\n0\r\n\r\n",
        head + b"Connection: Upgrade\r\nUpgrade: x\r\n\r\n",
    )
    assert [answer.echo["body"] for answer in answers] == ["body", "body", ""]
    assert {answer.echo["environ"]["reuseport.tenant"] for answer in answers} == {"/acme"}
    harness.close()


@pytest.mark.parametrize("rest", [b"no chunk\r\n", b"", b"4\r\nbody\r\n0\r\n\r\n"], ids=["refused", "cut", "whole"])
def test_a_tenants_lock_is_given_back_whatever_becomes_of_a_buffered_body(tmp_path, monkeypatch, rest):
    harness = Harness(echo, buffer_chunked=True)
    marks = Table(str(tmp_path / "marks"))
    locks = os.open(tmp_path / "pins", os.O_RDWR | os.O_CREAT)
    jobs, requests = Pins(locks, JOBS, 3, threading.Lock()), Pins(locks, REQUESTS, 3, threading.Lock())
    monkeypatch.setattr("reuseport.jobs.pin", None)
    nothing = lambda *_, **__: None  # noqa: E731
    find = lambda environ: "acme"  # noqa: E731
    router = Router(harness.engine, 3, find, False, marks, jobs, requests, nothing, nothing, nothing, nothing)
    with harness.connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        wait_for(lambda: len(router._working) == 1)
        client.send(rest)
        client.finish()
        client.read_all()
        wait_for(lambda: not router._working)
    assert not requests.held_in(number_of("acme"), 3)
    harness.close()
