"""Options as a container needs them. The addresses and the users of the machine are not the container's."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass

from reuseport.cli.init.described import Described, words_without
from reuseport.options import OptionError
from reuseport.options.address import Address, parse_address

UID = 10001  # of the application's user: a number that no distribution gives out
PORT = 8000
# The accounts of the base image (base-passwd of Debian 12) without root's, which need not be made.
USERS = {
    "daemon": 1, "bin": 2, "sys": 3, "sync": 4, "games": 5, "man": 6, "lp": 7, "mail": 8, "news": 9, "uucp": 10,
    "proxy": 13, "www-data": 33, "backup": 34, "list": 38, "irc": 39, "_apt": 42, "nobody": 65534,
}  # fmt: skip
GROUPS = {
    "daemon": 1, "bin": 2, "sys": 3, "adm": 4, "tty": 5, "disk": 6, "lp": 7, "mail": 8, "news": 9, "uucp": 10,
    "man": 12, "proxy": 13, "kmem": 15, "dialout": 20, "fax": 21, "voice": 22, "cdrom": 24, "floppy": 25, "tape": 26,
    "sudo": 27, "audio": 29, "dip": 30, "www-data": 33, "backup": 34, "operator": 37, "list": 38, "irc": 39, "src": 40,
    "shadow": 42, "utmp": 43, "video": 44, "sasl": 45, "plugdev": 46, "staff": 50, "games": 60, "users": 100,
    "nogroup": 65534,
}  # fmt: skip
NOGROUP = {"sync", "_apt", "nobody"}  # users whose primary group is nogroup; the others have one of their own name
ANY = {"inet": "0.0.0.0", "inet6": "::"}


@dataclass(frozen=True)
class Account:
    """The user that the image makes and that its processes run as."""

    user: str
    group: str
    uid: int
    gid: int

    def made(self) -> list[str]:
        """The commands that make them in an image of Debian's."""
        made = []
        if GROUPS.get(self.group) != self.gid:
            made.append(f"groupadd --system --non-unique --gid {self.gid} {self.group}")
        if USERS.get(self.user) != self.uid:
            who = f"--uid {self.uid} --gid {self.gid} --no-create-home {self.user}"
            made.append(f"useradd --system --non-unique {who}")
        return made


def account(app: Described) -> Account:
    """The user and group that the image makes: those of --user and --group.

    A master that runs as these already changes to no other user, so the options can stay where they are.

    Raises OptionError for root, because such a container needs neither option.
    """
    uid, user = _identity(app.settings.user, "app", USERS)
    group = app.settings.group or ("nogroup" if user in NOGROUP else user)
    gid, group = _identity(group, user, GROUPS) if app.settings.group or group in GROUPS else (uid, group)
    if 0 in (uid, gid) or "root" in (user, group):
        where = app.settings.where("group" if app.settings.group and (gid == 0 or group == "root") else "user")
        raise OptionError(f"init: {where}: the image runs nothing as root; name another, or leave it out")
    return Account(user, group, uid, gid)


def _identity(said: str, otherwise: str, known: Mapping[str, int]) -> tuple[int, str]:
    """The number and the name of an account of which one is said."""
    if said.isdecimal():
        return int(said), otherwise
    return known.get(said, UID), said or otherwise


def binds(app: Described) -> tuple[str, ...]:
    """The addresses in the container: where the options say one of the machine's, all of the container's.

    A container has a loopback interface of its own, so nothing outside reaches 127.0.0.1 there, and the machine's other
    addresses are not there. Raises OptionError for a port that nothing outside knows.
    """
    if not app.says("bind"):
        return (f"{ANY['inet']}:{PORT}",)
    found: dict[str, None] = {}
    opened = set()
    for one, text in zip(app.addresses, app.settings.bind, strict=True):
        if one.path:
            found[text] = None
            continue
        if not one.port:
            raise OptionError(f"init: {app.settings.where('bind')}: a container needs a port that others know, not 0")
        if one.host in ANY.values():
            found[text] = None
        elif one.port not in opened:
            found[f"[::]:{one.port}" if one.family == "inet6" else f"0.0.0.0:{one.port}"] = None
        opened.add(one.port)
    return tuple(found)


def words(app: Described) -> tuple[str, ...]:
    """The options for `serve` in the container."""
    wanted = binds(app)
    if app.says("bind") and wanted == tuple(app.settings.bind):
        return app.words
    kept = words_without(app.words, "bind") if app.says("bind") else app.words
    return (*kept, *(word for address in wanted for word in ("-b", address.removeprefix("tcp:"))))


def remark(app: Described) -> str:
    """Why the addresses are others than the options say; "" if they are not."""
    if not app.says("bind") or binds(app) == tuple(app.settings.bind):
        return ""
    said = ", ".join(text.removeprefix("tcp:") for text in app.settings.bind)
    return (
        f"# {app.settings.where('bind')} says {said}. Nothing outside of a container could reach\n"
        "# that. Here it is each address of the container; `ports:` or `docker run -p` decides who reaches that.\n"
    )


def address(app: Described) -> Address | None:
    """Where the container is reached from outside; None if only by unix sockets."""
    return next((one for one in map(parse_address, binds(app)) if one.port), None)


def has_socket(app: Described) -> bool:
    """Whether the container also listens on a unix socket, whose directory the image does not make."""
    return any(parse_address(one).path for one in binds(app))


def published(app: Described) -> str:
    """The port for `ports:` of Docker Compose, at the machine's address that the options say; "" for none."""
    inside = address(app)
    if inside is None:
        return ""
    said = next((one for one in app.addresses if app.says("bind") and one.port == inside.port), None)
    host = "127.0.0.1" if said and said.host == "localhost" else said.host if said else ""
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:  # a name, which Compose does not take, or none
        return f"{inside.port}:{inside.port}"
    if ip.is_unspecified:
        return f"{inside.port}:{inside.port}"
    return f"{f'[{ip}]' if ip.version == 6 else ip}:{inside.port}:{inside.port}"
