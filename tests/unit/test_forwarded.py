"""What proxies say about their clients, and from whom it counts."""

from __future__ import annotations

import pytest
from http_harness import Harness, echo

from reuseport.options.networks import PEER, Peers


def ask(fields, trusted=("127.0.0.1",), path="/"):
    """The answer to a request of 127.0.0.1 with these fields."""
    harness = Harness(echo, forwarded_allow_ips=trusted)
    lines = "".join(f"{field}\r\n" for field in fields)
    request = f"GET {path} HTTP/1.1\r\nHost: a\r\n{lines}Connection: close\r\n\r\n"
    (answer,) = harness.talk(request.encode(), tcp=True)
    harness.close()
    return answer


def seen(fields, trusted=("127.0.0.1",), path="/"):
    environ = ask(fields, trusted, path).echo["environ"]
    return environ["REMOTE_ADDR"], environ["wsgi.url_scheme"], environ.get("HTTPS")


PLAIN = ("127.0.0.1", "http", None)


@pytest.mark.parametrize("fields", [
    ["X-Forwarded-For: 1.2.3.4", "X-Forwarded-Proto: https"],
    ["Forwarded: for=1.2.3.4;proto=https"],
    ["X-Forwarded-Proto: https", "X-Forwarded-Ssl: off"],
    ["Forwarded: ;;"],
])  # fmt: skip
def test_from_a_peer_that_is_not_trusted_they_change_nothing(fields):
    for trusted in (("10.0.0.0/8",), ("none",)):
        assert seen(fields, trusted) == PLAIN


def test_the_application_finds_the_fields_as_they_came():
    environ = ask(["X-Forwarded-For: 1.2.3.4"], ("none",)).echo["environ"]
    assert environ["HTTP_X_FORWARDED_FOR"] == "1.2.3.4"
    environ = ask(["X-Forwarded-For: 1.2.3.4"]).echo["environ"]
    assert (environ["HTTP_X_FORWARDED_FOR"], environ["REMOTE_PORT"]) == ("1.2.3.4", "0")


@pytest.mark.parametrize(("fields", "address"), [
    (["X-Forwarded-For: 1.2.3.4"], "1.2.3.4"),
    (["X-Forwarded-For: 6.6.6.6, 1.2.3.4"], "1.2.3.4"),
    (["X-Forwarded-For: 6.6.6.6, 1.2.3.4, 10.1.1.1"], "1.2.3.4"),
    (["X-Forwarded-For: 6.6.6.6", "X-Forwarded-For: 1.2.3.4", "X-Forwarded-For: 10.1.1.1"], "1.2.3.4"),
    (["X-Forwarded-For: 10.2.2.2, 10.1.1.1"], "10.2.2.2"),
    (["X-Forwarded-For: 6.6.6.6, unknown, 10.1.1.1"], "10.1.1.1"),
    (["X-Forwarded-For: unknown"], "127.0.0.1"),
    (["X-Forwarded-For: "], "127.0.0.1"),
    (["X-Forwarded-For: 1.2.3.4:567"], "1.2.3.4"),
    (["X-Forwarded-For: [2001:db8::1]:567"], "2001:db8::1"),
    (["X-Forwarded-For: 2001:DB8::1"], "2001:db8::1"),
    (["X-Forwarded-For: 6.6.6.6, 1.2.3.4, ::ffff:10.1.1.1"], "1.2.3.4"),
    (["Forwarded: for=1.2.3.4"], "1.2.3.4"),
    (['Forwarded: for=6.6.6.6, For="[2001:db8::1]:99";by=10.1.1.1, for=10.1.1.1'], "2001:db8::1"),
    (["Forwarded: for=6.6.6.6, for=_hidden, for=10.1.1.1"], "10.1.1.1"),
    (["Forwarded: for=6.6.6.6", "X-Forwarded-For: 1.2.3.4"], "1.2.3.4"),
])  # fmt: skip
def test_the_client_is_the_rightmost_that_is_no_trusted_proxy(fields, address):
    assert seen(fields, ("127.0.0.1", "10.0.0.0/8"))[0] == address


def test_with_every_peer_trusted_one_hop_is():
    assert seen(["X-Forwarded-For: 6.6.6.6, 1.2.3.4"], ("*",))[0] == "1.2.3.4"


@pytest.mark.parametrize(("fields", "scheme"), [
    (["X-Forwarded-Proto: https"], "https"),
    (["X-Forwarded-Proto: wss"], "https"),
    (["X-Forwarded-Proto: http"], "http"),
    (["X-Forwarded-Protocol: ssl"], "https"),
    (["X-Forwarded-Ssl: on"], "https"),
    (["X-Forwarded-Ssl: off"], "http"),
    (["X-Forwarded-Ssl: on", "X-Forwarded-Proto: https", "X-Forwarded-Protocol: ssl"], "https"),
    (["Forwarded: for=6.6.6.6;proto=http, for=1.2.3.4;proto=https"], "https"),
    (["Forwarded: proto=https", "X-Forwarded-For: 1.2.3.4"], "http"),
])  # fmt: skip
def test_the_scheme(fields, scheme):
    assert seen(fields)[1:] == (scheme, "on" if scheme == "https" else None)


@pytest.mark.parametrize("fields", [
    ["X-Forwarded-Ssl: on", "X-Forwarded-Proto: http"],
    ["X-Forwarded-Proto: https", "X-Forwarded-Proto: http"],
    ["Forwarded: for=1.2.3.4;for=6.6.6.6"],
    ['Forwarded: for="1.2.3.4'],
    ["Forwarded: for=1.2.3.4;"],
    ["Forwarded: 1.2.3.4"],
])  # fmt: skip
def test_a_proxy_that_contradicts_itself_is_answered_400(fields):
    assert ask(fields).status == 400


def test_script_name_is_a_prefix_of_the_path():
    environ = ask(["SCRIPT_NAME: /shop/"], path="/shop/cart%20x").echo["environ"]
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("/shop", "/cart x")
    environ = ask(["SCRIPT_NAME: /shop"], path="/shop").echo["environ"]
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("/shop", "")
    assert ask(["SCRIPT_NAME: /shop"], path="/shopping").status == 400
    assert ask(["SCRIPT_NAME: /shop", "SCRIPT_NAME: /shop"], path="/shop/").status == 400
    environ = ask(["SCRIPT_NAME: /shop"], ("none",), path="/shop/").echo["environ"]
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("", "/shop/")
    environ = ask(["Script-Name: /shop", "X: SCRIPT_NAME: /shop"], path="/shop/").echo["environ"]
    assert environ["SCRIPT_NAME"] == ""


def test_peers():
    peers = Peers(PEER.parse(text) for text in ("10.0.0.0/8", "2001:db8::/32", "::ffff:192.0.2.1"))
    assert [peers.include(host) for host in ("10.9.9.9", "::ffff:10.9.9.9", "2001:db8::9", "11.0.0.1", "fe80::1%eth0")
            ] == [True, True, True, False, False]  # fmt: skip
    assert peers.include("")
    assert not Peers(["none"]).include("")
    assert Peers(["*"]).include("1.1.1.1")
