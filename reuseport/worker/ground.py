"""What a process is made before the application's code runs in it: the user it shall be, and one that tells its stack.

For a zygote and for the doctor's probe, which loads as a zygote does.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import greenlet

from reuseport.ipc import user
from reuseport.ipc.packages import NAMES
from reuseport.ipc.stacks import STACK_SIGNAL

from . import application, filevariables, remedies

C_CODE = 0.2  # seconds more that a process gets whose code in C lets no handler run


def become(
    ids: Sequence[int], directory: str, variables: Mapping[str, str], from_files: Mapping[str, str]
) -> None:
    """Be another user, (uid, gid), if this is root. LoadError where that one could not import what it needs.

    The environment has the `variables` of --env already. Those of --env-file (`from_files`) follow here, and those that
    name the user, unless --env or a file says them (`user.variables`). Not before: as root, Python would run files of
    that user's home directory (site.USER_SITE), or of a directory that a file of that user names.

    What cannot be read is told here, because a module that is imported later would only seem to be missing.
    """
    if os.geteuid() != 0:
        return
    uid, gid = ids
    packages = [os.path.dirname(sys.modules[name].__file__ or "") for name in NAMES]
    # Of the virtual environment: looked for by root, because for a user who cannot enter it nothing is there.
    installed = [path for path in sys.path if path.startswith(f"{sys.prefix}{os.sep}") and os.path.isdir(path)]
    user.become(uid, gid)
    if uid != 0:
        user.rename(os.environ, uid, {*variables, *from_files})
    filevariables.take(from_files, variables)
    for place in dict.fromkeys((os.path.dirname(os.__file__), *packages, *installed, directory)):
        if not os.access(place, os.R_OK | os.X_OK):
            raise application.LoadError(f"--user: uid {uid} cannot read {place}, which it must import from")


def flush() -> None:
    """What stays in a buffer would be written once by every process that is forked."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(ValueError):
            stream.flush()


def tell_stack_on_signal() -> None:
    """Until a process is ready, the stack signal ends it, and standard error tells what it was at.

    The C handler runs even where no Python code does. It shows who has the thread, and for an application that waits
    in a patched call that is the hub; the Python handler, which can run then, adds where the application waits.
    """
    main_greenlet = greenlet.getcurrent()

    def tell(number: int, frame: Any) -> None:
        if main_greenlet.gr_frame is not None and greenlet.getcurrent() is not main_greenlet:
            sys.stderr.write("The application waits in (most recent call last):\n")
            stack = [f for f in traceback.extract_stack(main_greenlet.gr_frame) if not application.is_ours(f.filename)]
            traceback.print_list(stack)
        if remedy := remedies.of_stack(one.f_code.co_filename for one, _ in traceback.walk_stack(frame)):
            sys.stderr.write(f"{remedy}\n")
        flush()
        os._exit(1)

    signal.signal(STACK_SIGNAL, tell)
    faulthandler.enable()
    faulthandler.register(STACK_SIGNAL, chain=True)


def exit_after(seconds: float, text: str) -> None:
    """After so many seconds standard error gets the text and what the calling greenlet is at, and the process exits
    with status 1."""
    caller = greenlet.getcurrent()

    def tell(number: int, frame: Any) -> None:
        at = traceback.extract_stack(caller.gr_frame or frame)
        sys.stderr.write(f"{text}\n")
        traceback.print_list([one for one in at if not application.is_ours(one.filename)])
        flush()
        os._exit(1)

    signal.signal(signal.SIGALRM, tell)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    with contextlib.suppress(RuntimeError):  # no thread can be started
        faulthandler.dump_traceback_later(seconds + C_CODE, exit=True, file=2)
