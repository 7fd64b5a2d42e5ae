"""Clients: where they connect, what they may send, who stands before them, and TLS."""

from __future__ import annotations

from reuseport.options import address, kinds, networks
from reuseport.options.option import Option, between


def without_query(value: str | None) -> None:
    if value is not None and "?" in value:
        raise ValueError(f"{value!r} has a query, of which no path consists")


NETWORK = "Network and HTTP"
PROXY = "Behind a proxy"
TLS = "TLS"

# fmt: off
OPTIONS: tuple[Option, ...] = (
    Option(
        "bind", address.ADDRESS, ("tcp:127.0.0.1:8000",), repeatable=True, flags=("-b",), group=NETWORK, effect="start",
        check=address.check_addresses,
        help="An address to listen on; repeatable. HOST:PORT, :PORT (every IPv4 address), [IPV6]:PORT or unix:PATH. "
        "Port 0 takes a free one. REUSEPORT_BIND may hold several, separated by commas.",
    ),
    Option(
        "beside", kinds.SWITCH, False, group=NETWORK, effect="start",
        help="Bind to TCP addresses that another server of the same user has (with SO_REUSEPORT), and share its "
        "clients from when the first generation is ready. Otherwise an address in use is an error. To go from one "
        "version to another without losing anybody there is --takeover.",
    ),
    Option(
        "backlog", kinds.WHOLE, 2048, unit="connections", group=NETWORK, effect="start", check=between(1, 65535),
        help="How many connections may wait in each worker's queue. The kernel caps it at net.core.somaxconn.",
    ),
    Option(
        "header_timeout", kinds.SECONDS, 10.0, unit="seconds; 0: no limit", group=NETWORK,
        help="How long a request's head may take to arrive, counted from its first byte. So long may a TLS handshake "
        "and a PROXY header take, too, each from its first byte. A connection that has sent nothing has --keep-alive. "
        "With 0, a worker that drains still limits each to 5 seconds.",
    ),
    Option(
        "body_timeout", kinds.SECONDS, 60.0, unit="seconds; 0: no limit", group=NETWORK,
        help="How long a client may pause while it sends a request's body.",
    ),
    Option(
        "keep_alive", kinds.SECONDS, 75.0, unit="seconds; 0: close after each response", group=NETWORK,
        help="How long an idle connection is kept for its next request, and a new one for its first byte (with 0, a "
        "new one has --header-timeout). A proxy in front should give up earlier.",
    ),
    Option(
        "send_timeout", kinds.SECONDS, 60.0, unit="seconds; 0: no limit", group=NETWORK,
        help="How long a client may pause while it takes a response.",
    ),
    Option(
        "limit_request_line", kinds.WHOLE, 8190, unit="bytes", group=NETWORK, check=between(64, 1 << 20),
        help="The longest request line; a longer one is answered 414.",
    ),
    Option(
        "limit_request_fields", kinds.WHOLE, 100, unit="fields", group=NETWORK, check=between(1, 32768),
        help="The most header fields of a request; more are answered 431.",
    ),
    Option(
        "limit_request_field_size", kinds.WHOLE, 8190, unit="bytes", group=NETWORK, check=between(64, 1 << 20),
        aliases=("--limit-request-field_size",), help="The longest header field; a longer one is answered 431.",
    ),
    Option(
        "limit_request_body", kinds.SIZE, 0, unit="bytes, or 512M; 0: no limit", group=NETWORK,
        help="The largest body of a request; a larger one is answered 413.",
    ),
    Option(
        "buffer_chunked", kinds.SWITCH, True, group=NETWORK,
        help="Take a chunked request body (Transfer-Encoding: chunked) as a whole before the application gets the "
        "request, and set CONTENT_LENGTH, without which Django and others see no body. A body of more than 64 KiB "
        "goes to a file without a name in TMPDIR. One of more than 1 GiB is answered 413, or of more than "
        "--limit-request-body where that is set; and 507 where less than 10 % of that file system, and less "
        "than 1 GiB, is free. "
        "--no-buffer-chunked lets the application read such a body as it comes.",
    ),
    Option(
        "early_hints", kinds.choice("off", "direct", "on"), "direct", group=NETWORK,
        help="Which clients get the application's early hints (environ['wsgi.early_hints'], status 103). direct: those "
        "that came through no proxy: the peer is none of --forwarded-allow-ips, and the request has no Via, Forwarded "
        "or X-Forwarded-*. on: all of HTTP/1.1, proxies too; nginx before 1.29 and others take a 103 for the response.",
    ),
    Option(
        "strict_wsgi", kinds.SWITCH, False, group=NETWORK,
        help="Answer 500 where the application sends a hop-by-hop header (Connection, Transfer-Encoding and the like), "
        "which PEP 3333 forbids. Without it the server drops such headers and warns once per generation.",
    ),
    Option(
        "health_path", kinds.WEB_PATH, None, group=NETWORK, check=without_query, default_text="none",
        help="A path at which the server itself answers: 200 while it serves, 503 from the moment that it was told to "
        "stop. For load balancers and readiness probes; the application never sees it.",
    ),
    Option(
        "websocket_drain", kinds.SECONDS, 30.0, unit="seconds; 0: all at once", group=NETWORK,
        help="In what time a worker that drains closes its WebSockets, each at another moment, so that the clients do "
        "not all come back at once.",
    ),
    Option(
        "forwarded_allow_ips", networks.PEER, ("127.0.0.1", "::1"), repeatable=True, group=PROXY,
        check=networks.check_peers, fallbacks=("FORWARDED_ALLOW_IPS",),
        help="The proxies whose X-Forwarded-For, -Proto, -Protocol, -Ssl, Forwarded and SCRIPT_NAME count: addresses "
        "and networks, * for every peer, none for none. A unix socket's peer counts as one of them, except with none. "
        "A proxy must overwrite or extend what its own clients send.",
    ),
    Option(
        "proxy_protocol", networks.PROXY_PROTOCOL, "off", group=PROXY,
        bare=("auto", "a bare --proxy-protocol stands for --proxy-protocol auto, which takes both versions"),
        help="Every connection of a peer in --proxy-allow-ips begins with a PROXY header, of version 1, 2, or either "
        "(auto). One that does not is closed.",
    ),
    Option(
        "proxy_allow_ips", networks.PEER, ("127.0.0.1", "::1"), repeatable=True, group=PROXY,
        aliases=("--proxy-allow-from",), check=networks.check_peers,
        help="The peers that send PROXY headers, written as for --forwarded-allow-ips; all others are clients.",
    ),
    Option(
        "certfile", kinds.PATH, "", group=TLS, default_text="none: no TLS",
        help="The certificate, PEM, with the chain behind it. TLS 1.2 and later is then spoken on every TCP address "
        "(not on unix sockets). The files are read again at each release.",
    ),
    Option(
        "keyfile", kinds.PATH, "", group=TLS, default_text="the key is in --certfile",
        help="The certificate's private key, PEM, without a password. It may be readable by root only: it is read "
        "before --user counts.",
    ),
    Option(
        "ca_certs", kinds.PATH, "", group=TLS, default_text="none",
        help="The authorities, PEM, that client certificates must come from.",
    ),
    Option(
        "cert_reqs", networks.CERT_REQS, "none", group=TLS,
        help="Whether clients may (optional) or must (required) have a certificate. Gunicorn's 0, 1 and 2 do as well.",
    ),
)
# fmt: on
