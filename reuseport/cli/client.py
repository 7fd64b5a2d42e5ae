"""The client's end of the control socket: one JSON line to the master, JSON lines back, the last one "done".

A master may be older or newer than this client, so events and fields that are unknown here are passed over. The end of
the stream before "done" means that the master died: nothing else closes it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from reuseport.cli.failure import NO_MASTER, Failure
from reuseport.ipc.rundir import RunDir
from reuseport.options.address import UNIX_PATH_BYTES
from reuseport.options.machine import name_of

VERSION = 1
CONNECT_SECONDS = 5.0


def ask(
    run_dir: str,
    request: dict[str, Any],
    *,
    on_event: Callable[[Mapping[str, Any]], None] = lambda message: None,
    tick: tuple[float, Callable[[], None]] | None = None,
    timeout: float | None = None,
    gone_within: float | None = None,
    of_any_user: bool = False,
) -> dict[str, Any]:
    """Send one request to the master of `run_dir` and return its "done".

    `on_event` gets each message before it. `tick`: after so many seconds in which nothing was heard its function is
    called, again and again. `timeout` is the longest silence in seconds, None for any: a release takes as long as its
    application's import. With `gone_within` the call returns only when the master's process has ended, so many seconds
    after "done" at the latest. Raises Failure.
    """
    with connect(run_dir, of_any_user=of_any_user) as connection, contextlib.ExitStack() as stack:
        master = _pidfd(connection) if gone_within is not None else None
        if master is not None:
            stack.callback(os.close, master)
        connection.settimeout(timeout)
        try:
            _send(connection, request, run_dir)
            done = _done(_lines(connection, timeout, tick), run_dir, on_event)
            if done.get("superseded"):
                # Another master has taken over: it is asked the same, or what this one says is to be asked instead.
                return ask(
                    run_dir, done.get("ask") or request, on_event=on_event, tick=tick, timeout=timeout,
                    gone_within=gone_within, of_any_user=of_any_user,
                )  # fmt: skip
            if gone_within is not None and done.get("ok"):
                _await_end(connection, master, gone_within, run_dir)
        except TimeoutError as error:
            raise Failure(f"the master in {run_dir} has not answered for {timeout:g} seconds") from error
        except ConnectionResetError as error:
            raise _died(run_dir) from error
        return done


def connect(run_dir: str, *, of_any_user: bool = False) -> socket.socket:
    """A connection to the master of `run_dir`. Raises Failure, with the status NO_MASTER if there is none.

    `of_any_user` lets root ask another user's master; nobody else ever can.
    """
    path = RunDir(run_dir).control
    if len(os.fsencode(path)) > UNIX_PATH_BYTES:
        raise Failure(f"no master in {run_dir}: its path is too long for a unix socket", NO_MASTER)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(CONNECT_SECONDS)
    try:
        connection.connect(path)
        _check_peer(connection, run_dir, of_any_user)
    except OSError as error:
        connection.close()
        if error.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR, errno.ELOOP):
            raise Failure(f"no master in {run_dir}", NO_MASTER) from error
        if isinstance(error, TimeoutError) or error.errno == errno.EAGAIN:
            raise Failure(f"the master in {run_dir} does not take connections") from error
        why = (error.strerror or str(error)).lower()
        owner = _owner(run_dir) if error.errno == errno.EACCES else ""
        whose = f"; it belongs to {owner}: ask as that user" if owner else ""
        raise Failure(f"cannot reach the master in {run_dir}: {why}{whose}") from error
    except Failure:
        connection.close()
        raise
    return connection


def _owner(path: str) -> str:
    """Whose the directory is; "" where that cannot be seen."""
    try:
        return name_of(os.stat(path).st_uid)
    except OSError:
        return ""


def is_alive(run_dir: str, *, of_any_user: bool = False) -> bool:
    """Whether a master answers in `run_dir`."""
    try:
        connect(run_dir, of_any_user=of_any_user).close()
    except Failure as failure:
        # One that cannot be reached for another reason is there all the same, and the user should hear of it.
        return failure.status != NO_MASTER
    return True


def _check_peer(connection: socket.socket, run_dir: str, of_any_user: bool) -> None:
    # /tmp is everybody's: whoever makes the directory first could play the master, and its answers are printed.
    _, uid, _ = _credentials(connection)
    if uid not in (0, os.geteuid()) and not (of_any_user and os.geteuid() == 0):
        raise Failure(f"what listens in {run_dir} belongs to user {uid}, and is not trusted")


def _credentials(connection: socket.socket) -> tuple[int, int, int]:
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, gid = struct.unpack("3i", packed)
    return pid, uid, gid


def _pidfd(connection: socket.socket) -> int | None:
    """A descriptor of the master's process; None where it cannot be seen from here (another pid namespace)."""
    pid, _, _ = _credentials(connection)
    if pid <= 0:
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        # Without it the end of the stream has to do; it comes a moment earlier than the end of the process.
        return None


def _send(connection: socket.socket, request: dict[str, Any], run_dir: str) -> None:
    try:
        connection.sendall(json.dumps({"v": VERSION, **request}).encode() + b"\n")
    except BrokenPipeError as error:
        # Caught here and no further out, where it may also be the reader of our own output who has gone.
        raise _died(run_dir) from error


def _lines(
    connection: socket.socket, timeout: float | None, tick: tuple[float, Callable[[], None]] | None
) -> Iterator[bytes]:
    """Whole lines until the end of the stream. TimeoutError."""
    pending, heard = b"", time.monotonic()
    every, call = tick or (timeout, None)
    while True:
        connection.settimeout(every)
        try:
            data = connection.recv(65536)
        except TimeoutError:
            if call is None or (timeout is not None and time.monotonic() - heard >= timeout):
                raise
            call()
            continue
        if not data:
            return
        heard = time.monotonic()
        *lines, pending = (pending + data).split(b"\n")
        yield from lines


def _done(lines: Iterator[bytes], run_dir: str, on_event: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
    for line in lines:
        try:
            message = json.loads(line)
        except ValueError as error:
            raise Failure(f"the master in {run_dir} sent what is not JSON: {line[:60]!r}") from error
        if not isinstance(message, dict):
            raise Failure(f"the master in {run_dir} sent what is no message: {line[:60]!r}")
        if message.get("event") == "done":
            return message
        on_event(message)
    raise _died(run_dir)


def _died(run_dir: str) -> Failure:
    return Failure(f"the master in {run_dir} died before it had answered; its log may say why")


def _await_end(connection: socket.socket, master: int | None, seconds: float, run_dir: str) -> None:
    if master is not None:
        poll = select.poll()
        poll.register(master, select.POLLIN)
        ended = bool(poll.poll(seconds * 1000))
    else:
        connection.settimeout(seconds)
        try:
            while connection.recv(4096):
                pass
            ended = True
        except ConnectionResetError:
            ended = True
        except TimeoutError:
            ended = False
    if not ended:
        raise Failure(f"the master in {run_dir} said that it stops, but has not ended within {seconds:g} seconds")
