"""Finding out what the doctor judges: the machine, the unit, the proxy, the running master, the application.

Nothing is changed, and whatever cannot be read is left out.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from reuseport import startup
from reuseport.cli.doctor import nginx, reach
from reuseport.cli.doctor.findings import Facts, Place
from reuseport.ipc.inherited import ZYGOTE_VARIABLE
from reuseport.ipc.logfile import check_file
from reuseport.ipc.stacks import STACK_SIGNAL
from reuseport.ipc.walk import Trust, Untrusted, steps
from reuseport.master import lending
from reuseport.master.recipe import FROM_FILES, deferred_variables, exec_variables, release_of
from reuseport.master.room import free_memory
from reuseport.options import OptionError, Settings, check, logplace, parse_address, usable_cores
from reuseport.options.checks import find_user
from reuseport.version import __version__

SYSCTLS = (
    "net.core.somaxconn",
    "net.ipv4.tcp_migrate_req",
    "vm.overcommit_memory",
    "kernel.pid_max",
    "kernel.threads-max",
)
UNIT = (
    *("Id", "Type", "NotifyAccess", "KillMode", "OOMPolicy", "TimeoutStopUSec", "Restart", "ExecStart", "ExecReload"),
    *("RuntimeDirectory", "RuntimeDirectoryPreserve", "PrivateTmp"),
)
SYSTEMCTL = 10  # seconds
NGINX = 10  # seconds
LISTENING = "0A"  # a socket's state in /proc/net/tcp
LAST_WORDS = 2  # seconds for an import that hangs to say where
TRACEBACK = 4000  # characters of what an import printed


def gather(settings: Settings, refused: list[str], told: Mapping[str, Any] | str) -> Facts:
    """`refused`: what is wrong with the configuration; `told`: the running master's status, or why it told none.

    It may take --boot-timeout.
    """
    status = told if isinstance(told, Mapping) else {}
    master = int(status.get("master", {}).get("pid") or 0)
    process = master or os.getpid()
    run_dir = str(status.get("master", {}).get("run_dir") or settings.run_dir)
    proxies = nginx.locations(nginx.load(), [_as_nginx(address) for address in settings.bind])
    return Facts(
        settings,
        refused=[*refused, *([] if refused else check(settings, needs_app=False))],
        remarks=settings.remarks,
        uid=os.geteuid(),
        kernel=_kernel(platform.release()),
        sysctls={name: text for name in SYSCTLS if (text := _read("/proc/sys/" + name.replace(".", "/")).strip())},
        limits=_limits(_read(f"/proc/{process}/limits")),
        tasks=_tasks(process),
        cores=usable_cores(),
        free_memory=free_memory(pid=process),
        oom_group=any(_read(os.path.join(path, "memory.oom.group")).strip() == "1" for path in _cgroups(process)[-1:]),
        run_dir=replace(_place(run_dir), exchange=_exchange(run_dir)),
        state_dir=_place(settings.state_dir),
        logs=_logs(settings) if os.geteuid() == 0 and not refused else {},
        log_daemons={} if refused else reach.log_daemons(settings),
        unreached={} if refused else reach.companions(settings),
        refused_addresses={} if refused or told or settings.beside else reach.refused_addresses(settings),
        session=_session(run_dir),
        unit=_unit(process, is_ours=bool(master)) if master or "INVOCATION_ID" in os.environ else None,
        proxies=proxies,
        nginx_version=_nginx_version() if proxies else None,
        application=_probe(settings) if settings.app and not refused else None,
        status=status or None,
        silent=told if isinstance(told, str) else "",
        overflows=_overflows(_read(f"/proc/{process}/net/netstat")),
        queues=_queues(process, settings),
        version=__version__,
    )


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _logs(settings: Settings) -> dict[str, str]:
    """What a master of root would say of the files of --log-file and --access-log."""
    found = {}
    with contextlib.suppress(OptionError):  # of --user, which is told elsewhere
        ids = find_user(settings)
        for name in ("log_file", "access_log"):
            path = getattr(settings, name)
            if path and logplace.parse(path).kind == logplace.FILE:
                try:
                    check_file(path, ids[:1] if ids else ())
                except OSError as error:
                    found[name] = error.strerror or str(error)
                else:
                    found[name] = ""
    return found


def _kernel(release: str) -> tuple[int, int] | None:
    found = re.match(r"(\d+)\.(\d+)", release)
    return (int(found[1]), int(found[2])) if found else None


def _limits(text: str) -> dict[str, tuple[int | None, int | None]]:
    """proc_pid_limits(5): columns that are set apart by two spaces or more."""
    found = {}
    for line in text.splitlines()[1:]:
        name, *values = re.split(r"\s{2,}", line.strip())
        if len(values) >= 2:
            soft, hard = (int(value) if value.isdecimal() else None for value in values[:2])
            found[name] = (soft, hard)
    return found


def _cgroups(pid: int) -> list[str]:
    """The directories of a process's cgroup and those above it, the outermost first; cgroups(7), version 2."""
    path = next((one[3:] for one in _read(f"/proc/{pid}/cgroup").splitlines() if one.startswith("0::")), "")
    parts = [part for part in path.split("/") if part]
    return [os.path.join("/sys/fs/cgroup", *parts[:depth]) for depth in range(len(parts) + 1)]


def _tasks(pid: int) -> tuple[int, int] | None:
    found = []
    for path in _cgroups(pid):
        now, most = _read(os.path.join(path, "pids.current")).strip(), _read(os.path.join(path, "pids.max")).strip()
        if now.isdecimal() and most.isdecimal():
            found.append((int(now), int(most)))
    return min(found, key=lambda one: one[1] - one[0], default=None)


def _place(path: str) -> Place:
    there = path
    while not os.path.exists(there) and there != "/":
        there = os.path.dirname(there)
    info = os.stat(there)
    free = None
    with contextlib.suppress(OSError):
        space = os.statvfs(there)
        free = space.f_bavail * space.f_frsize
    return Place(
        path,
        _filesystem(os.path.realpath(there), _read("/proc/self/mountinfo")),
        there == path,
        info.st_mode & 0o7777,
        info.st_uid,
        free=free,
    )


def _exchange(path: str) -> str:
    """Why `serve` would refuse this run directory, for its path."""
    try:
        with contextlib.ExitStack() as stack:
            trust = Trust(os.geteuid())
            for step in steps(path, stack):
                trust.check(step)
    except Untrusted as error:
        return str(error.strerror)
    except OSError:
        return ""  # a part of it is missing, and will be made
    return ""


def _filesystem(path: str, mountinfo: str) -> str:
    """The type of the file system that a path lies on: of the last mount with the longest prefix of it."""
    best, kind = "", ""
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields, types = before.split(), after.split()
        if len(fields) < 5 or not types:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), fields[4])
        if len(point) >= len(best) and (path == point or path.startswith(point.rstrip("/") + "/")):
            best, kind = point, types[0]
    return kind


def _session(path: str) -> str:
    """The user whose last session takes this directory along when it ends (pam_systemd(8)); "" for nobody."""
    found = re.match(r"/run/user/(\d+)(/|$)", path)
    try:
        user = pwd.getpwuid(int(found[1])).pw_name if found else ""
    except KeyError:
        return ""
    return "" if os.path.exists(f"/var/lib/systemd/linger/{user}") else user


def _unit(pid: int, is_ours: bool) -> dict[str, str] | None:
    """What systemd says of the service that a process belongs to; None without one. It may be that of a terminal,
    if it `is_ours` is not known."""
    names = [part for part in _cgroups(pid)[-1].split("/") if part.endswith(".service")]
    names = [name for name in names if not name.startswith("user@")]
    if not names:
        return None
    of_user = ["--user"] if "/user.slice/" in _cgroups(pid)[-1] else []
    command = ["systemctl", *of_user, "show", "--property", ",".join(UNIT), "--", names[-1]]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SYSTEMCTL, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    return found if found.get("Type") and (is_ours or "reuseport" in found.get("ExecStart", "")) else None


def _nginx_version() -> tuple[int, int] | None:
    """Of the nginx that this machine would start; None if it does not say."""
    path = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/local/nginx/sbin")
    if path is None:
        return None
    try:
        said = subprocess.run([path, "-v"], capture_output=True, text=True, errors="replace", timeout=NGINX)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"nginx/(\d+)\.(\d+)", said.stderr)
    return (int(found[1]), int(found[2])) if found else None


def _as_nginx(address: str) -> str:
    one = parse_address(address)
    return f"unix:{one.path}" if one.path else f"{f'[{one.host}]' if ':' in one.host else one.host}:{one.port}"


def _overflows(netstat: str) -> int | None:
    """How often a full queue has refused a connection: two lines for each protocol, names and then figures."""
    lines = [line.split() for line in netstat.splitlines() if line.startswith("TcpExt:")]
    if len(lines) != 2:
        return None
    figures = dict(zip(*lines, strict=False))
    return int(figures["ListenOverflows"]) if "ListenOverflows" in figures else None


def _queues(pid: int, settings: Settings) -> list[tuple[str, int]]:
    """What waits in each listening socket of our ports: of those, rx_queue is the length of the accept queue."""
    ports = {parse_address(address).port for address in settings.bind} - {0}
    found = []
    for name in ("tcp", "tcp6"):
        for line in _read(f"/proc/{pid}/net/{name}").splitlines()[1:]:
            fields = line.split()
            port = int(fields[1].rpartition(":")[2], 16)
            if fields[3] == LISTENING and port in ports:
                found.append((f"port {port}", int(fields[4].partition(":")[2], 16)))
    return found


def _probe(settings: Settings) -> dict[str, Any]:
    """Have the application loaded in a process of its own (reuseport/probe.py), as the next release would load it."""
    try:
        recipe = release_of(settings).recipe
    except OptionError as error:
        return {"error": str(error), "output": ""}
    environment = {
        **os.environ,
        **exec_variables(recipe),
        "REUSEPORT_RUN_DIR": settings.run_dir,
        "REUSEPORT_GENERATION": "0",
        ZYGOTE_VARIABLE: json.dumps({"threads": settings.threads, **deferred_variables(recipe)}),
        **lending.environment(),
    }
    with tempfile.TemporaryFile("w+") as report, tempfile.TemporaryFile("w+", errors="replace") as output:
        order = {"settings": settings.to_json(), "directory": recipe["directory"], "ids": recipe["ids"]}
        json.dump({**order, "variables": recipe["environment"], FROM_FILES: recipe[FROM_FILES]}, report)
        report.flush()
        report.seek(0)
        command = lending.command(recipe, "reuseport.probe", str(report.fileno()))
        with subprocess.Popen(
            command,
            env=startup.environment(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[report.fileno()],
            start_new_session=True,
        ) as process:
            try:
                process.wait(settings.boot_timeout)
                error = ""
            except subprocess.TimeoutExpired:
                error = f"it was not loaded within {settings.boot_timeout:g} s (--boot-timeout)"
                process.send_signal(STACK_SIGNAL)  # it says where it is, and ends
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(LAST_WORDS)
            finally:
                with contextlib.suppress(ProcessLookupError):  # with whatever it has started
                    os.killpg(process.pid, signal.SIGKILL)
        report.seek(0)
        output.seek(0)
        printed = output.read()[-TRACEBACK:].strip()
        try:
            found: dict[str, Any] = json.load(report)
        except ValueError:
            found = {}
    if not error and "modules" not in found:
        error = found.get("error") or lending.refusal(printed)
        error = error or f"its process ended with status {process.returncode}"
    return {"error": error, "output": printed} if error else {**found, "output": printed}
