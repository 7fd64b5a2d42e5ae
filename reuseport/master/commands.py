"""Execute a companion's command: the companion itself, or its `ready_command`.

Both get the user, directory and environment of their generation. The process is a fork of the master, so until the
exec it must run nothing of the master's and hold none of its descriptors.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from reuseport.ipc import nofile, user
from reuseport.master.recipe import application_variables

WORDS = 4096  # bytes that a fork may say of why it could not execute its command
NOT_EXECUTED = 127  # its exit status then, as a shell's
PR_SET_PDEATHSIG = 1  # prctl(2)

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Surroundings:
    """Where a command runs. `ids` are the user and group that it becomes, None for the master's own."""

    directory: str
    environment: Mapping[str, str]
    ids: tuple[int, int] | None


def surroundings(
    recipe: Mapping[str, Any], declared: Mapping[str, Any], run_dir: str, generation: int, copy: int
) -> Surroundings:
    """Of a companion's commands: the environment of a shell in which the generation's virtual environment is active."""
    environment = {"PYTHONUNBUFFERED": "1", **os.environ, **application_variables(recipe), **declared["env"]}
    head = os.path.dirname(recipe["interpreter"])
    environment["PATH"] = f"{head}:{environment.get('PATH', os.defpath)}"
    environment.pop("VIRTUAL_ENV", None)
    if os.path.exists(os.path.join(head, "..", "pyvenv.cfg")):
        environment["VIRTUAL_ENV"] = os.path.dirname(head)
    paths = [os.path.join(recipe["directory"], path) for path in recipe["settings"]["values"].get("pythonpath", ())]
    if paths:
        environment["PYTHONPATH"] = ":".join(paths + [one for one in [environment.get("PYTHONPATH")] if one])
    environment |= {
        "REUSEPORT_RUN_DIR": run_dir,
        "REUSEPORT_GENERATION": str(generation),
        "REUSEPORT_COMPANION": declared["name"],
        "REUSEPORT_COMPANION_NUMBER": str(copy),
    }
    ids = recipe.get("ids") if os.geteuid() == 0 else None
    if ids and ids[0] != 0:
        user.rename(environment, ids[0], {*application_variables(recipe), *declared["env"]})
    return Surroundings(recipe["directory"], environment, tuple(ids) if ids else None)


def become(
    command: Sequence[str],
    around: Surroundings,
    output: int,
    limit: int | None,
    *,
    complain: int,
    kept: Iterable[int] = (),
    inherited: int = -1,
    prepare: Callable[[], None] = lambda: None,
    bound_to: int = 0,
) -> NoReturn:
    """Turn this fork into the command, in a session of its own. Never returns, and never raises.

    `output` becomes standard output and error. If the command cannot be executed, the reason is written to `complain`.
    `prepare` is called when only `output`, `complain`, `inherited` and `kept` are open. `inherited` stays open in the
    command. `limit` is the command's soft limit of open files; None: the master's. `bound_to`: the pid of the parent,
    with which the command dies; 0 where it outlives the parent.
    """
    doing = "could not be prepared"
    try:
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)
        _close_all_but(output, complain, inherited, *kept)
        os.setsid()
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        prepare()
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        for fd, standard in ((null, 0), (output, 1), (output, 2)):
            os.dup2(fd, standard)
        if inherited != -1:
            os.set_inheritable(inherited, True)
        if around.ids:
            doing = f"cannot become user {around.ids[0]}"
            user.become(*around.ids)
        if bound_to:
            _die_with(bound_to)
        if limit is not None:
            nofile.set_limit(limit)
        doing = f"cannot enter {around.directory}"
        os.chdir(around.directory)
        doing = f"cannot execute {command[0]!r}"
        os.execvpe(command[0], list(command), around.environment)
    except BaseException as error:  # noqa: BLE001 nothing of the master's may run in this process
        why = error.strerror if isinstance(error, OSError) and error.strerror else repr(error)
        os.write(complain, f"{doing}: {why[:1].lower()}{why[1:]}".encode()[:WORDS])
    finally:
        os._exit(NOT_EXECUTED)


def _die_with(parent: int) -> None:
    """Have SIGKILL follow the parent's death (PR_SET_PDEATHSIG, prctl(2)). A change of user would undo it."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def _close_all_but(*kept: int) -> None:
    """And the standard streams. A process that holds the other end of a wire would hide the master's death."""
    start = 3
    for fd in sorted({*kept} - {-1}):
        os.closerange(start, fd)
        start = fd + 1
    os.closerange(start, os.sysconf("SC_OPEN_MAX"))
