"""The log daemons, programs of companions and addresses that a server with these options can or cannot reach.

With --user a child of the doctor becomes that user and looks. The permissions of all directories above a path count
for it as they will for a worker.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
from collections.abc import Callable

from reuseport.ipc import user
from reuseport.ipc.post import Post
from reuseport.master import in_use
from reuseport.master.commands import surroundings
from reuseport.master.recipe import release_of
from reuseport.options import OptionError, Settings, logplace, parse_address
from reuseport.options.address import Address
from reuseport.options.checks import find_user


def log_daemons(settings: Settings) -> dict[str, str]:
    """Why nothing of --log-file or --access-log reaches its daemon, "" if it does, by option."""
    found = {}
    for name in ("log_file", "access_log"):
        path = getattr(settings, name)
        if path and logplace.parse(path).by_datagrams:
            place = logplace.parse(path)
            found[name] = _connects(place) or _as_workers(settings, lambda place=place: _connects(place))
    return found


def companions(settings: Settings) -> dict[str, str]:
    """Why a companion's program cannot be executed, by the companion's name."""
    try:
        recipe = release_of(settings).recipe
    except OptionError:  # told elsewhere
        return {}
    found = {}
    for declared in settings.companion:
        around = surroundings(recipe, declared, settings.run_dir, 0, 0)
        program, path = declared["command"][0], around.environment["PATH"]
        why = _as_workers(settings, lambda d=around.directory, p=program, path=path: _executable(d, p, path))
        if why:
            found[declared["name"]] = why
    return found


def refused_addresses(settings: Settings) -> dict[str, str]:
    """Why a TCP address of --bind cannot be bound now, by address. Only meant while the server is down.

    The socket is bound, never listens, and is closed. An address that systemd (process 1) holds is the unit's own.
    """
    found = {}
    for text in settings.bind:
        address = parse_address(text)
        name = f"[{address.host}]:{address.port}" if ":" in address.host else f"{address.host}:{address.port}"
        if address.port and (why := _bind_refused(address)):
            who = in_use.who(name) if why == os.strerror(errno.EADDRINUSE) else ""
            if not who.startswith(" (pid 1,"):
                found[name] = f"{why}{who}"
    return found


def _bind_refused(address: Address) -> str:
    try:
        for family, kind, protocol, _, where in socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[:1]:
            with socket.socket(family, kind, protocol) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections in TIME_WAIT do not matter
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind(where)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _connects(place: logplace.LogPlace) -> str:
    try:
        Post(place)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _executable(directory: str, program: str, path: str) -> str:
    """Why execvpe(3) would not find or execute the program there."""
    try:
        os.chdir(directory)
    except OSError as error:
        return f"cannot enter {directory}: {error.strerror}"
    if "/" not in program:
        return "" if shutil.which(program, path=path) else "there is no such program in its PATH"
    if not os.path.exists(program):
        return "there is no such file, or it cannot be seen"
    return "" if os.access(program, os.X_OK) and os.path.isfile(program) else "it cannot be executed"


def _as_workers(settings: Settings, look: Callable[[], str]) -> str:
    """What `look` says in a child that has become the workers' user."""
    ids = None
    with contextlib.suppress(OptionError):  # told elsewhere
        ids = find_user(settings)
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            if ids and os.geteuid() == 0:
                user.become(*ids)
            text = look()
        except Exception as error:  # noqa: BLE001 - this child has nothing but this answer
            text = str(error) or type(error).__name__
        os.write(writing, text.encode(errors="replace")[:4096])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        text = answer.read().decode(errors="replace")
    os.waitpid(pid, 0)
    who = f"as the user of the workers ({settings.user or settings.group}): " if ids and text else ""
    return who + text
