"""`reuseport init systemd`: print a unit that runs this application, each line with its reason.

What is said behind it is said as to `serve`, and goes into the unit as it is.
"""

from __future__ import annotations

import os
import pwd
import shutil
import sys
from collections.abc import Iterable, Sequence

from reuseport.options import OPTIONS, OptionError, Settings, load, parse_address, working_directory
from reuseport.options.manual import manual
from reuseport.options.settings import DEFAULT
from reuseport.options.table import BY_NAME

TARGETS = ("systemd",)
MARGIN = 30  # seconds that the unit waits longer than the server itself
SLOTS = 512  # descriptors that may be kept over a restart

ABOUT = """\
Prints a systemd unit for the application, to be put into /etc/systemd/system. All options are those of `reuseport \
serve`, and become the unit's command line; a configuration file is read by the unit's master itself, at each start.

    reuseport init systemd shop:app -b 0.0.0.0:8000 --chdir /srv/shop/current > /etc/systemd/system/shop.service"""


def help_text() -> str:
    return manual(OPTIONS, "reuseport init systemd [OPTIONS] MODULE:APP", ABOUT, shutil.get_terminal_size().columns)


def run(argv: Sequence[str]) -> int:
    """Print the unit. Raises OptionError."""
    if not argv or argv[0] not in TARGETS:
        raise OptionError(f"init: what for? there is {', '.join(TARGETS)}, as in: reuseport init systemd MODULE:APP")
    words = list(argv[1:])
    settings = load(words, os.environ, working_directory(os.environ))
    for remark in settings.remarks:
        print(f"reuseport: {remark}", file=sys.stderr)
    if settings.app is None:
        raise OptionError("init: which application? name it, as in: reuseport init systemd MODULE:APP")
    user = pwd.getpwuid(os.geteuid()).pw_name
    sys.stdout.write(unit(settings, words, program(sys.executable), user))
    return 0


def program(python: str) -> list[str]:
    """The words that run this very installation."""
    script = os.path.join(os.path.dirname(python), "reuseport")
    # Without the script, -P keeps the working directory out of sys.path, as the script does.
    return [script] if os.access(script, os.X_OK) else [python, "-P", "-m", "reuseport"]


def unit(settings: Settings, words: Sequence[str], program: Sequence[str], user: str) -> str:
    """The unit's text. `words` are the options as typed; `user` is whom it runs as where no option says so."""
    place = f"reuseport/{settings.name}"
    own_run_dir = settings.sources["run_dir"] != DEFAULT
    run_dir = settings.run_dir if own_run_dir else f"/run/{place}"
    cwd = settings.origin.cwd
    as_root = bool(settings.user) or user == "root"
    addresses = [parse_address(address) for address in settings.bind]
    lines = [
        "[Unit]",
        f"Description={_plain(settings.name)} (reuseport)",
        "After=network.target",
        "",
        "[Service]",
        "# Started when the first generation serves, and not before; `systemctl status` shows what serves and what a",
        "# drain waits for.",
        "Type=notify",
        "NotifyAccess=main",
        f"ExecStart={_command([*program, 'serve', *words])}",
        "# A release whose failure `systemctl reload` reports. (Type=notify-reload works, too, but cannot say that.)",
        f"ExecReload={_command([*program, 'release', '--wait', 'ready', '--run-dir', run_dir])}",
        f"WorkingDirectory={_plain(cwd)}",
    ]
    if os.path.realpath(cwd) != cwd:
        lines += [
            "# The link itself, and not where it leads now: each release follows it afresh.",
            f"Environment={_quoted(f'PWD={cwd}')}",
        ]
    lines += [f"Environment={_quoted(f'{name}={value}')}" for name, value in _variables(settings)]
    lines += _account(settings, as_root, user)
    if not as_root and any(0 < address.port < 1024 for address in addresses):
        lines += ["# For a port below 1024.", "AmbientCapabilities=CAP_NET_BIND_SERVICE"]
    lines += [
        "",
        "# A stop waits for requests and jobs, however long they take; `systemctl kill` with a second TERM, or",
        "# `reuseport stop --now`, ends it. Give a time here if a reboot must not wait for a job.",
        "TimeoutStopSec=infinity",
        f"TimeoutStartSec={int(settings.boot_timeout + settings.probation + MARGIN)}",
        "# Only the master is signalled: it ends the others when their work is done. If it dies itself its workers",
        "# serve on, and the next master adopts them: any other KillMode would kill them and their jobs.",
        "KillMode=process",
        "Restart=on-failure",
        "RestartSec=1",
        "# A master that hangs is replaced; its workers serve on meanwhile.",
        "WatchdogSec=60",
        "# One worker that the kernel kills for its memory is replaced; the unit must not stop for it.",
        "OOMPolicy=continue",
        "",
    ]
    if not own_run_dir:
        lines += [
            f"# `reuseport status --run-dir {run_dir}`. It must outlive a restart: by it the next master finds the",
            "# workers that it adopts.",
            f"RuntimeDirectory={place}",
            # systemd sets it again for each ExecReload.
            f"RuntimeDirectoryMode={'0711' if settings.user else '0700'}",
        ]
        if settings.takeover == "no":
            lines += ["RuntimeDirectoryPreserve=restart"]
        else:
            lines += [
                "# It is also that of the unit that is taken over from, or takes over, and must not end with either.",
                "RuntimeDirectoryPreserve=yes",
            ]
    if settings.sources["state_dir"] == DEFAULT:
        lines += ["# The history of releases, for `reuseport rollback`.", f"StateDirectory={place}"]
    lines += ["# Every client is a descriptor.", "LimitNOFILE=524288"]
    if any(not address.path for address in addresses):
        lines += [
            "# The listening sockets are kept over a restart (systemd 254 and later): who waits in them is served",
            "# after it.",
            f"FileDescriptorStoreMax={SLOTS}",
        ]
    return "\n".join([*lines, "", "[Install]", "WantedBy=multi-user.target", ""])


def _account(settings: Settings, as_root: bool, user: str) -> list[str]:
    if settings.user:
        return ["# The master stays root, for its addresses and certificates; the application runs as --user."]
    if as_root:
        return ["# Without --user or a User= here the application runs as root.", "#User="]
    return [f"User={_plain(user)}"]


def _variables(settings: Settings) -> Iterable[tuple[str, str]]:
    """What the environment says about options now must be said in the unit's, too."""
    for name, source in settings.sources.items():
        variable = settings.places[name]
        if source == "environment" and name in BY_NAME and variable in settings.origin.environ:
            yield variable, settings.origin.environ[variable]


def _command(words: Sequence[str]) -> str:
    # A dollar sign would name a variable (systemd.service(5), "Command lines").
    return " ".join(_quoted(word).replace("$", "$$") for word in words)


def _quoted(word: str) -> str:
    """A word as systemd.syntax(7) reads it, percent signs being specifiers."""
    text = _plain(word)
    if text and not set(text) & set(" \t\"'\\;"):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _plain(text: str) -> str:
    if any(letter in text for letter in "\r\n"):
        raise OptionError(f"init: {text!r} has a line break, which a unit cannot hold")
    return text.replace("%", "%%")
