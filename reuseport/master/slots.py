"""The slots: the listening sockets that the master holds for its whole life.

The kernel's queues belong to slots. Closing a SO_REUSEPORT listener resets every connection that waits in its queue,
so as long as the master holds it, no worker's end loses one. A socket that a supervisor passed is the first slot of its
address; others are opened beside it.

A process may hand a slot back to a master that adopts. The master takes it only if an earlier master has written down
this very socket (SO_COOKIE) under this name. That master may have died before it could write; so a socket also counts
that root or this user has opened, and that listens at an address which is written down or wanted.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from reuseport.master import socketfile
from reuseport.master.in_use import who
from reuseport.master.listening import Written, cookie_of, family_of, name_of
from reuseport.master.socketfile import Identity, NoSocket, SocketFile
from reuseport.options import Address, parse_address

HINTS = {
    errno.EACCES: "; for a port below 1024 be root (with --user), let the unit say AmbientCapabilities="
    "CAP_NET_BIND_SERVICE, or lower net.ipv4.ip_unprivileged_port_start",
    errno.EADDRNOTAVAIL: "; no interface of this machine has that address",
}

class SlotError(Exception):
    """An address cannot be had; the message names it."""


@dataclass(frozen=True)
class Slot:
    """One listening socket. A shared one (a unix socket has no SO_REUSEPORT) is every worker's own."""

    address: str
    index: int
    shared: bool
    socket: socket.socket

    def queue(self) -> tuple[int, int] | None:
        """How many connections wait to be accepted, and how many may; None for a unix socket, of which nobody knows.

        Of a listening socket tcp_info has them as tcpi_unacked and tcpi_sacked (tcp_get_info in net/ipv4/tcp.c).
        """
        if self.shared:
            return None
        info = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
        waiting, limit = struct.unpack_from("2I", info, 24)
        return waiting, limit

    @cached_property
    def cookie(self) -> int:
        """The number by which the kernel knows this socket and no other, whatever descriptor leads to it."""
        return cookie_of(self.socket)


@dataclass(frozen=True)
class Passed:
    """A listening socket that came with the start. `stored`: out of the supervisor's store, where a master put it."""

    socket: socket.socket
    address: str
    stored: bool


class Slots:
    """All slots of all addresses. `open` makes more of them; they only ever become more."""

    def __init__(
        self,
        addresses: Iterable[str],
        backlog: int,
        umask: int,
        passed: Iterable[Passed] = (),
        *,
        beside: bool = False,
    ) -> None:
        """`beside`: another server may have the addresses, and keeps their clients until `listen`."""
        self._wanted = [parse_address(a) for a in addresses]
        self._passed = list(passed)  # those that no address has claimed yet
        self._theirs: set[str] = set()  # addresses whose first slot is a socket unit's: neither stored nor removed
        self._backlog = backlog
        self._umask = umask
        self._beside = beside
        self._silent = beside
        self.slots: list[Slot] = []
        self._awaited: Mapping[tuple[str, int], int] | None = None  # slots that processes may hand back, and cookies
        self._files: dict[str, SocketFile] = {}  # of the unix sockets that a master has bound, by address
        self._bound: list[tuple[Address, str, tuple[object, ...]]] = []  # the address, its name, what to bind to

    @property
    def addresses(self) -> list[str]:
        """What is really bound, with the kernel's choice for a port 0."""
        return [name for _, name, _ in self._bound]

    def bind(self) -> None:
        """Bind every address that is not bound yet. SlotError where one is not to be had; then it has bound none.

        Those that were bound before belong to processes that serve on.
        """
        have = {address.path or where[1] for address, _, where in self._bound}
        slots, bound = len(self.slots), len(self._bound)
        try:
            for name in self.addresses:
                self._claim(name)
            for address in self._wanted:
                if address.family == "unix" and address.path not in have:
                    self._bind_unix(address)
                elif address.family != "unix" and not (have and address.port in {0, *have}):
                    self._bind_inet(address)
            self._refuse_the_rest()
        except SlotError:
            self._close(slots, bound)
            raise

    def is_wanted(self, name: str) -> bool:
        """Whether an address that is bound is one of those that were asked for."""
        address = parse_address(name)
        if address.family == "unix":
            return any(one.path == address.path for one in self._wanted)
        return any(one.family != "unix" and one.port in (0, address.port) for one in self._wanted)

    @property
    def theirs(self) -> list[str]:
        """The addresses that belong to a socket unit."""
        return sorted(self._theirs)

    def adopt(self, address: str, index: int, shared: bool, fd: int, *, theirs: bool = False) -> None:
        """Take over the slot that an earlier master opened. The caller knows whose it is. A second copy is closed."""
        if theirs:
            self._theirs.add(address)
        if any(slot.address == address and slot.index == index for slot in self.slots):
            os.close(fd)
            return
        sock = socket.socket(fileno=fd)
        if all(name != address for _, name, _ in self._bound):
            where = sock.getsockname()
            self._bound.append((parse_address(address), address, where if isinstance(where, tuple) else (where,)))
        self.slots.append(Slot(address, index, shared, sock))

    def expect(self, written: Written) -> None:
        """An earlier master has died, which had these slots: its processes may hand them back by `offered`."""
        self._awaited = written.cookies
        self.own(written.files)

    def expect_no_more(self) -> None:
        """From now on `offered` takes nothing."""
        self._awaited = None

    def expects(self, address: object, index: object) -> bool:
        """Whether this slot was written down, may be handed back, and has not been yet."""
        awaited = self._awaited is not None and (address, index) in self._awaited
        return awaited and all((s.address, s.index) != (address, index) for s in self.slots)

    def offered(self, address: object, index: object, fd: int) -> None:
        """Take a slot back from a process, if it is what an earlier master has written down, and close any other."""
        if isinstance(address, str) and isinstance(index, int) and self._may_be_at(address):
            assert self._awaited is not None
            cookie = self._awaited.get((address, index), 0)
            taken = {slot.cookie for slot in self.slots} | set(self._awaited.values())
            family = family_of(fd, address, cookie, taken)
            if family is not None:
                self.adopt(address, index, family == socket.AF_UNIX, fd)
                return
        os.close(fd)

    def _may_be_at(self, address: str) -> bool:
        """Whether an earlier master can have had a slot there."""
        if self._awaited is None:
            return False
        if any(address == known for known, _ in self._awaited):
            return True
        try:
            return self.is_wanted(address)
        except ValueError:
            return False

    def written(self) -> Written:
        """What the next master must know of them."""
        cookies = {(slot.address, slot.index): slot.cookie for slot in self.slots}
        return Written(cookies, {address: file.identity for address, file in self._files.items()})

    def own(self, files: Mapping[str, Identity]) -> None:
        """The files of unix sockets that an earlier master has bound: this one removes them."""
        for address, identity in files.items():
            if address not in self._files:
                # A file whose directory has gone needs no remover.
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    self._files[address] = SocketFile(address.removeprefix("unix:"), identity)

    def estate(self, lend: Callable[[int], int]) -> dict[str, Any]:
        """What the master goes on with behind an exec; `lend(fd)` lets a descriptor live through it."""
        slots = [(slot.address, slot.index, slot.shared, lend(slot.socket.fileno())) for slot in self.slots]
        files = {address: file.identity for address, file in self._files.items()}
        return {"slots": slots, "theirs": self.theirs, "silent": self._silent, "files": files}

    def inherit(self, left: Mapping[str, Any]) -> None:
        for address, index, shared, fd in left["slots"]:
            self.adopt(address, index, shared, fd)
        self._theirs = set(left["theirs"])
        self._silent = left.get("silent", False)
        self.own(left.get("files", {}))

    def listen(self) -> None:
        """Somebody will accept: from now on clients may come. Only where that was not so from the start."""
        if self._silent:
            self._silent = False
            for slot in self.slots:
                slot.socket.listen(self._backlog)

    @property
    def count(self) -> int:
        """How many slots each address has."""
        counts = [sum(s.address == name for s in self.slots) for a, name, _ in self._bound if a.family != "unix"]
        return min(counts, default=0)

    def shown(self) -> list[dict[str, Any]]:
        """Each slot with the length of its queue, for `status`."""
        queues = [(slot, slot.queue() or (None, None)) for slot in self.slots]
        return [
            {"address": slot.address, "index": slot.index, "queue": waiting, "limit": limit}
            for slot, (waiting, limit) in queues
        ]

    def storable(self) -> list[Slot]:
        """What a supervisor may keep for the next master: no socket unit's, which comes anyway; none with a path."""
        first = {name: next(s for s in self.slots if s.address == name) for name in self._theirs}
        return [s for s in self.slots if not s.shared and s is not first.get(s.address)]

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
                    return new, str(error) if name not in self._theirs else _why_not_beside(name)
                new.append(Slot(name, index, False, listener))
                self.slots.append(new[-1])
        return new, ""

    def differ_from(self, names: Iterable[str]) -> str:
        """What is wrong with these (see `names_of`) if they should be the addresses that are bound; "" for nothing."""
        left = list(self.addresses)
        for name in names:
            same = next((one for one in left if may_be(name, one)), None)
            if same is None:
                return f"{name} is none of {', '.join(self.addresses)}, which the running master listens on"
            left.remove(same)
        return f"the running master also listens on {', '.join(left)}" if left else ""

    def leave(self) -> None:
        """Close them here only: another master has them, and with them the paths."""
        for slot in self.slots:
            slot.socket.close()
        for file in self._files.values():
            file.close()
        self.slots.clear()
        self._bound.clear()
        self._files.clear()

    def close(self) -> list[str]:
        """Close them all. Returns what is to be said of files that could not be removed."""
        self._awaited = None
        said = self._close(0, 0)
        for file in self._files.values():
            file.close()  # an earlier master's, whose socket has not come back
        self._files.clear()
        return said

    def _close(self, slots: int, bound: int) -> list[str]:
        """Close all but the first so many. Those that were adopted are still somebody's, and so are their paths."""
        names = {name for _, name, _ in self._bound[bound:]}
        # The files first: as long as the socket is open, the kernel gives its inode to no other file.
        said = [self._files.pop(name).remove() for name in names & self._files.keys()]
        for slot in self.slots[slots:]:
            slot.socket.close()
        del self.slots[slots:], self._bound[bound:]
        return [one for one in said if one]

    def _bind_inet(self, address: Address) -> None:
        name, family, where = _find(address)
        address = address._replace(family="inet6" if family == socket.AF_INET6 else "inet")
        if self._claim(name_of(where)):
            return
        if not self._beside:
            _look(name, family, where)
        first = self._listener(address, where, name)
        where = first.getsockname()
        name = name_of(where)
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
            beside = next((slot.socket for slot in self.slots if slot.address == name), None)
            if beside is not None and family == socket.AF_INET6:
                # One that was passed may be for IPv6 only, which is no default of ours.
                only = beside.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
            sock.bind(where)
            if not self._silent:
                sock.listen(self._backlog)
        except OSError as error:
            sock.close()
            raise SlotError(_why(name, error, shared=self._beside)) from None
        return sock

    def _bind_unix(self, address: Address) -> None:
        path, name = address.path, f"unix:{address.path}"
        if self._claim(name):
            return
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            file = socketfile.bind(sock, path, self._umask)
            try:
                sock.listen(self._backlog)
            except OSError:
                file.remove()
                raise
        except NoSocket as error:
            sock.close()
            raise SlotError(f"--bind: {name}: {error.strerror}") from None
        except OSError as error:
            sock.close()
            raise SlotError(_why(name, error)) from None
        if name in self._files:
            self._files[name].close()  # of an earlier master, whose processes have not handed it back
        self._files[name] = file
        self._bound.append((address, name, (path,)))
        self.slots.append(Slot(name, 0, True, sock))

    def _claim(self, name: str) -> bool:
        """Take the passed sockets of this address. False where there are none."""
        mine = [p for p in self._passed if p.address == name or _is_same_path(p.address, name)]
        for passed in sorted(mine, key=lambda p: p.stored):
            self._passed.remove(passed)
            self._take(passed)
        return bool(mine)

    def _take(self, passed: Passed) -> None:
        name, sock = passed.address, passed.socket
        address = parse_address(name)
        if not passed.stored:
            self._theirs.add(name)
        if any(_is_same_socket(slot.socket, sock) for slot in self.slots):
            sock.close()  # an earlier master's workers have handed it over already
            return
        shared = address.family == "unix"
        try:
            if not shared:
                # Where the .socket unit has not said so: the kernel asks for it when another slot is bound beside.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.listen(self._backlog)
        except OSError as error:
            raise SlotError(f"LISTEN_FDS: {name}: {error.strerror}") from None
        if name not in self.addresses:
            where = sock.getsockname()
            self._bound.append((address, name, where if isinstance(where, tuple) else (where,)))
        index = max((slot.index + 1 for slot in self.slots if slot.address == name), default=0)
        self.slots.append(Slot(name, index, shared, sock))

    def _refuse_the_rest(self) -> None:
        """A socket that nobody would accept from must not stay open: its clients would wait for ever."""
        for passed in self._passed:
            passed.socket.close()
        strangers = [passed.address for passed in self._passed if not passed.stored]
        self._passed.clear()
        if strangers:
            raise SlotError(
                f"LISTEN_FDS: {', '.join(strangers)} was passed, but is no --bind: name it there, or leave --bind out "
                "and the sockets that are passed are the addresses"
            )


def names_of(addresses: Iterable[str]) -> list[str]:
    """What the slots of these addresses would be called, with the port 0 for any. SlotError, if a host has no address.

    It may ask a name server, and so wait.
    """
    parsed = [parse_address(one) for one in addresses]
    return [f"unix:{one.path}" if one.family == "unix" else name_of(_find(one)[2]) for one in parsed]


def may_be(name: str, bound: str) -> bool:
    """Whether what is `bound` is what this name (see `names_of`) stands for."""
    host, _, port = name.rpartition(":")
    return name == bound or (port == "0" and bound.rpartition(":")[0] == host) or _is_same_path(name, bound)


def _find(address: Address) -> tuple[str, socket.AddressFamily, tuple[object, ...]]:
    """An IP address as the user knows it, its family, and what to bind to. SlotError."""
    name = f"{address.host}:{address.port}" if address.family == "inet" else f"[{address.host}]:{address.port}"
    try:
        found = socket.getaddrinfo(address.host or None, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise SlotError(f"--bind: {name}: {error.strerror}") from None
    wanted = socket.AF_INET6 if address.family == "inet6" else socket.AF_INET
    family, _, _, _, where = next((f for f in found if f[0] == wanted), found[0])
    return name, family, where


def _look(name: str, family: socket.AddressFamily, where: tuple[object, ...]) -> None:
    """SO_REUSEPORT would let us bind beside another server and share its clients: SlotError if there is one."""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(where)
            if where[1]:
                probe.listen(1)
        except OSError as error:
            raise SlotError(_why(name, error)) from None


def _is_same_path(one: str, other: str) -> bool:
    """/run and /var/run are one directory on most systems."""
    if not (one.startswith("unix:") and other.startswith("unix:")):
        return False
    return os.path.realpath(one.removeprefix("unix:")) == os.path.realpath(other.removeprefix("unix:"))


def _is_same_socket(one: socket.socket, other: socket.socket) -> bool:
    return os.path.samestat(os.fstat(one.fileno()), os.fstat(other.fileno()))


def _why_not_beside(name: str) -> str:
    return (
        f"LISTEN_FDS: no socket can be opened beside the one that was passed for {name}: that needs ReusePort=yes in "
        "the .socket unit, and a master of the user who opened it (root: let the unit run as root, with --user)"
    )


def _why(name: str, error: OSError, *, shared: bool = False) -> str:
    if error.errno == errno.EADDRINUSE:
        hint = " that does not share it (SO_REUSEPORT, of the same user)" if shared else ""
        return f"--bind: {name} is in use by another server{hint}{'' if name.startswith('unix:') else who(name)}"
    hint = "" if name.startswith("unix:") else HINTS.get(error.errno or 0, "")
    return f"--bind: cannot bind {name}: {(error.strerror or str(error)).lower()}{hint}"
