"""What nginx's configuration says about the way to this server.

Only as much of the language as that takes: words, blocks, `include`, and directives that an inner block inherits. What
cannot be read is passed over; nobody's proxy is judged by what was guessed.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = "/etc/nginx/nginx.conf"
FILES = 1000  # included at most
DEPTH = 20

_WORD = re.compile(r"""\s+|\#[^\n]*|([;{}])|"((?:\\.|[^"\\])*)"|'((?:\\.|[^'\\])*)'|((?:\$\{[^}]*\}|[^\s;{}])+)""")
_SECONDS = {"ms": 0.001, "": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800, "M": 2592000, "y": 31536000}

INHERITED = ("proxy_read_timeout", "proxy_send_timeout", "proxy_http_version", "proxy_next_upstream")
LOCAL = frozenset({"localhost", "127.0.0.1", "[::1]"})


class Directive(NamedTuple):
    words: tuple[str, ...]
    block: list[Directive] | None
    where: str  # file:line


def load(path: str = ROOT) -> list[Directive]:
    """The configuration with what it includes; empty if there is none, or it is not ours to read."""
    return _expand(_read(path), os.path.dirname(path), [0], 0)


def parse(text: str, name: str = "nginx.conf") -> list[Directive]:
    """The directives of a text. What is unbalanced ends where the text does."""
    stack: list[list[Directive]] = [[]]
    words: list[str] = []
    position = 0
    while position < len(text):
        found = _WORD.match(text, position)
        if found is None:
            position += 1
            continue
        mark, double, single, plain = found.groups()
        where = f"{name}:{text.count(chr(10), 0, position) + 1}"
        position = found.end()
        if mark is None:
            word = next((one for one in (double, single, plain) if one is not None), None)
            if word is not None:
                words.append(word)
            continue
        if mark == "{":
            block: list[Directive] = []
            stack[-1].append(Directive(tuple(words), block, where))
            stack.append(block)
        elif mark == ";" and words:
            stack[-1].append(Directive(tuple(words), None, where))
        elif mark == "}" and len(stack) > 1:
            stack.pop()
        words = []
    return stack[0]


def seconds(text: str) -> float | None:
    """A time as nginx writes it (60s, 1h 30m, 500ms); None if it is none, such as one with a variable."""
    parts = re.findall(r"(\d+)(ms|[smhdwMy]?)", text)
    if not parts or "".join(number + unit for number, unit in parts) != re.sub(r"\s", "", text):
        return None
    return sum(int(number) * _SECONDS[unit] for number, unit in parts)


def locations(directives: Sequence[Directive], addresses: Sequence[str]) -> list[dict[str, Any]]:
    """The places from which requests are passed to `addresses` ("HOST:PORT" or "unix:PATH"), with what holds there."""
    found: list[dict[str, Any]] = []
    for http in (one for one in directives if one.words[:1] == ("http",) and one.block is not None):
        upstreams = {
            one.words[1]: one
            for one in http.block or ()
            if one.words[:1] == ("upstream",) and len(one.words) == 2 and one.block is not None
        }
        for where, inherited in _passes(http.block or [], {}):
            target = inherited["proxy_pass"]
            upstream = upstreams.get(target)
            servers = [o.words[1] for o in upstream.block or () if o.words[0] == "server"] if upstream else [target]
            if not any(_same(server, address) for server in servers for address in addresses):
                continue
            own = {o.words[0]: " ".join(o.words[1:]) for o in upstream.block or ()} if upstream else {}
            kept = {"keepalive": own.get("keepalive"), "keepalive_timeout": own.get("keepalive_timeout")}
            found.append({**inherited, **kept, "where": where})
    return found


def _passes(block: Sequence[Directive], inherited: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    here = dict(inherited)
    headers = [one for one in block if one.words[0] == "proxy_set_header" and len(one.words) == 3]
    if headers:
        here["connection"] = next((o.words[2] for o in headers if o.words[1].lower() == "connection"), None)
    for one in block:
        if one.words[0] in INHERITED:
            here[one.words[0]] = " ".join(one.words[1:])
    for one in block:
        if one.words[0] == "proxy_pass" and len(one.words) == 2:
            yield one.where, {**here, "proxy_pass": _host(one.words[1])}
        elif one.block is not None and one.words[0] != "upstream":
            yield from _passes(one.block, here)


def _host(url: str) -> str:
    rest = re.sub(r"^https?://", "", url)
    # http://unix:/run/app.sock:/uri
    return "unix:" + rest[5:].split(":")[0] if rest.startswith("unix:") else rest.split("/")[0]


def _same(server: str, address: str) -> bool:
    if server.startswith("unix:") or address.startswith("unix:"):
        return server == address
    host, _, port = server.rpartition(":") if ":" in server.rpartition("]")[2] else (server, "", "80")
    mine, _, own_port = address.rpartition(":")
    if port != own_port:
        return False
    # Another host's address may be one of this machine's; whether it is nobody says here.
    return host == mine or (host in LOCAL and mine in {*LOCAL, "", "0.0.0.0", "[::]"})


def _read(path: str) -> list[Directive]:
    try:
        return parse(Path(path).read_text(errors="replace"), path)
    except OSError:
        return []


def _expand(directives: list[Directive], directory: str, read: list[int], depth: int) -> list[Directive]:
    out = []
    for one in directives:
        if one.words[:1] == ("include",) and len(one.words) == 2 and depth < DEPTH:
            for path in sorted(glob.glob(os.path.join(directory, one.words[1]))):
                read[0] += 1
                if read[0] <= FILES:
                    out += _expand(_read(path), directory, read, depth + 1)
        elif one.words:
            block = None if one.block is None else _expand(one.block, directory, read, depth)
            out.append(one._replace(block=block))
    return out
