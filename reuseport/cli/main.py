"""The command line's entry: finds the command, and turns every failure that a user can cause into one line.

Each command is imported only when it is asked for, so that `serve`, which becomes the master, never loads what only a
terminal needs.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from reuseport.cli.failure import INTERRUPTED, USAGE, Failure
from reuseport.options import OptionError
from reuseport.options.arguments import did_you_mean, one_line
from reuseport.version import __version__

COMMANDS = {
    "serve": "run an application: reuseport serve MODULE:APP",
    "release": "load the application's new version and let it take over",
    "promote": "let the version that some try out (release --canary) serve everybody",
    "rollback": "bring the version before back, or that of a generation: reuseport rollback [N]",
    "history": "show what was released when, and what each drain waited for",
    "status": "show the generations, their workers, and what each drain waits for",
    "tenants": "show which tenants are kept in which generation, and why",
    "hold": "keep a tenant in its generation: reuseport hold TENANT",
    "move": "let a held tenant go: reuseport move TENANT",
    "stop": "drain and stop the server",
    "upgrade": "replace the running master by the version of reuseport that is installed now",
    "init": "print a unit for systemd: reuseport init systemd MODULE:APP",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 failed, 2 wrong usage, 3 no master there."""
    # File names and variables may hold bytes that are no text; they must not break the message about them.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = _command(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return status
    except OptionError as error:
        return _fail(str(error), USAGE)
    except Failure as failure:
        return _fail(str(failure), failure.status)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has gone (`status | head`); Python would complain again when it flushes at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def usage() -> str:
    """The help of the command line as a whole."""
    commands = "\n".join(f"  {name:<9} {about}" for name, about in COMMANDS.items())
    return (
        "Usage: reuseport COMMAND [OPTIONS]\n\n"
        "A WSGI server that releases on SIGHUP and never interrupts running work.\n\n"
        f"Commands:\n{commands}\n\n"
        "reuseport COMMAND --help explains a command and its options; reuseport --version is the version.\n"
    )


def _command(argv: list[str]) -> int:
    if not argv:
        sys.stderr.write(usage())
        return USAGE
    name, *rest = argv
    if name in ("-h", "--help", "help"):
        sys.stdout.write(usage())
        return 0
    if name in ("-V", "-v", "--version"):
        print(f"reuseport {__version__}")
        return 0
    if name not in COMMANDS:
        if name.startswith("-"):
            raise OptionError(f"a command comes first: reuseport {'|'.join(COMMANDS)} [OPTIONS]")
        hint = f"; did you mean reuseport serve {name}?" if ":" in name else did_you_mean(name, COMMANDS)
        raise OptionError(f"unknown command {name!r}{hint or '; there are ' + ', '.join(COMMANDS)}")
    command = importlib.import_module(f"reuseport.cli.{name}")
    options_end = rest.index("--") if "--" in rest else len(rest)
    if {"-h", "--help"} & set(rest[:options_end]):
        sys.stdout.write(command.help_text())
        return 0
    return command.run(rest)


def _fail(message: str, status: int) -> int:
    sys.stdout.flush()
    sys.stderr.write(f"reuseport: {one_line(message)}\n")
    return status
