"""What can be wrong with the configuration and the machine. The checks judge facts, and touch nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence

from reuseport.cli.doctor.findings import Facts, Finding, Place, fine, generations, loaded, number, problem, warning
from reuseport.cli.words import size

# Record locks, or memory that processes share through a file, cannot be relied on there; unix sockets neither.
NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "afs", "glusterfs", "fuse.sshfs", "fuse.glusterfs"}
NETWORK |= {"lustre", "gpfs", "virtiofs", "fuse.s3fs", "ocfs2", "gfs2"}
SHELLS = {"sh", "bash", "dash", "ash", "zsh", "ksh"}
# Queue workers and schedulers by a word of their command, with what docs/companions.md says of their readiness.
QUEUES = {
    "celery": 'ready = "notify", and READY=1 from the signals worker_ready and beat_init',
    "rq": 'ready_line = "Listening on", and --config with a module that imports the tasks',
    "rqworker": 'ready_line = "Listening on", and --config with a module that imports the tasks',
    "huey_consumer": 'ready = "notify", and READY=1 from a function with @huey.on_startup()',
    "dramatiq": 'ready = "notify", and READY=1 from a middleware\'s after_worker_boot',
}
WRAPPERS = {"env", "uv", "poetry", "pipenv", "pdm", "hatch", "nice", "ionice", "setpriv", "tini", "dumb-init"}
VOLATILE = {"tmpfs", "ramfs"}
KERNEL = (5, 4)  # pidfd_open(2) and waitid(P_PIDFD)
FEW_DESCRIPTORS, MANY_DESCRIPTORS = 4096, 16384
RUN_DIR_BYTES = 16 << 20


def configuration(facts: Facts) -> Iterator[Finding]:
    for text in facts.refused:
        yield problem(text, "correct it: neither a start nor a release would get further")
    for text in facts.remarks:
        yield warning(text, "leave it out")
    if not facts.refused and not facts.remarks:
        yield fine("nothing in the configuration is refused")


def logs(facts: Facts) -> Iterator[Finding]:
    for name, why in facts.logs.items():
        begin = f"{facts.settings.where(name)}: {getattr(facts.settings, name)}"
        if why:
            yield problem(
                f"{begin}: {why}: a start is refused, and a rotation goes on in the old file",
                "name the file itself, or give its directory to root: chown root:root, chmod 755",
            )
        elif facts.settings.user:
            yield fine(f"{begin}: the master opens it as root, and passes it on to the processes of --user")

    for name, why in facts.log_daemons.items():
        begin = f"{facts.settings.where(name)}: {getattr(facts.settings, name)}"
        if why:
            yield problem(f"{begin}: {why}: the daemon gets nothing", "start the daemon, or log to a file or -")
        else:
            yield fine(f"{begin}: the daemon can be reached")


def addresses(facts: Facts) -> Iterator[Finding]:
    for address, why in facts.refused_addresses.items():
        yield problem(f"--bind {address}: {why}", "a start would fail: free the address, or name another one")


def programs(facts: Facts) -> Iterator[Finding]:
    for name, why in facts.unreached.items():
        yield problem(f"companion {name}: {why}", "correct its command: a release would fail, and change nothing")


def companions(facts: Facts) -> Iterator[Finding]:
    for one in facts.settings.companion:
        program, *words = one["command"]
        text = " ".join(words)
        if os.path.basename(program) in SHELLS and "-c" in words and not re.search(r"\b(exec|trap)\b", text):
            yield warning(
                f"companion {one['name']}: the shell gets its {one['stop_signal']} and ends; what it has started hears "
                "nothing, and is killed over its task",
                'exec before the last command: ["sh", "-c", "cd there && exec worker"]',
            )


def readiness(facts: Facts) -> Iterator[Finding]:
    """Of companions: a queue's worker that only a timer takes for ready."""
    for one in facts.settings.companion:
        if one["ready"] == "timer" and (queue := _queue(one["command"])):
            yield warning(
                f"companion {one['name']}: {queue} has no readiness, only a timer (ready_after): a worker whose tasks "
                "cannot be imported may end after the release has succeeded",
                f"{QUEUES[queue]} (docs/companions.md)",
            )


def _queue(command: Sequence[str]) -> str:
    """Which of QUEUES a command runs: by the program, by `python -m MODULE`, or by a word of a shell's script."""
    program, *words = command
    if os.path.basename(program) in SHELLS:
        candidates = re.findall(r"[^\s;&|()\"']+", " ".join(words))
    elif os.path.basename(program) in WRAPPERS:
        candidates = words[:4]
    else:
        candidates = [program, *([words[words.index("-m") + 1]] if "-m" in words[:-1] else [])]
    for word in candidates:
        name = os.path.basename(word).removesuffix(".py")
        for part in (name, name.partition(".")[0], name.rpartition(".")[2]):
            if part in QUEUES:
                return part
    return ""


def kernel(facts: Facts) -> Iterator[Finding]:
    if facts.kernel is None:
        return
    version = ".".join(map(str, facts.kernel))
    if facts.kernel < KERNEL:
        yield problem(f"Linux {version} has no pidfds, by which exits are learned", "run Linux 5.4 or later")
    else:
        yield fine(f"Linux {version}")


def accept_queues(facts: Facts) -> Iterator[Finding]:
    most, wanted = number(facts.sysctls.get("net.core.somaxconn")), facts.settings.backlog
    if most is None:
        return
    if most < wanted:
        yield warning(
            f"net.core.somaxconn is {most}: the kernel cuts each worker's queue of {wanted} (--backlog) to that",
            f"sysctl -w net.core.somaxconn={wanted}, and write it into /etc/sysctl.d",
        )
    else:
        yield fine(f"net.core.somaxconn ({most}) leaves --backlog {wanted} as it is")


def migration(facts: Facts) -> Iterator[Finding]:
    state = facts.sysctls.get("net.ipv4.tcp_migrate_req")
    if state is None:
        return
    yield fine(
        f"net.ipv4.tcp_migrate_req is {state}, which matters only where a second server binds beside this one, and "
        "one of them stops: with 1 the kernel moves what waits in its queues. The master keeps its queues over releases"
    )


def descriptors(facts: Facts) -> Iterator[Finding]:
    if "Max open files" not in facts.limits:
        return
    _, hard = facts.limits["Max open files"]
    remedy = "LimitNOFILE=524288 in the unit (or ulimit -Hn before the start)"
    if hard is not None and hard < FEW_DESCRIPTORS:
        yield problem(f"{hard} file descriptors at most: a worker has no more clients than that", remedy)
    elif hard is not None and hard < MANY_DESCRIPTORS:
        yield warning(f"{hard} file descriptors at most: a worker has no more clients than that", remedy)
    else:
        yield fine(f"{hard or 'any number of'} file descriptors (the master raises its soft limit itself)")


def tasks(facts: Facts) -> Iterator[Finding]:
    """Of two generations side by side; a worker has a few native threads beside those that serve requests."""
    settings = facts.settings
    needed = 2 * (settings.workers * (settings.threads + 4) + 1) + 1
    left = [(facts.tasks[1] - facts.tasks[0], "the cgroup's pids.max (TasksMax=)")] if facts.tasks else []
    soft = facts.limits.get("Max processes", (None, None))[0]
    if soft is not None and facts.uid != 0:
        left.append((soft, "the limit of processes (LimitNPROC=, ulimit -u)"))
    for name in ("kernel.pid_max", "kernel.threads-max"):
        if (most := number(facts.sysctls.get(name))) is not None:
            left.append((most, name))
    if not left:
        return
    fewest, what = min(left)
    if fewest < needed:
        yield problem(f"{what} leaves {fewest} processes and threads; two generations need {needed}", f"raise {what}")
    else:
        yield fine(f"there is room for the {needed} processes and threads of two generations ({fewest}: {what})")


def overcommit(facts: Facts) -> Iterator[Finding]:
    if facts.sysctls.get("vm.overcommit_memory") == "2":
        yield warning(
            "vm.overcommit_memory is 2: a fork counts its parent's memory again, and may be refused while most is free",
            "sysctl -w vm.overcommit_memory=0, or raise vm.overcommit_ratio",
        )
    elif "vm.overcommit_memory" in facts.sysctls:
        yield fine("memory that forks share is not counted twice (vm.overcommit_memory)")


def memory(facts: Facts) -> Iterator[Finding]:
    """As a release asks (master/room.py), of what serves; where nothing does, of what the import took."""
    free = facts.free_memory
    if free is None:
        return
    serving = next((g for g in generations(facts) if g.get("number") == (facts.status or {}).get("serving")), None)
    if serving is not None and serving.get("memory"):
        one = needed = int(serving["memory"])
        text = f"the generation that serves uses {size(one)}, and {size(free)} are free"
    elif facts.status is None and (probe := loaded(facts)) is not None:
        apart = facts.settings.preload == "never" or probe["left_behind"]
        one = int(probe["rss"]) * (facts.settings.workers + 1 if apart else 1)
        needed = 2 * one
        text = f"two generations of this application take {size(needed)} at least, and {size(free)} are free"
    else:
        yield fine(f"{size(free)} of memory are free")
        return
    if needed > free:
        refused = "is refused" if facts.settings.check_memory else "may end in the kernel's killing somebody"
        yield problem(
            f"{text}: a release {refused}", "more memory (or a higher MemoryMax=), fewer --workers, or a leaner import"
        )
    elif needed + one > free:
        yield warning(
            f"{text}: not enough for a second release while a long job keeps the first one's predecessor",
            "--max-generations 2, by which that is refused, or more memory",
        )
    else:
        yield fine(text)


def out_of_memory(facts: Facts) -> Iterator[Finding]:
    if facts.oom_group:
        yield problem(
            "memory.oom.group is 1: if one worker is out of memory the kernel kills the master and all workers",
            "OOMPolicy=continue in the unit (0 in the container's cgroup)",
        )


def workers(facts: Facts) -> Iterator[Finding]:
    count, cores = facts.settings.workers, facts.cores
    if count > 2 * cores:
        yield warning(
            f"{count} workers on {cores} usable cores: they take turns, and each costs memory",
            f"-w {cores} (the default), or --threads N for code that waits in C",
        )
    else:
        yield fine(f"{count} workers on {cores} usable cores (affinity and CPU quota counted)")


def overflows(facts: Facts) -> Iterator[Finding]:
    if facts.overflows:
        yield warning(
            f"{facts.overflows} connections have found a full queue since boot, at any server of this machine",
            "a larger --backlog and net.core.somaxconn, if the number grows (nstat -az TcpExtListenOverflows)",
        )
    elif facts.overflows == 0:
        yield fine("no connection has found a full queue since boot")


def run_directory(facts: Facts) -> Iterator[Finding]:
    place = facts.run_dir
    if place is None:
        return
    found = [*_where(place, facts), *_whose(place, facts)]
    yield from found or [fine(f"the run directory {place.path} is on {place.filesystem or 'a local file system'}")]


def _where(place: Place, facts: Facts) -> Iterator[Finding]:
    if place.filesystem in NETWORK:
        yield problem(
            f"the run directory {place.path} is on {place.filesystem}: locks and shared memory do not hold there",
            "--run-dir below /run",
        )
    if facts.session:
        yield warning(
            f"the run directory {place.path} goes with the last session of {facts.session}",
            f"loginctl enable-linger {facts.session}, a system's unit (reuseport init systemd), or --run-dir elsewhere",
        )
    if place.free is not None and place.free < RUN_DIR_BYTES:
        yield problem(
            f"{size(place.free)} are left where the run directory {place.path} is", "make room, or --run-dir elsewhere"
        )


def _whose(place: Place, facts: Facts) -> Iterator[Finding]:
    if place.exists and place.owner == facts.uid and place.mode & 0o022:
        yield problem(
            f"the run directory {place.path} has mode {place.mode:04o}: others could put their own files there",
            f"chmod 0700 {place.path} (the next start does it as well)",
        )
    if place.exchange:
        yield problem(f"serve refuses to start: {place.exchange}", "--run-dir, or as the message says")


def state_directory(facts: Facts) -> Iterator[Finding]:
    place = facts.state_dir
    if place is None:
        return
    if place.filesystem in VOLATILE or place.path.startswith("/run/"):
        yield warning(
            f"the history of releases is kept in {place.path}, and is gone after a reboot: `rollback N` with it",
            "--state-dir /var/lib/NAME (StateDirectory= in the unit)",
        )
    else:
        yield fine(f"the history of releases is kept in {place.path}")
