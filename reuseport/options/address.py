"""Addresses as a person writes them, and the one spelling that processes compare and pass on.

The canonical spelling is what a slot is known by: two masters, or two releases, mean the same socket exactly when the
strings are equal. Host names keep their name; they are resolved when the socket is bound.
"""

from __future__ import annotations

import ipaddress
import os
import re
from typing import Any, NamedTuple

from reuseport.options.kinds import Kind, split_commas_and_spaces

# sun_path holds 108 bytes with its final NUL (unix(7)).
UNIX_PATH_BYTES = 107


class Address(NamedTuple):
    """`family` is "inet", "inet6" or "unix". A host name has the family "inet" until it is resolved.

    `host` has no brackets, and is "" for unix; `port` is 0 for unix, and for "any free port"; only unix has a `path`.
    """

    family: str
    host: str
    port: int
    path: str

    def __str__(self) -> str:
        if self.family == "unix":
            return f"unix:{self.path}"
        return f"tcp:[{self.host}]:{self.port}" if self.family == "inet6" else f"tcp:{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """Read HOST:PORT, :PORT, [IPV6]:PORT or unix:PATH, and the canonical spelling of each.

    `:PORT` is every IPv4 address of the machine. Raises ValueError that says what is wrong with the text.
    """
    if "\0" in text:
        raise ValueError(f"{text!r} has a NUL character in it")
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        path = "/" + path.lstrip("/") if path.startswith("//") else path
        if not path or path.endswith("/"):
            raise ValueError(f"{text!r} names no file: unix:PATH")
        return Address("unix", "", 0, path)
    rest = text.removeprefix("tcp:").removeprefix("//")
    host, colon, port = rest.rpartition(":")
    if not colon or rest.endswith("]"):
        hint = f":{text}" if text.isdecimal() else f"{text}:8000"
        raise ValueError(f"{text!r} has no port: write {hint} (HOST:PORT, [IPV6]:PORT or unix:PATH)")
    if not re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) or int(port) > 65535:
        raise ValueError(f"{text!r} has no port between 0 and 65535 after its last colon")
    if host.startswith("[") and host.endswith("]"):
        return Address("inet6", _ipv6(host[1:-1], text), int(port), "")
    if ":" in host:
        raise ValueError(f"{text!r}: an IPv6 address goes into brackets, [{host}]:{port}")
    return Address("inet", _ipv4_or_name(host or "0.0.0.0", text), int(port), "")


def _ipv6(host: str, text: str) -> str:
    try:
        return str(ipaddress.IPv6Address(host))
    except ValueError as error:
        raise ValueError(f"{text!r}: {host!r} is not an IPv6 address") from error


def _ipv4_or_name(host: str, text: str) -> str:
    if re.fullmatch(r"[0-9.]+", host, re.ASCII):
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError as error:
            raise ValueError(f"{text!r}: {host!r} is not an IPv4 address") from error
    if not re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?", host):
        raise ValueError(f"{text!r}: {host!r} is neither an IP address nor the name of a host")
    return host.lower()


def check_addresses(addresses: tuple[str, ...]) -> None:
    """No address twice: SO_REUSEPORT would let the second bind, and hide the mistake."""
    for index, address in enumerate(addresses):
        if address in addresses[:index] and parse_address(address).port != 0:
            raise ValueError(f"the address {address.removeprefix('tcp:')} is there twice")
    for address in addresses:
        path = parse_address(address).path
        if len(os.fsencode(path)) > UNIX_PATH_BYTES:
            raise ValueError(f"{path!r} is longer than the {UNIX_PATH_BYTES} bytes that a unix socket may have")


def check_port(address: str) -> None:
    """Something that is connected to has a port of its own."""
    if address and not (parse_address(address).port or parse_address(address).path):
        raise ValueError("port 0 is no port that anybody listens on")


def _parse(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f'{value!r} is not text: write "HOST:PORT"')
    return str(parse_address(value.strip()))


def _anchor(value: str, directory: str) -> str:
    address = parse_address(value)
    return str(address._replace(path=os.path.join(directory, address.path))) if address.path else value


def _show(value: str) -> str:
    return value.removeprefix("tcp:")


ADDRESS = Kind("ADDRESS", _parse, _show, split=split_commas_and_spaces, anchor=_anchor)


def _parse_one(value: Any) -> str:
    if value == "":
        return ""
    address = _parse(value)
    check_addresses((address,))
    return address


def _anchor_one(value: str, directory: str) -> str:
    return _anchor(value, directory) if value else value


ONE_OR_NONE = Kind("ADDRESS", _parse_one, _show, anchor=_anchor_one)
