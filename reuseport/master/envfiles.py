"""Variables of the application from files (--env-file), read at each release.

The syntax is what systemd's EnvironmentFile= (systemd.exec(5)) and python-dotenv read alike. A line that the two read
differently is an error, but for `export`, with which systemd ignores the line. An error names the file, the line and
the variable, and never repeats a value.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Callable, Sequence
from typing import NoReturn

from reuseport.ipc.walk import Trust, Untrusted, steps
from reuseport.options import OptionError, Settings

LARGEST = 1 << 20  # bytes of one file
# Of a variable, up to its value. A shell that reads the file needs `export`; systemd ignores such a line.
_NAME = re.compile(r"(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_]*)[ \t]*=[ \t]*")
_QUOTE = "put the value into single quotes"


class _Refused(Exception):
    """`line` is the number of the line, from 1; the message says what is wrong with it."""

    def __init__(self, line: int, why: str) -> None:
        super().__init__(why)
        self.line = line


def read(settings: Settings, directory: str, ids: Sequence[int] | None) -> dict[str, str]:
    """The variables of all files; a later file wins. Relative paths lie in `directory`.

    A path that begins with "-" may lead to no file, as with systemd. /dev/null has no variables. `ids` are the
    (uid, gid) of the application.
    Raises OptionError.
    """
    found: dict[str, str] = {}
    for said in settings.env_file:
        path = os.path.join(directory, said.removeprefix("-"))
        if path == os.devnull:
            continue
        begin = f"{settings.where('env_file')}: {path}"
        try:
            found |= parse(_contents(path, ids))
        except FileNotFoundError as error:
            if not said.startswith("-"):
                raise OptionError(f"{begin}: {_reason(error)}") from None
        except OSError as error:
            raise OptionError(f"{begin}: {_reason(error)}") from None
        except _Refused as error:
            raise OptionError(f"{begin}:{error.line}: {error}") from None
    return found


def _reason(error: OSError) -> str:
    text = error.strerror or str(error)
    return text if isinstance(error, Untrusted) else text[:1].lower() + text[1:]


def _contents(path: str, ids: Sequence[int] | None) -> str:
    # A pipe gives its text once, and would hold up the master at the next release.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(0, "it is no regular file, which a release could read again")
        if ids is not None and os.geteuid() == 0:
            _check_way(path, status, ids)
        with open(fd, "rb", closefd=False) as file:
            data = file.read(LARGEST + 1)
    finally:
        os.close(fd)
    if len(data) > LARGEST:
        raise OSError(0, f"it is larger than {LARGEST} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise _Refused(data.count(b"\n", 0, error.start) + 1, "it is not UTF-8") from None


def _may(status: os.stat_result, ids: Sequence[int], permission: int) -> bool:
    """Whether a user has the permission (one of S_IROTH, S_IXOTH); False where a supplementary group decides."""
    uid, gid = ids
    if status.st_uid == uid:
        return bool(status.st_mode >> 6 & permission)
    if status.st_gid == gid:
        return bool(status.st_mode >> 3 & permission)
    return bool(status.st_mode & permission)


def _check_way(path: str, status: os.stat_result, ids: Sequence[int]) -> None:
    """Untrusted where another user than root could have led the path to this file, and the application's user could not
    read the file on this very way: it must be able to search each directory of it, path_resolution(7)."""
    last = None
    readable = _may(status, ids, stat.S_IROTH)
    exchangeable: Untrusted | None = None
    with contextlib.ExitStack() as stack:
        trust = Trust(0)
        for step in steps(path, stack):
            readable = readable and _may(os.fstat(step.directory), ids, stat.S_IXOTH)
            try:
                trust.check(step)
            except Untrusted as error:
                exchangeable = exchangeable or error
            last = step.status
    if exchangeable is not None and not readable:
        raise exchangeable
    if last is None or not os.path.samestat(last, status):
        raise Untrusted(path, "it was exchanged while it was read")


def parse(text: str) -> dict[str, str]:
    """The variables of a file. Raises _Refused."""
    found: dict[str, str] = {}
    position, line = 0, 1
    while position < len(text):
        end = text.find("\n", position)
        end = len(text) if end == -1 else end
        stripped = text[position:end].strip(" \t\r")
        if "\r" in stripped:
            raise _Refused(line, "a carriage return stands in it")
        if stripped.startswith("#"):
            if stripped.endswith("\\"):
                raise _Refused(line, "a comment ends with a backslash: systemd before 254 skips the line that follows")
        elif stripped:
            start = position + len(text[position:end]) - len(text[position:end].lstrip(" \t"))
            name, value, end = _assignment(text, start, end, line)
            found[name] = value
        line += text.count("\n", position, end + 1)
        position = end + 1
    return found


def _assignment(text: str, start: int, end: int, line: int) -> tuple[str, str, int]:
    """The name, the value, and where the last line of it ends."""
    match = _NAME.match(text, start, end)
    if match is None:
        if text.startswith("\ufeff", start):
            raise _Refused(line, "it begins with a byte order mark: save the file without one")
        if "=" not in text[start:end]:
            raise _Refused(line, "there is no = in it: a variable is NAME=VALUE, and a comment begins with #")
        raise _Refused(line, "what stands before = is no name of a variable: letters, digits and _")
    name = match[1]
    if name == "export":
        raise _Refused(line, "the name of the variable is missing")

    def refuse(why: str) -> NoReturn:
        raise _Refused(line, f"{name}: {why}")

    begin = match.end()
    quote = text[begin : begin + 1]
    if begin < end and quote in "'\"":
        value, closed = _quoted(text, begin, quote, refuse)
        end = text.find("\n", closed)
        end = len(text) if end == -1 else end
        if text[closed:end].strip(" \t\r"):
            refuse("text follows the closing quote. A comment needs a line of its own")
    else:
        value = text[begin:end].strip(" \t\r")
        if "\\" in value:
            refuse(f"systemd drops a backslash, dotenv keeps it: {_QUOTE}")
        if "${" in value:
            refuse(f"dotenv replaces ${{...}}, systemd does not: {_QUOTE}")
        if re.search(r"(?:^|\s)#", value):
            refuse(f"dotenv takes # for a comment, systemd for a part of the value: {_QUOTE}, or remove the comment")
        if value != value.strip():
            refuse(f"dotenv removes Unicode spaces at the ends of the value, systemd does not: {_QUOTE}")
    if "\0" in value or "\r" in value:
        refuse("the value holds a NUL character or a carriage return")
    return name, value, end


def _quoted(text: str, begin: int, quote: str, refuse: Callable[[str], NoReturn]) -> tuple[str, int]:
    """The value between quotes, and the position behind the closing one."""
    if quote == "'":
        end = text.find("'", begin + 1)
        if end == -1:
            refuse("the quote is not closed")
        value = text[begin + 1 : end]
        if "\\\\" in value or value.endswith("\\"):
            refuse("dotenv takes \\\\ and \\' in single quotes for one character, systemd does not: use double quotes")
        return value, end + 1
    pieces: list[str] = []
    position = begin + 1
    while True:
        stop = re.compile(r'["\\]').search(text, position)
        if stop is None:
            refuse("the quote is not closed")
        pieces.append(text[position : stop.start()])
        if stop[0] == '"':
            break
        escaped = text[stop.end() : stop.end() + 1]
        if escaped not in ('"', "\\"):
            refuse('in double quotes systemd and dotenv agree on \\\\ and \\" only. A line break can stand for itself')
        pieces.append(escaped)
        position = stop.end() + 1
    value = "".join(pieces)
    if "${" in value:
        refuse(f"dotenv replaces ${{...}}, systemd does not: {_QUOTE}")
    return value, stop.end()
