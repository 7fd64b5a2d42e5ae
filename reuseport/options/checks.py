"""What can be found wrong without starting anything: directories, interpreters, users that are not there.

A start asks for all of it; a release asks again for the directory and the interpreter, because a link may lead
elsewhere by then. Every message begins with what said the option's value.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from reuseport.options import logplace, machine
from reuseport.options.address import UNIX_PATH_BYTES, parse_address
from reuseport.options.arguments import OptionError
from reuseport.options.settings import DEFAULT, Settings

Found = TypeVar("Found")

SOCKET_NAME_BYTES = 24  # room for the longest name of a socket in the run directory, with its subdirectory


def find_directory(settings: Settings) -> str:
    """The application's directory with every symbolic link followed. Raises OptionError."""
    return _named(settings, "chdir", lambda: machine.directory_of(settings.chdir))


def find_interpreter(settings: Settings, directory: str) -> str:
    """The interpreter for the application in `directory` (from find_directory), absolute. Raises OptionError."""
    return _named(settings, "python", lambda: machine.interpreter_of(settings.python, directory))


def find_user(settings: Settings) -> tuple[int, int] | None:
    """(uid, gid) that the application runs as, None for the master's own. Raises OptionError."""
    user = _named(settings, "user", lambda: machine.user_of(settings.user))
    group = _named(settings, "group", lambda: machine.group_of(settings.group))
    if user is None and group is None:
        return None
    uid, gid = user or (os.geteuid(), os.getegid())
    return uid, gid if group is None else group


def check_certificates(settings: Settings) -> None:
    """Whether TLS could be spoken with the files as they are now. Raises OptionError."""
    if not (settings.certfile or settings.keyfile or settings.ca_certs or settings.cert_reqs != "none"):
        return
    from reuseport.options import certificates  # with ssl, which a master without TLS does not need

    try:
        pems = certificates.Pems.read(settings)
        if pems is not None:
            certificates.context(settings, pems)
    except certificates.CertificateError as error:
        raise OptionError(f"{settings.where(error.option)}: {error}") from error


def check(settings: Settings, *, needs_app: bool = True) -> list[str]:
    """One line for each thing that would keep `serve` from starting; an empty list if there is none.

    `needs_app`: the application must have a name, as it must unless a script embeds the server.
    """
    problems: list[str] = []
    if needs_app and settings.app is None:
        problems.append("which application? name it as MODULE:APP (see reuseport serve --help)")
    directory = _try(problems, find_directory, settings)
    if directory is not None:
        _try(problems, find_interpreter, settings, directory)
    _try(problems, check_certificates, settings)
    wanted = _try(problems, find_user, settings)
    if wanted not in (None, (os.geteuid(), os.getegid())) and os.geteuid() != 0:
        name = "user" if settings.user else "group"
        problems.append(f"{settings.where(name)}: only a master that root started can become another {name}")
    for address in settings.bind:
        path = parse_address(address).path
        if path and "LISTEN_FDS" not in os.environ:  # one that was passed need not be ours to make
            problems += _no_place_for(f"{settings.where('bind')}: unix:{path}", path)
    for name in ("pid", "log_file", "access_log"):
        path = getattr(settings, name)
        if path and (name == "pid" or logplace.parse(path).kind == logplace.FILE):
            problems += _no_place_for(f"{settings.where(name)}: {path}", path)
        elif path:
            place = logplace.parse(path)
            why = logplace.objection(place.number) if place.kind == logplace.DESCRIPTOR else ""
            problems += [f"{settings.where(name)}: {path}: {why}"] if why else []
    problems += tenants_at_odds(settings)
    problems += _unfit_run_dir(settings)
    if settings.sources["state_dir"] != DEFAULT and not Path(settings.state_dir).is_dir():
        problems.append(f"{settings.where('state_dir')}: there is no directory {settings.state_dir}")
    return problems


def overlooked(settings: Settings) -> list[str]:
    """One line for each file that users expect to count, and that does not."""
    path = os.path.join(settings.chdir, ".env")
    if settings.env_file or not os.path.isfile(path):
        return []
    return [
        f"{path} is not read. --env-file .env reads it at each release. If the application reads it itself, "
        f"--env-file {os.devnull} says so, and ends this remark"
    ]


def tenants_at_odds(settings: Settings) -> list[str]:
    """Why these settings cannot have their --tenant, in sentences."""
    problems = []
    if settings.tenant_isolation == "strict" and not settings.tenant:
        problems.append(f"{settings.where('tenant_isolation')}: strict needs --tenant, which says whose a request is")
    if settings.tenant_isolation == "strict" and settings.pin_max:
        problems.append(
            f"{settings.where('pin_max')}: it lets two versions work for one tenant, which strict isolation forbids"
        )
    if settings.tenant and settings.certfile:
        # TLS state lives in this process's memory: such a connection cannot be handed over.
        problems.append(f"{settings.where('tenant')}: a TLS connection cannot be handed over; end TLS in a proxy")
    return problems


def _unfit_run_dir(settings: Settings) -> list[str]:
    path = Path(settings.run_dir)
    begin = f"{settings.where('run_dir')}: the run directory {path}"
    if len(os.fsencode(path)) + SOCKET_NAME_BYTES > UNIX_PATH_BYTES:
        return [f"{begin} has too long a path for the unix sockets in it; --run-dir takes a shorter one"]
    try:
        owner = path.stat().st_uid
    except FileNotFoundError:
        return []
    except OSError as error:
        return [f"{begin} cannot be looked at: {(error.strerror or str(error)).lower()}"]
    if not path.is_dir():
        return [f"{begin} is not a directory; --run-dir takes another"]
    if owner != os.geteuid():
        return [f"{begin} {machine.whose(owner)}"]
    return []


def _no_place_for(begin: str, path: str) -> list[str]:
    parent = Path(path).parent
    if Path(path).is_dir():
        return [f"{begin}: is a directory"]
    if not parent.is_dir():
        return [f"{begin}: there is no directory {parent}"]
    if not os.access(parent, os.W_OK | os.X_OK) and not os.access(path, os.W_OK):
        return [f"{begin}: nothing can be written to {parent}"]
    return []


def _named(settings: Settings, name: str, find: Callable[[], Found]) -> Found:
    try:
        return find()
    except (ValueError, OSError) as error:
        raise OptionError(f"{settings.where(name)}: {error}") from error


def _try(problems: list[str], find: Callable[..., Found], *arguments: object) -> Found | None:
    try:
        return find(*arguments)
    except OptionError as error:
        problems.append(str(error))
        return None
