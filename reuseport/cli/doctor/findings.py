"""What the doctor says, and the facts that it judges.

Gathering (facts.py) touches the machine and judges nothing; the checks judge and touch nothing. A fact that could not
be had is None, or missing, and the checks pass over it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from reuseport.options import Settings

PROBLEM, WARNING, FINE = "problem", "warning", "fine"


@dataclass(frozen=True)
class Finding:
    """`remedy`: what to do about it, in one line; "" if it is fine. `detail`: lines that belong to it (a traceback)."""

    grade: str
    text: str
    remedy: str = ""
    detail: str = ""


def problem(text: str, remedy: str, detail: str = "") -> Finding:
    return Finding(PROBLEM, text, remedy, detail)


def warning(text: str, remedy: str, detail: str = "") -> Finding:
    return Finding(WARNING, text, remedy, detail)


def fine(text: str) -> Finding:
    return Finding(FINE, text)


@dataclass(frozen=True)
class Place:
    """A directory: what is mounted there, and who may do what. `exists` is false for one that is yet to be made."""

    path: str
    filesystem: str = ""
    exists: bool = True
    mode: int = 0o700
    owner: int = 0
    exchange: str = ""  # why another user could put another directory in its place
    free: int | None = None  # bytes


@dataclass(frozen=True)
class Facts:
    """All that was found out. `settings` are the defaults where the configuration could not be read.

    `sysctls`: by name, as text. `limits`: (soft, hard) by name, None for unlimited. `unit`: what systemd says of the
    unit, by property. `proxies`: the locations of nginx that lead here; `nginx_version`: that of the nginx on this
    machine. `application`: what the probe found. `status`: the running master's; `silent`: why it told none. `queues`:
    (address, connections that wait). `logs`: why root would refuse to open the file of an option, "" where it would
    not. `log_daemons`: likewise of a log daemon. `unreached`: why the program of a companion cannot be executed.
    `refused_addresses`: why one cannot be bound. Sizes are in bytes.
    """

    settings: Settings
    refused: Sequence[str] = ()  # what is wrong with the configuration
    remarks: Sequence[str] = ()
    uid: int = 0
    kernel: tuple[int, int] | None = None
    sysctls: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[str, tuple[int | None, int | None]] = field(default_factory=dict)
    tasks: tuple[int, int] | None = None  # of the tightest cgroup: how many there are, and may be
    cores: int = 1
    free_memory: int | None = None
    oom_group: bool = False
    run_dir: Place | None = None
    state_dir: Place | None = None
    logs: Mapping[str, str] = field(default_factory=dict)
    log_daemons: Mapping[str, str] = field(default_factory=dict)
    unreached: Mapping[str, str] = field(default_factory=dict)
    refused_addresses: Mapping[str, str] = field(default_factory=dict)
    session: str = ""  # the user whose last session takes the run directory along
    unit: Mapping[str, str] | None = None
    proxies: Sequence[Mapping[str, Any]] = ()
    nginx_version: tuple[int, int] | None = None
    application: Mapping[str, Any] | None = None
    status: Mapping[str, Any] | None = None
    silent: str = ""
    overflows: int | None = None
    queues: Sequence[tuple[str, int]] = ()
    version: str = ""


def number(text: str | None) -> int | None:
    """A sysctl's figure; None if it is none."""
    return int(text) if text and re.fullmatch(r"\d+", text) else None


def generations(facts: Facts) -> list[Mapping[str, Any]]:
    """Those of the running master."""
    return (facts.status or {}).get("generations") or []


def loaded(facts: Facts) -> Mapping[str, Any] | None:
    """What the probe found, if the application could be loaded."""
    probe = facts.application
    return None if probe is None or probe.get("error") else probe
