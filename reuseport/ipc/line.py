"""The line between a job's process and whoever asked for it: a stream socket through the door of their zygote.

Each piece is its length (8 bytes), a letter and so many bytes. The asker sends a head (JSON) and the call (a pickle),
and perhaps CANCEL. The job's process answers TAKEN (its pid, JSON) when it has both, and KNOWN (likewise) as soon as
its master, if there is one, knows of it. PROGRESS (JSON) follows, and at last VALUE or ERROR (pickles). A process that
ends between TAKEN and KNOWN has lost the job; one that the master sends away says AGAIN before. Both ends are of one
generation, and so of one version of everything.
"""

from __future__ import annotations

import struct
from typing import Any

HEAD, CALL, CANCEL = b"h", b"c", b"x"
TAKEN, AGAIN, KNOWN, PROGRESS, VALUE, ERROR = b"t", b"a", b"k", b"p", b"v", b"e"

_FORM = struct.Struct("!Qc")


def piece(kind: bytes, payload: bytes = b"") -> bytes:
    return _FORM.pack(len(payload), kind) + payload


def send(sock: Any, kind: bytes, payload: bytes = b"") -> None:
    """Waits until the kernel has taken it. OSError where the other end has gone."""
    sock.sendall(piece(kind, payload))


def receive(sock: Any) -> tuple[bytes, bytes] | None:
    """The next piece, waiting for it; None at the end of the line."""
    head = _exactly(sock, _FORM.size)
    if head is None:
        return None
    length, kind = _FORM.unpack(head)
    payload = _exactly(sock, length)
    return None if payload is None else (kind, payload)


def _exactly(sock: Any, length: int) -> bytes | None:
    data = bytearray()
    while len(data) < length:
        try:
            some = sock.recv(min(length - len(data), 1 << 20))
        except ConnectionError:
            return None
        if not some:
            return None
        data += some
    return bytes(data)
