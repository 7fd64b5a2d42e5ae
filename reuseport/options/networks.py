"""Peers that are trusted: addresses and networks as a person writes them, and whether an address is among them."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Any

from reuseport.options.kinds import Kind, split_commas_and_spaces

EVERYBODY, NOBODY = "*", "none"
REMEMBERED = 4096  # addresses whose answer is kept

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def parse_ip(text: str) -> Address:
    """An IPv4 or IPv6 address; an IPv4 one inside IPv6 (::ffff:192.0.2.1) is the IPv4 one. ValueError if it is none."""
    address = ipaddress.ip_address(text)
    return getattr(address, "ipv4_mapped", None) or address


def _parse(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not text: write an address or a network in quotes")
    text = value.strip()
    if text in (EVERYBODY, NOBODY):
        return text
    try:
        network = ipaddress.ip_network(text)
    except ValueError:
        try:
            whole = ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise ValueError(f"{value!r} is not an IP address, a network (10.0.0.0/8), * or none") from None
        raise ValueError(f"{value!r} has bits set beyond its prefix; is {whole} meant?") from None
    return str(network.network_address) if network.num_addresses == 1 else str(network)


def check_peers(peers: tuple[str, ...]) -> None:
    """`none` is said alone."""
    if NOBODY in peers and len(peers) > 1:
        raise ValueError(f"{NOBODY} stands alone, and not beside {', '.join(p for p in peers if p != NOBODY)}")


PEER = Kind("PEERS", _parse, split=split_commas_and_spaces)


def _word(words: dict[str, str], options: str) -> Kind:
    def parse(value: Any) -> str:
        word = str(value).strip().lower() if isinstance(value, str | int) else ""
        if word not in words:
            raise ValueError(f"{value!r} is not one of {options.replace('|', ', ')}")
        return words[word]

    return Kind(options, parse)


PROXY_PROTOCOL = _word(
    {"off": "off", "false": "off", "v1": "v1", "v2": "v2", "auto": "auto", "true": "auto"}, "off|v1|v2|auto"
)
CERT_REQS = _word(
    {"none": "none", "0": "none", "optional": "optional", "1": "optional", "required": "required", "2": "required"},
    "none|optional|required",
)


class Peers:
    """Whom an option names. `*` is everybody. A unix socket's peer has no address, and is one but for `none`."""

    def __init__(self, items: Iterable[str]) -> None:
        items = list(items)
        self.everybody = EVERYBODY in items
        self._unix = NOBODY not in items
        self._networks = [ipaddress.ip_network(item) for item in items if item not in (EVERYBODY, NOBODY)]
        self._known: dict[str, bool] = {}

    def include(self, host: str) -> bool:
        """Whether the peer at this address ("" for a unix socket's) is one of them."""
        if self.everybody:
            return True
        if not host:
            return self._unix
        known = self._known.get(host)
        if known is None:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            known = self._known[host] = self.name(parse_ip(host.partition("%")[0]))
        return known

    def name(self, address: Address) -> bool:
        """Whether the address is in one of the networks; `*` names none."""
        return any(address in network for network in self._networks)
