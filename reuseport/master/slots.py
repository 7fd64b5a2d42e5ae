"""The slots: the listening sockets that the master holds for its whole life.

The kernel's queues belong to slots. Closing a SO_REUSEPORT listener resets every connection that waits in its queue,
so as long as the master holds it, no worker's end loses one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterable
from dataclasses import dataclass

from reuseport.options import Address, parse_address


class SlotError(Exception):
    """An address cannot be had; the message names it."""


@dataclass(frozen=True)
class Slot:
    """One listening socket. A shared one (a unix socket has no SO_REUSEPORT) is every worker's own."""

    address: str
    index: int
    shared: bool
    socket: socket.socket


class Slots:
    """All slots of all addresses. `open` makes more of them; they only ever become more."""

    def __init__(self, addresses: Iterable[str], backlog: int, umask: int) -> None:
        self._wanted = [parse_address(a) for a in addresses]
        self._backlog = backlog
        self._umask = umask
        self.slots: list[Slot] = []
        self._bound: list[tuple[Address, str, tuple[object, ...]]] = []  # the address, its name, what to bind to

    @property
    def addresses(self) -> list[str]:
        """What is really bound, with the kernel's choice for a port 0."""
        return [name for _, name, _ in self._bound]

    def bind(self) -> None:
        """Bind every address that is not bound yet. SlotError where one is not to be had; then none stays bound."""
        have = {address.path or where[1] for address, _, where in self._bound}
        try:
            for address in self._wanted:
                if address.family == "unix" and address.path not in have:
                    self._bind_unix(address)
                elif address.family != "unix" and not (have and address.port in {0, *have}):
                    self._bind_inet(address)
        except SlotError:
            self.close()
            raise

    def adopt(self, address: str, index: int, shared: bool, fd: int) -> None:
        """Take over the slot that an earlier master opened, from a process that has it. A second copy is closed."""
        if any(slot.address == address and slot.index == index for slot in self.slots):
            os.close(fd)
            return
        sock = socket.socket(fileno=fd)
        if all(name != address for _, name, _ in self._bound):
            where = sock.getsockname()
            self._bound.append((parse_address(address), address, where if isinstance(where, tuple) else (where,)))
        self.slots.append(Slot(address, index, shared, sock))

    @property
    def count(self) -> int:
        """How many slots each address has."""
        counts = [sum(s.address == name for s in self.slots) for a, name, _ in self._bound if a.family != "unix"]
        return min(counts, default=0)

    def open(self, count: int) -> tuple[list[Slot], str]:
        """Have `count` slots for each address. Returns the new ones, and why there are not more of them, or ""."""
        new: list[Slot] = []
        for address, name, where in self._bound:
            if address.family == "unix":
                continue
            have = sum(1 for slot in self.slots if slot.address == name)
            for index in range(have, count):
                try:
                    listener = self._listener(address, where, name)
                except SlotError as error:
                    return new, str(error)
                new.append(Slot(name, index, False, listener))
                self.slots.append(new[-1])
        return new, ""

    def close(self) -> None:
        for slot in self.slots:
            slot.socket.close()
        self.slots.clear()
        for address, _, _ in self._bound:
            if address.family == "unix":
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(address.path)
        self._bound.clear()

    def _bind_inet(self, address: Address) -> None:
        name = f"{address.host}:{address.port}" if address.family == "inet" else f"[{address.host}]:{address.port}"
        try:
            found = socket.getaddrinfo(
                address.host or None, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
        except socket.gaierror as error:
            raise SlotError(f"--bind: {name}: {error.strerror}") from None
        wanted = socket.AF_INET6 if address.family == "inet6" else socket.AF_INET
        family, _, _, _, where = next((f for f in found if f[0] == wanted), found[0])
        address = address._replace(family="inet6" if family == socket.AF_INET6 else "inet")
        # SO_REUSEPORT would let us bind beside another server and share its clients: look first.
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(where)
                if where[1]:
                    probe.listen(1)
            except OSError as error:
                raise SlotError(_why(name, error)) from None
        first = self._listener(address, where, name)
        where = first.getsockname()
        name = f"[{where[0]}]:{where[1]}" if family == socket.AF_INET6 else f"{where[0]}:{where[1]}"
        self._bound.append((address, name, where))
        self.slots.append(Slot(name, 0, False, first))

    def _listener(self, address: Address, where: tuple[object, ...], name: str) -> socket.socket:
        family = socket.AF_INET6 if address.family == "inet6" else socket.AF_INET
        try:
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            raise SlotError(_why(name, error)) from None
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            # Accepted sockets inherit it; a response must not wait for Nagle.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.bind(where)
            sock.listen(self._backlog)
        except OSError as error:
            sock.close()
            raise SlotError(_why(name, error)) from None
        return sock

    def _bind_unix(self, address: Address) -> None:
        path, name = address.path, f"unix:{address.path}"
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            if os.path.lexists(path):
                if not stat.S_ISSOCK(os.lstat(path).st_mode):
                    raise SlotError(f"--bind: {name}: the path exists and is not a socket")
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                    if probe.connect_ex(path) == 0:
                        raise SlotError(f"--bind: {name} is in use by another server")
                os.unlink(path)
            before = os.umask(self._umask)
            try:
                sock.bind(path)
            finally:
                os.umask(before)
            sock.listen(self._backlog)
        except OSError as error:
            sock.close()
            raise SlotError(_why(name, error)) from None
        except SlotError:
            sock.close()
            raise
        self._bound.append((address, name, (path,)))
        self.slots.append(Slot(name, 0, True, sock))


def _why(name: str, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"--bind: {name} is in use by another server"
    return f"--bind: cannot bind {name}: {error.strerror}"
