"""--early-hints: which clients get a 103 (RFC 8297), and which get the response alone."""

from __future__ import annotations

import pytest
from http_harness import Harness
from tls_harness import TlsHarness

LAST = "GET /next HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
WAYS = {"greenlets": (Harness, 0), "threads": (Harness, 2), "TLS": (TlsHarness, 0), "TLS, threads": (TlsHarness, 2)}
# Clients of the harness come from 127.0.0.1, those with TLS from 192.0.2.1: the trusted proxies, or no proxy.
TRUSTED = {"forwarded_allow_ips": ("127.0.0.1", "192.0.2.0/24")}
DIRECT = {"forwarded_allow_ips": ("10.0.0.0/8",)}


def application(environ, start_response):
    environ["wsgi.early_hints"]([("Link", "</a.css>; rel=preload")])
    environ["wsgi.early_hints"]([("Link", "</b.css>; rel=preload")])
    start_response("200 OK", [("Content-Length", "1")])
    return [b"x"]


@pytest.fixture
def ask():
    """Asks once, and gives the statuses of all that came."""
    harnesses = []

    def ask(way, *fields, application=application, **options):
        kind, threads = WAYS[way]
        harness = kind(application, threads=threads, **options)
        harnesses.append(harness)
        request = LAST + "".join(f"{field}\r\n" for field in fields) + "\r\n"
        return [answer.status for answer in harness.talk(request.encode(), tcp=True)]

    yield ask
    for harness in harnesses:
        harness.close()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("mode", "peer", "fields", "statuses"),
    [
        ("on", DIRECT, (), [103, 103, 200]),
        ("on", TRUSTED, ("X-Forwarded-For: 192.0.2.9", "Via: 1.1 proxy"), [103, 103, 200]),
        ("direct", DIRECT, (), [103, 103, 200]),
        ("direct", TRUSTED, (), [200]),
        ("direct", {"forwarded_allow_ips": ("*",)}, (), [200]),
        ("direct", DIRECT, ("Via: 1.1 varnish",), [200]),
        ("direct", DIRECT, ("X-Forwarded-For: 192.0.2.9",), [200]),
        ("direct", DIRECT, ("x-forwarded-proto: https",), [200]),
        ("direct", DIRECT, ("Forwarded: for=192.0.2.9",), [200]),
        ("off", DIRECT, (), [200]),
        ("off", TRUSTED, (), [200]),
    ],
)
def test_who_gets_them(ask, way, mode, peer, fields, statuses):
    assert ask(way, *fields, early_hints=mode, **peer) == statuses


@pytest.mark.parametrize("mode", ["off", "direct", "on"])
def test_a_mistake_is_one_whoever_asks(ask, mode):
    """So that it shows in development, where every client is on this machine."""

    def wrong(environ, start_response):
        environ["wsgi.early_hints"]([("Link", "a\r\nB: c")])

    assert ask("greenlets", application=wrong, early_hints=mode, **TRUSTED) == [500]


def test_clients_at_a_unix_socket_come_through_a_proxy():
    harness = Harness(application, early_hints="direct")
    assert [answer.status for answer in harness.talk(f"{LAST}\r\n".encode())] == [200]
    harness.close()
