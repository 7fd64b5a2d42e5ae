"""What passes from a zygote to the worker that it forks."""

from __future__ import annotations

import _socket
import ssl
from dataclasses import dataclass
from typing import Any

from reuseport.ipc.lifeline import Family
from reuseport.ipc.logfile import Passed
from reuseport.ipc.rundir import RunDir
from reuseport.ipc.shared import Held
from reuseport.options import Settings
from reuseport.worker.listeners import Listener


@dataclass
class Birth:
    """What a worker is born with."""

    generation: int
    number: int
    row: int
    booting: bool
    run_dir: RunDir
    recipe: dict[str, Any]
    settings: Settings
    name: str
    boot_output: int  # fd of the file that boot output goes to
    boot_errors: int  # the same file by its other name, see `ipc/streams.py`
    queue: tuple[int, int]  # the ends of the generation's hand-over queue, to receive from and to send to
    listeners: dict[tuple[str, int], Listener]
    logs: Passed  # the log files that the master has opened
    shared: Held  # what the worker maps
    application: Any  # None: the worker loads it itself
    family: Family  # the processes that share the zygote's import
    copied: bool = False  # the application was imported by a zygote whose workers have served
    tls: ssl.SSLContext | None = None
    line: _socket.socket | None = None  # to whoever asked for a job: then this is no worker, but the job's process
