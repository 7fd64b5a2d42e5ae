"""The command line's entry: finds the command, and turns every failure that a user can cause into one line.

Each command is imported only when it is asked for, so that `serve`, which becomes the master, never loads what only a
terminal needs.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

from reuseport import startup
from reuseport.cli import operator
from reuseport.cli.failure import INTERRUPTED, USAGE, Failure
from reuseport.ipc import standard
from reuseport.options import OptionError
from reuseport.options.arguments import did_you_mean, one_line
from reuseport.version import __version__

GROUPS = {
    "Serve and release": {
        "serve": "run an application: reuseport serve MODULE:APP",
        "release": "load the application's new version and let it take over",
        "promote": "let the version that some try out (release --canary) serve everybody",
        "rollback": "bring the version before back, or end a release that boots: reuseport rollback [N]",
        "abort": "end a release that boots; what serves is not touched",
        "hold": "keep a tenant in its generation: reuseport hold TENANT",
        "move": "let a held tenant go: reuseport move TENANT",
        "stop": "drain and stop the server",
        "upgrade": "replace the running master by the version of reuseport that is installed now",
    },
    "Look": {
        "status": "show the generations, their workers, and what each drain waits for",
        "history": "show what was released when, and what each drain waited for",
        "tenants": "show which tenants are kept in which generation, and why",
        "quarantine": "show the requests that are refused because they ended workers, or let them in: --clear",
        "stacks": "show what every greenlet and thread is at: reuseport stacks [PID|WORKER]",
        "doctor": "say what on this machine, or in this configuration, will hurt",
    },
    "Set up": {
        "init": "print a file for systemd, nginx, docker, kubernetes, prometheus, and more",
        "translate": "print a gunicorn.conf.py as a reuseport.toml, with remarks",
        "completion": "print a shell's completion: reuseport completion bash|zsh|fish",
    },
}
COMMANDS = {name: about for commands in GROUPS.values() for name, about in commands.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 failed, 2 wrong usage, 3 no master there, 4 superseded."""
    if argv is None:
        standard.fill()
        startup.begin_anew()
    operator.note_start(typed=argv is None)
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
    width = max(map(len, COMMANDS))
    groups = [
        f"{title}:\n" + "\n".join(f"  {name:<{width}}  {about}" for name, about in commands.items())
        for title, commands in GROUPS.items()
    ]
    return (
        "Usage: reuseport COMMAND [OPTIONS]\n\n"
        "A WSGI server that releases on SIGHUP and never interrupts running work.\n\n"
        + "\n\n".join(groups)
        + "\n\nreuseport help COMMAND explains a command; reuseport help serve WORD the options with that word.\n"
    )


def module_of(name: str) -> Any:
    """The module of a command: its `run`, its `help_text`, and what it `TAKES`. Raises OptionError if there is none."""
    if name not in COMMANDS:
        if name.startswith("-"):
            raise OptionError(f"a command comes first: reuseport {'|'.join(COMMANDS)} [OPTIONS]")
        hint = f"; did you mean reuseport serve {name}?" if ":" in name else did_you_mean(name, COMMANDS)
        raise OptionError(f"unknown command {name!r}{hint or '; there are ' + ', '.join(COMMANDS)}")
    return importlib.import_module(f"reuseport.cli.{name}")


def _command(argv: list[str]) -> int:
    if not argv:
        sys.stderr.write(usage())
        return USAGE
    name, *rest = argv
    if name in ("-V", "-v", "--version"):
        print(f"reuseport {__version__}")
        return 0
    if name in ("-h", "--help"):
        return _explain(usage())
    if name == "help":
        return _help(rest)
    command = module_of(name)
    options_end = rest.index("--") if "--" in rest else len(rest)
    if {"-h", "--help"} & set(rest[:options_end]):
        return _explain(command.help_text())
    status: int = command.run(rest)
    return status


def _help(words: Sequence[str]) -> int:
    """`help`, `help COMMAND`, and `help COMMAND WORD`: only the options with this word in their name, or their help."""
    if not words:
        return _explain(usage())
    text = module_of(words[0]).help_text()
    if len(words) == 1:
        return _explain(text)
    word = words[1].lstrip("-").replace("_", "-")
    options = [block for block in text.split("\n\n") if block.startswith("  -")]
    entries = [block for block in options if word in " ".join(re.findall(r"(?<!\S)--?[\w-]+", block.splitlines()[0]))]
    entries = entries or [block for block in options if word.lower() in block.lower()]
    if len(words) > 2 or not entries or not word.strip():
        raise OptionError(f"help: {words[0]} has no option with {' '.join(words[1:])!r} in its name or help")
    return _explain("\n\n".join(entries).rstrip() + "\n")


def _explain(text: str) -> int:
    """Print a help; on a terminal with its titles, commands and flags in bold type."""
    if sys.stdout.isatty() and "NO_COLOR" not in os.environ:
        text = re.sub(r"(?m)^([A-Z][\w ]+:$|Usage:|  -[^\n]*|  [a-z]+(?=  ))", "\033[1m\\1\033[0m", text)
    sys.stdout.write(text)
    return 0


def _fail(message: str, status: int) -> int:
    sys.stdout.flush()
    sys.stderr.write(f"reuseport: {one_line(message)}\n")
    return status
