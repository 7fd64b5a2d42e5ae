"""`reuseport serve`: read the options, check what can be checked, and become the master.

What is wrong is said before anything has been bound or started, and all of it at once.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence

from reuseport import startup
from reuseport.cli.failure import FAILED
from reuseport.ipc.inherited import SIGNALS, UPGRADE_VARIABLE
from reuseport.options import OPTIONS, OptionError, Settings, check, load, overlooked, working_directory
from reuseport.options.arguments import one_line
from reuseport.options.checks import find_directory, find_user
from reuseport.options.manual import manual, print_config

ABOUT = """\
Serves a WSGI application, and releases its new version without an interruption when it gets SIGHUP or `reuseport \
release` asks for it.

    reuseport serve shop:app -b 0.0.0.0:8000

    reuseport serve -c /etc/shop.toml --check-config

Each option may also be said by an environment variable or by a key of a TOML file. A flag wins over a variable, that \
over the file, that over the default. Times are in seconds unless a unit follows (500ms, 90s, 15m, 2h), sizes in \
bytes (64K, 512M, 2G; powers of 1024). A switch is turned off by --no-NAME. Relative paths lie in the working \
directory unless it says otherwise.

Signals: HUP releases. TERM stops after requests and jobs have ended, a second TERM at once; so do INT and QUIT. TTIN \
and TTOU make it one worker more or less. USR1 opens the log again. USR2 replaces the master in place by a new \
version of reuseport or of Python (reuseport upgrade).

Exit status: 0 it was stopped; 1 it could not start, or what it started with could not serve; 2 wrong usage.

See also: reuseport doctor (what will hurt), init (a unit for systemd), translate (from Gunicorn's configuration)."""

TAKES = OPTIONS


def help_text() -> str:
    return manual(TAKES, "reuseport serve [OPTIONS] MODULE:APP", ABOUT, shutil.get_terminal_size().columns)


def run(argv: Sequence[str]) -> int:
    """Serve until stopped; the exit status is the master's. Raises OptionError."""
    if problem := startup.unfit_for_a_master():
        print(f"reuseport: {one_line(str(problem))}", file=sys.stderr)
        return FAILED
    if UPGRADE_VARIABLE in os.environ:
        from reuseport.master.entrance import resume

        return resume()
    if os.getpid() == 1:
        # In a container. The kernel drops what process 1 has no handler for yet (kill(2), NOTES): a `docker stop` that
        # comes early would wait in vain, and then kill. What is blocked waits for the master's handlers.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    settings = load(argv, os.environ, working_directory(os.environ))
    for remark in (*settings.remarks, *overlooked(settings)):
        print(f"reuseport: {one_line(str(remark))}", file=sys.stderr)
    if settings.print_config:
        sys.stdout.write(print_config(settings))
        if not settings.check_config:
            return 0
    if settings.app is None and not settings.check_config:
        raise OptionError("serve: which application? name it, as in: reuseport serve MODULE:APP")
    problems = check(settings)
    if settings.check_config and not problems:
        problems = _unreadable(settings)
    for problem in problems:
        print(f"reuseport: {one_line(str(problem))}", file=sys.stderr)
    if problems:
        return FAILED
    if settings.check_config:
        print(f"nothing in the configuration of {settings.name} is refused", file=sys.stderr)
        return 0
    from reuseport.master.entrance import run as run_master

    sys.stderr.flush()
    flags = interpreter_flags()
    return run_master(settings, {"flags": flags} if flags else {})


def interpreter_flags() -> list[str]:
    """The options -W and -X of this interpreter. They are meant for the application, which another one loads."""
    flags = iter(subprocess._args_from_interpreter_flags())
    kept: list[str] = []
    for flag in flags:
        if flag.startswith("-W"):
            kept.append(flag)
        elif flag == "-X":
            kept += [flag, next(flags)]
    return kept


def _unreadable(settings: Settings) -> list[str]:
    """What a start refuses in files that only a release reads."""
    from reuseport.master import envfiles

    try:
        envfiles.read(settings, find_directory(settings), find_user(settings))
    except OptionError as error:
        return [str(error)]
    return []
