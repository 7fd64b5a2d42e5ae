"""A systemd unit."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace

from reuseport.cli.init.described import MARGIN, Described, one_line_only, rewritten
from reuseport.options import OPTIONS, load, logplace
from reuseport.options.option import Option
from reuseport.options.settings import DEFAULT

LOGS = "/var/log"
CONFIG = "REUSEPORT_CONFIG"
SLOTS = 512  # descriptors that may be kept over a restart


def text(app: Described) -> str:
    settings = app.settings
    place = f"reuseport/{app.name}"
    app, cwd, why = _moved(app)
    lines = [
        "[Unit]",
        f"Description={_plain(app.name)} (reuseport)",
        "After=network.target",
        "",
        "[Service]",
        "# Started when the first generation serves, and not before; `systemctl status` shows what serves and what a",
        "# drain waits for.",
        "Type=notify",
        "NotifyAccess=main",
        f"ExecStart={_command([*app.program, 'serve', *app.words])}",
        "# A release whose failure `systemctl reload` reports. (Type=notify-reload works, too, but cannot say that.)",
        f"ExecReload={_command([*app.program, 'release', '--wait', 'ready', '--run-dir', app.run_dir])}",
        *why,
        f"WorkingDirectory={_plain(cwd)}",
    ]
    if os.path.realpath(cwd) != cwd or cwd == settings.chdir != settings.origin.cwd:
        lines += [
            "# If this is a link: the link itself, and not where it leads now. Each release follows it afresh, and an",
            "# upgrade finds it when the directory of an earlier release has been removed.",
            f"Environment={_quoted(f'PWD={cwd}')}",
        ]
    lines += [f"Environment={_quoted(f'{name}={value}')}" for name, value in app.variables()]
    lines += _account(app)
    if not app.as_root and any(0 < address.port < 1024 for address in app.addresses):
        lines += ["# For a port below 1024.", "AmbientCapabilities=CAP_NET_BIND_SERVICE"]
    lines += [
        "",
        "# A stop waits for requests and jobs, however long they take; `systemctl kill` with a second TERM, or",
        "# `reuseport stop --now`, ends it. Give a time here if a reboot must not wait for a job.",
        "# So `systemctl restart` serves nobody until the longest job has ended, and needrestart (Debian, Ubuntu)",
        "# restarts units by itself when packages change. `systemctl reload` releases, `reuseport upgrade` replaces",
        "# the master, and neither interrupts anything. In /etc/needrestart/conf.d/reuseport.conf:",
        f"#     {needrestart(app.name)}",
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
    if not app.says("run_dir"):
        lines += [
            f"# `reuseport status --run-dir {app.run_dir}`. It must outlive a restart: by it the next master finds the",
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
    if not app.says("state_dir"):
        lines += ["# The history of releases, for `reuseport rollback`.", f"StateDirectory={place}"]
    lines += _logs(app)
    lines += ["# Every client is a descriptor.", "LimitNOFILE=524288"]
    if any(not address.path for address in app.addresses):
        lines += [
            "# systemd keeps the listening sockets over a restart. Clients that connect meanwhile wait, and are served",
            "# after it.",
            f"FileDescriptorStoreMax={SLOTS}",
        ]
    return "\n".join([*lines, "", "[Install]", "WantedBy=multi-user.target", ""])


def needrestart(name: str) -> str:
    """The line of needrestart's configuration, which is Perl, that keeps it from restarting the unit."""
    return f"$nrconf{{override_rc}}{{qr(^{re.escape(name)}\\.service$)}} = 0;"


def _moved(app: Described) -> tuple[Described, str, list[str]]:
    """The application as it is described from its --chdir, that directory, and comments on it.

    Nobody knows later in which directory this file was printed. So relative paths become absolute where that changes
    nothing that the options mean.
    """
    settings = app.settings
    here = settings.origin.cwd
    if not app.says("chdir"):
        comment = "# Where this file was printed: the application is imported from there. --chdir names another."
        return app, here, [comment]

    def absolute(option: Option, text: str) -> str:
        if option.kind.anchor is None or not text or option.repeatable:
            return text
        return str(option.kind.anchor(option.kind.parse(text), here))

    words = rewritten(app.words, absolute)
    variables = dict(settings.origin.environ)
    for name, option in ((option.variable, option) for option in OPTIONS if option.variable in variables):
        variables[name] = absolute(option, variables[name])
    if settings.config and settings.sources["config"] == DEFAULT and CONFIG not in variables:
        words = (*words, "-c", settings.config)
    moved = load(words, variables, settings.chdir)
    if all(getattr(moved, option.name) == getattr(settings, option.name) for option in OPTIONS):
        return replace(app, settings=moved, words=words), settings.chdir, []
    return app, here, ["# Where this file was printed: relative paths in the configuration begin there."]


def _logs(app: Described) -> list[str]:
    """The directories of log files that systemd makes for the unit."""
    said = [path for path in (app.settings.log_file, app.settings.access_log) if path]
    files = [os.path.normpath(path) for path in said if logplace.parse(path).kind == logplace.FILE]
    within = [os.path.dirname(path).removeprefix(f"{LOGS}/") for path in files if path.startswith(f"{LOGS}/")]
    names = list(dict.fromkeys(name for name in within if name != LOGS))
    lines = []
    if LOGS in within and not app.as_root:
        lines.append(f"# Only root can make files in {LOGS}. Put the log into a directory there, which systemd makes.")
    if names:
        lines.append("# For --log-file and --access-log.")
    else:
        names = [f"reuseport/{app.name}"]
        lines.append(f"# {LOGS}/{names[0]}, for --log-file and --access-log. Without them the log goes to the journal.")
    return [*lines, f"LogsDirectory={' '.join(map(_quoted, names))}"]


def _account(app: Described) -> list[str]:
    if app.settings.user:
        return ["# The master stays root, for its addresses and certificates; the application runs as --user."]
    if app.as_root:
        return ["# Without --user or a User= here the application runs as root.", "#User="]
    return [f"User={_plain(app.user)}"]


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
    return one_line_only(text, "a unit").replace("%", "%%")
