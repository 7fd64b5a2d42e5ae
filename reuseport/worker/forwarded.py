"""What a proxy says about its client: X-Forwarded-For and -Proto, Forwarded (RFC 7239), SCRIPT_NAME.

Any client can send these fields, so they count only on a connection whose peer is trusted (--forwarded-allow-ips), and
of a chain of addresses only as far as trusted peers have written it: each proxy adds on the right whom it heard from.
The application finds the fields in environ as they came, whoever sent them.

`Forwarded` counts only where none of the X-Forwarded-* came along: most proxies set one kind, and pass on a client's
own field of the other.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any
from urllib.parse import unquote_to_bytes

from ..options.networks import Address, Peers, parse_ip
from .request import RequestError

# The fields that say how the client reached the proxy, and what means TLS (gunicorn's secure_scheme_headers).
SECURE = {
    "HTTP_X_FORWARDED_PROTO": {"https", "wss"},
    "HTTP_X_FORWARDED_PROTOCOL": {"ssl", "https", "wss"},
    "HTTP_X_FORWARDED_SSL": {"on"},
}
SCRIPT_NAME = re.compile(rb"\r\nSCRIPT_NAME:[ \t]*([^\r]*?)[ \t]*(?=\r|\Z)")
# RFC 7239 section 4; pairs of an element are separated by ";", elements by ",".
_PAIR = re.compile(r"[ \t]*([!#$%&'*+\-.^_`|~0-9A-Za-z]+)=(?:\"((?:[^\"\\]|\\.)*)\"|([^\s\",;]*))[ \t]*([,;]|\Z)")
_PORT = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::([0-9]{1,5}))?")


class Forwarded:
    """Applies the fields to the environ of a request from a trusted peer."""

    def __init__(self, trusted: Peers) -> None:
        self._trusted = trusted

    def apply(self, environ: dict[str, Any], head: bytes | bytearray) -> None:
        """Set REMOTE_ADDR, wsgi.url_scheme and SCRIPT_NAME as the proxy says. RequestError if it contradicts itself."""
        told = False
        if "HTTP_X_FORWARDED_FOR" in environ:
            told = True
            self._set_client(environ, [one.strip(" \t") for one in environ["HTTP_X_FORWARDED_FOR"].split(",")])
        if (
            "HTTP_X_FORWARDED_PROTO" in environ
            or "HTTP_X_FORWARDED_SSL" in environ
            or "HTTP_X_FORWARDED_PROTOCOL" in environ
        ):
            told = True
            said = {
                value.strip(" \t").lower() in secure
                for key, secure in SECURE.items()
                if key in environ
                for value in environ[key].split(",")
            }
            if len(said) > 1:
                raise RequestError(400, "the proxy's fields contradict each other about the scheme")
            _set_scheme(environ, said.pop())
        if not told and "HTTP_FORWARDED" in environ:
            elements = _elements(environ["HTTP_FORWARDED"])
            at = self._set_client(environ, [element.get("for", "") for element in elements])
            if scheme := elements[at].get("proto", ""):
                _set_scheme(environ, scheme.lower() in ("https", "wss"))
        if b"SCRIPT_NAME" in head:
            _set_script_name(environ, head)

    def _set_client(self, environ: dict[str, Any], chain: list[str]) -> int:
        """REMOTE_ADDR becomes the rightmost address that is no trusted proxy's. Returns the place in the chain.

        Where a hop is no address (an obfuscated one, "unknown") the search ends at the one before. With `*` the peer
        is trusted whatever its address, and nothing is known of those before it: so the rightmost counts.
        """
        at = len(chain) - 1
        for place in range(len(chain) - 1, -1, -1):
            try:
                address, environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = _client(chain[place])
            except ValueError:
                break
            at = place
            if not self._trusted.name(address):
                break
        return at


@lru_cache(4096)
def _client(text: str) -> tuple[Address, str, str]:
    """A hop of a chain, "192.0.2.1:80", as address, as REMOTE_ADDR and as REMOTE_PORT. ValueError if it is none."""
    match = _PORT.fullmatch(text)
    address = parse_ip((match[1] or match[2]) if match else text)
    return address, str(address), (match[3] if match else None) or "0"


def _set_scheme(environ: dict[str, Any], secure: bool) -> None:
    if secure:
        environ["wsgi.url_scheme"] = "https"
        environ["HTTPS"] = "on"
    else:
        environ["wsgi.url_scheme"] = "http"
        environ.pop("HTTPS", None)


def _elements(text: str) -> list[dict[str, str]]:
    """The elements of a Forwarded field, each hop's parameters by their lower-case names. RequestError 400."""
    elements: list[dict[str, str]] = [{}]
    at = 0
    while at < len(text):
        match = _PAIR.match(text, at)
        name = match[1].lower() if match else ""
        if match is None or name in elements[-1] or (match[4] and match.end() == len(text)):
            raise RequestError(400, "malformed Forwarded")
        elements[-1][name] = re.sub(r"\\(.)", r"\1", match[2]) if match[2] is not None else match[3]
        if match[4] == ",":
            elements.append({})
        at = match.end()
    return elements


def _set_script_name(environ: dict[str, Any], head: bytes | bytearray) -> None:
    """The path prefix under which the proxy has the application; PATH_INFO is what follows it."""
    names = SCRIPT_NAME.findall(head)
    if not names:
        return
    name = unquote_to_bytes(names[0]).decode("latin-1").rstrip("/")
    path = environ["PATH_INFO"]
    if len(names) > 1 or not (path + "/").startswith(name + "/"):
        raise RequestError(400, "the path does not begin with the proxy's SCRIPT_NAME")
    environ["SCRIPT_NAME"] = name
    environ["PATH_INFO"] = path[len(name) :]
