"""Listening sockets as the kernel knows them: by name, and by a number that no other socket has; and what of that a
master writes down of its slots for the next one."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from reuseport.master.socketfile import Identity

SO_COOKIE = 57  # asm-generic/socket.h; Python has no name for it


@dataclass(frozen=True)
class Written:
    """What a master has written down of its slots for the next one.

    `cookies` has each slot that it had, with 0 for one whose socket is not known (an earlier version's). `files` are
    those of the unix sockets that it had bound.
    """

    cookies: Mapping[tuple[str, int], int] = field(default_factory=dict)
    files: Mapping[str, Identity] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "cookies": [(address, index, cookie) for (address, index), cookie in self.cookies.items()],
            "files": dict(self.files),
        }


def family_of(fd: int, address: str, cookie: int, taken: Collection[int]) -> int | None:
    """The family of the socket that an earlier master had as a slot of this address; None if this is another one.

    Without its cookie any socket counts that listens there, was opened by root or this user, and is not a slot that has
    another number (`taken`).
    """
    try:
        with socket.socket(fileno=os.dup(fd)) as sock:
            mine = cookie_of(sock)
            if cookie:
                return sock.family if mine == cookie else None
            if mine in taken and mine:
                return None
            if sock.type != socket.SOCK_STREAM or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                return None
            where = sock.getsockname()
            name = name_of(where) if isinstance(where, tuple) else f"unix:{where}"
            return sock.family if name == address and os.fstat(fd).st_uid in (0, os.geteuid()) else None
    except OSError:
        return None  # no socket


def cookie_of(sock: socket.socket) -> int:
    """0 where the kernel has none to tell."""
    try:
        return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), sys.byteorder)
    except OSError:
        return 0


def name_of(where: tuple[object, ...]) -> str:
    return f"[{where[0]}]:{where[1]}" if len(where) == 4 else f"{where[0]}:{where[1]}"
