"""A systemd unit."""

from __future__ import annotations

import os
from collections.abc import Sequence

from reuseport.cli.init.described import MARGIN, Described, one_line_only

SLOTS = 512  # descriptors that may be kept over a restart


def text(app: Described) -> str:
    settings = app.settings
    place = f"reuseport/{app.name}"
    cwd = settings.origin.cwd
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
        f"WorkingDirectory={_plain(cwd)}",
    ]
    if os.path.realpath(cwd) != cwd:
        lines += [
            "# The link itself, and not where it leads now: each release follows it afresh.",
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
    lines += ["# Every client is a descriptor.", "LimitNOFILE=524288"]
    if any(not address.path for address in app.addresses):
        lines += [
            "# systemd keeps the listening sockets over a restart. Clients that connect meanwhile wait, and are served",
            "# after it.",
            f"FileDescriptorStoreMax={SLOTS}",
        ]
    return "\n".join([*lines, "", "[Install]", "WantedBy=multi-user.target", ""])


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
