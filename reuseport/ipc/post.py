"""Datagrams to a daemon of this machine that takes logs, or to another machine's. Nothing here blocks.

The daemon may be started again at any time, which a connected socket sees as an error, once: it is connected again.
"""

from __future__ import annotations

import _socket
import array
import errno
import fcntl
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any

from reuseport.options.logplace import JOURNALD, REMOTE, LogPlace

GONE = frozenset((errno.ECONNREFUSED, errno.ENOTCONN, errno.ECONNRESET, errno.EPIPE, errno.ENOENT))


class Post:
    """The way to one place. OSError where there is nobody at first: a log that reaches nobody is a mistake."""

    def __init__(self, place: LogPlace) -> None:
        self._large = place.kind == JOURNALD
        if place.kind == REMOTE:
            # Once, since a name server may take its time: whoever moves the host starts the server anew.
            found = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_DGRAM)
            self._family, self._address = found[0][0], found[0][4]
        else:
            self._family, self._address = socket.AF_UNIX, place.path
        self._socket = self._connected()

    def _connected(self) -> _socket.socket:
        # Not gevent's, which would wait, even in the loop.
        sock = _socket.socket(self._family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            sock.connect(self._address)
        except OSError as error:
            sock.close()
            if isinstance(self._address, str):
                error.filename = self._address
            raise
        return sock

    def estate(self, lend: Callable[[int], int]) -> dict[str, Any]:
        """What the process goes on with behind an exec, without asking for a host's address again."""
        return {
            "socket": lend(self._socket.fileno()),
            "family": int(self._family),
            "address": self._address,
            "large": self._large,
        }

    def fileno(self) -> int:
        """For a poll(2) until there is room."""
        return self._socket.fileno()

    def send(self, data: bytes) -> None:
        """Send one entry. BlockingIOError while the daemon takes nothing; OSError where it cannot be sent at all."""
        try:
            self._send(data)
        except OSError as error:
            if error.errno not in GONE:
                raise
            self.reconnect()
            self._send(data)

    def _send(self, data: bytes) -> None:
        try:
            self._socket.send(data, socket.MSG_DONTWAIT)
        except OSError as error:
            if error.errno != errno.EMSGSIZE or not self._large:
                raise
            self._send_by_file(data)

    def _send_by_file(self, data: bytes) -> None:
        """What is larger than a datagram, in a sealed memfd (systemd.io/JOURNAL_NATIVE_PROTOCOL)."""
        fd = os.memfd_create("journal-entry", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            with open(fd, "wb", closefd=False) as file:
                file.write(data)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))
            self._socket.sendmsg([b""], [rights], socket.MSG_DONTWAIT)
        finally:
            os.close(fd)

    def reconnect(self) -> None:
        """As after a restart of the daemon. OSError where nobody is there; the next `send` tries again."""
        new = self._connected()
        self._socket.close()
        self._socket = new


def inherited(left: Mapping[str, Any]) -> Post:
    """The inverse of `estate`."""
    post = Post.__new__(Post)
    address = left["address"]
    post._large, post._family = left["large"], left["family"]
    post._address = address if isinstance(address, str) else tuple(address)
    post._socket = _socket.socket(fileno=left["socket"])
    return post
