"""A real server for a test: its directory, its processes, its clients.

It sees what an operator sees: the command line, signals, the control socket. Nothing here sleeps and hopes: a test
waits for a state, and every wait has a deadline. Whatever happens in a test, the processes end with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import io
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reuseport.cli import main as cli

APPS = Path(__file__).parent.parent / "apps"
CHECKOUT = APPS.parent.parent
PATIENCE = 60.0  # seconds until a state that should come is given up
POLL = 0.02

CODE = """\
import basic
VERSION = {version!r}
application = basic.make(VERSION)
"""


class NotReached(AssertionError):
    """A state that should have come did not."""


def listens(path: Path | str) -> bool:
    """Whether a server accepts connections at a unix socket: its file is there before it does (bind, then listen)."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


def wait_for(predicate: Callable[[], Any], what: str, within: float = PATIENCE) -> Any:
    """The predicate's value as soon as it is true."""
    deadline = time.monotonic() + within
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            raise NotReached(f"not within {within:g} s: {what}")
        time.sleep(POLL)


class Status(dict):
    """What `reuseport status --json` says, with the questions that tests ask."""

    @property
    def serving(self) -> int | None:
        return self["serving"]

    @property
    def numbers(self) -> list[int]:
        """Of the generations that have workers, or will: not of one that only stands by."""
        return [g["number"] for g in self["generations"] if g["state"] != "standby"]

    @property
    def draining(self) -> list[int]:
        return [g["number"] for g in self["generations"] if g["state"] == "draining"]

    @property
    def booting(self) -> dict[str, Any] | None:
        return next((g for g in self["generations"] if g["state"] == "booting"), None)

    def generation(self, number: int) -> dict[str, Any]:
        return next(g for g in self["generations"] if g["number"] == number)

    @property
    def current(self) -> dict[str, Any]:
        """The serving generation."""
        assert self.serving is not None, "nothing serves"
        return self.generation(self.serving)

    def workers(self, *states: str) -> list[dict[str, Any]]:
        """The serving generation's workers, those in these states if any are named."""
        if self.serving is None:
            return []
        return [w for w in self.current["workers"] if not states or w["state"] in states]

    def pids(self) -> set[int]:
        return {w["pid"] for w in self.workers("serving")}

    @property
    def zygote(self) -> int | None:
        """The pid of the serving generation's zygote."""
        return self.current["zygote"]["pid"] if self.current["zygote"] else None

    def is_settled(self) -> bool:
        """At full strength, and nothing under way."""
        if self.serving is None or len(self.numbers) != 1:
            return False
        g = self.current
        states = [w["state"] for w in g["workers"]]
        return states == ["serving"] * g["wanted"] and bool(g["zygote"] and g["zygote"]["loaded"])

    def in_short(self) -> str:
        generations = [
            f"{g['number']} {g['stage']} ({', '.join(w['id'] + ' ' + w['state'] for w in g['workers'])})"
            for g in self["generations"]
        ]
        return f"serving {self.serving}; " + "; ".join(generations)


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    exit: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.out)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        assert self.status == 200, (self.status, self.body)
        return json.loads(self.body)

    @property
    def version(self) -> str:
        return self.json["version"]

    @property
    def pid(self) -> int:
        return self.json["pid"]


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Background:
    """A call in a thread of its own; `result` gives its value, or raises what it raised."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._value: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._value = self._call()
        except Exception as error:  # noqa: BLE001
            self._error = error

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def result(self, within: float = PATIENCE) -> Any:
        self._thread.join(within)
        if self._thread.is_alive():
            raise NotReached(f"no result within {within:g} s")
        if self._error is not None:
            raise self._error
        return self._value


class Gate:
    """See tests/apps/basic.py: what must wait until the test says so."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory
        self.name = name

    def open(self) -> None:
        (self.directory / f"{self.name}.open").touch()

    def close(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            (self.directory / f"{self.name}.open").unlink()

    def entered(self) -> list[int]:
        """The pids of those who have come to it."""
        return [int(path.name.split(".")[-3]) for path in self.directory.glob(f"{self.name}.*.entered")]

    def await_entered(self, count: int = 1) -> list[int]:
        return wait_for(
            lambda: pids if len(pids := self.entered()) >= count else None, f"{count} at the gate {self.name}"
        )


class Load:
    """Clients that ask all the time, some with a connection for each request, some with one kept open."""

    def __init__(self, server: Server, one_shot: int = 1, keep_alive: int = 1, pause: float = 0.005) -> None:
        self._server = server
        self._pause = pause
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self.answers = 0
        self.versions: list[str] = []  # each time another version than before was seen, by any client
        self.pids: set[int] = set()
        self.failures: list[str] = []
        self.ended = [0] * (one_shot + keep_alive)  # requests of each client, answered or failed
        self._threads = [
            threading.Thread(target=self._client, args=(number, number >= one_shot), daemon=True)
            for number in range(one_shot + keep_alive)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        self.more(10)
        return self

    def __exit__(self, *error: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(PATIENCE)

    def more(self, count: int) -> None:
        """Wait until so many more requests have been answered (or failed)."""
        start = self.answers
        wait_for(lambda: self.failures or self.answers >= start + count, f"{count} more answers")

    def _client(self, number: int, keep: bool) -> None:
        connection = None
        while not self._ending.wait(self._pause):
            try:
                if connection is None:
                    connection = self._server.client()
                answer = ask(connection, "/")
                if answer.status != 200:
                    raise AssertionError(f"{answer.status}: {answer.body!r}")
            except (OSError, http.client.HTTPException, AssertionError) as error:
                kind = "keep-alive" if keep else "one-shot"
                with self._lock:
                    self.failures.append(f"{kind} client at {time.strftime('%H:%M:%S')}: {error!r}")
                self.ended[number] += 1
                connection = None
                continue
            self.ended[number] += 1
            with self._lock:
                self.answers += 1
                self.pids.add(answer.pid)
                if self.versions[-1:] != [answer.version]:
                    self.versions.append(answer.version)
            if not keep or answer.headers.get("connection") == "close":
                connection.close()
                connection = None
        if connection is not None:
            connection.close()


def ask(connection: http.client.HTTPConnection, path: str) -> Answer:
    """One GET on a connection that may be kept."""
    connection.request("GET", path)
    response = connection.getresponse()
    body = response.read()
    return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, body)


@dataclass
class Server:
    """A server in a directory of its own. Options are added to the command line as they are.

    `python` with `flags` runs the command line and the master. `workers=None`: the command line says nothing about
    them. `script` replaces `serve`: what is run is `python SCRIPT` (embedding).
    """

    options: tuple[str, ...] = ()
    app: str = "app:application"
    workers: int | None = 2
    bind: tuple[str, ...] = ("127.0.0.1:0",)
    env: dict[str, str] = field(default_factory=dict)
    script: str = ""
    python: str = sys.executable
    flags: tuple[str, ...] = ()
    root: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="ru-", dir="/tmp")))
    run_dir: Path = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        self.root.chmod(0o755)  # --user must get at it
        self.run_dir = self.run_dir or self.root / "run"
        self.releases = self.root / "releases"
        self.current = self.root / "current"
        self.gates = self.root / "gates"
        self.log = self.root / "server.log"
        self.name = f"it-{secrets.token_hex(4)}"
        self.output: int | None = None  # standard error's descriptor, where it is not the log
        self.process: subprocess.Popen[bytes] | None = None
        self._commands: list[subprocess.Popen[str]] = []
        self.gates.mkdir()
        self.gates.chmod(0o777)
        STARTED.append(self)

    # --- files

    def write(self, version: str, code: str = "", *, flip: bool = True, whole: str | None = None) -> Path:
        """A release directory whose app.py says `version` and then runs `code`; `whole` is all of app.py instead."""
        directory = self.releases / version
        directory.mkdir(parents=True, exist_ok=True)
        text = CODE.format(version=version) + code if whole is None else whole
        (directory / "app.py").write_text(text)
        if flip:
            self.flip(directory)
        return directory

    def flip(self, target: Path | str) -> None:
        """Let `current` lead there, without a moment at which it leads nowhere."""
        new = self.root / "current.new"
        with contextlib.suppress(FileNotFoundError):
            new.unlink()
        new.symlink_to(target)
        new.rename(self.current)

    def gate(self, name: str) -> Gate:
        return Gate(self.gates, name)

    # --- start and end

    @property
    def environment(self) -> dict[str, str]:
        ours = ("WEB_CONCURRENCY", "PYTHONUNBUFFERED")  # of whoever runs the tests
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("REUSEPORT_") and k not in ours}
        own = {"TEST_GATES": str(self.gates), "REUSEPORT_RUN_DIR": str(self.run_dir), "PYTHONDONTWRITEBYTECODE": "1"}
        return {**inherited, **own, **self.env}

    @property
    def command(self) -> list[str]:
        if self.script:
            return [self.python, *self.flags, self.script, *self.options]
        words = [self.python, *self.flags, "-m", "reuseport", "serve", self.app, "-n", self.name]
        words += ["--chdir", str(self.current), "--pythonpath", str(APPS)]
        words += [part for address in self.bind for part in ("-b", address)]
        words += [] if self.workers is None else ["-w", str(self.workers)]
        return [*words, *self.options]

    def launch(self) -> Server:
        """Start the process and wait for nothing."""
        if not self.current.exists() and not self.current.is_symlink():
            self.write("one")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log if self.output is None else self.output,
                env=self.environment, cwd=self.root, start_new_session=True,
            )  # fmt: skip
        return self

    def start(self) -> Server:
        """Start it and wait until it serves at full strength."""
        self.launch()
        self.settle()
        return self

    def run(self) -> Outcome:
        """Start it and wait for its end: it cannot serve."""
        self.launch()
        status = self.await_exit()
        text = self.log.read_text(errors="replace")
        return Outcome(status, "", text)

    def await_exit(self, within: float = PATIENCE) -> int:
        assert self.process is not None
        try:
            return self.process.wait(within)
        except subprocess.TimeoutExpired:
            raise NotReached(f"the server did not end within {within:g} s") from None

    def close(self) -> None:
        """End every process, and remove the files. Never raises because of what the server does."""
        if self in STARTED:
            STARTED.remove(self)
        for command in self._commands:
            if command.poll() is None:
                command.kill()
            command.communicate()
        if self.process is not None:
            # The master first, so that it replaces nobody.
            self.process.kill()
            self.process.wait()
            deadline = time.monotonic() + PATIENCE
            while strays := list(self.processes()):
                for pid in strays:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                if time.monotonic() > deadline:
                    raise NotReached(f"processes that cannot be killed: {strays}")
                time.sleep(0.005)
        shutil.rmtree(self.root, ignore_errors=True)

    def processes(self) -> Iterator[int]:
        """Every process of this server that lives.

        setproctitle(3) writes over /proc/PID/environ, so titled processes are known by their session, or by the unique
        name in their title; what the application has exec'd, by the run directory in its environment. A companion can
        set a title of its own in a session of its own (Celery does): it is known by the release that it runs in.
        """
        assert self.process is not None
        releases = f"{self.root}/releases/"
        mark = f"REUSEPORT_RUN_DIR={self.run_dir}\0".encode()
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if fields[0] in ("Z", "X"):
                    continue
                if (
                    fields[3] == str(self.process.pid)
                    or f"[{self.name}]".encode() in (entry / "cmdline").read_bytes()
                    or mark in (entry / "environ").read_bytes() + b"\0"
                    or os.readlink(entry / "cwd").startswith(releases)
                ):
                    yield int(entry.name)
            except OSError:
                continue  # it has gone meanwhile, or is not ours to read

    def log_end(self, lines: int = 60) -> str:
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except OSError as error:
            return f"(no log: {error})"

    # --- what it says

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def question(self, **question: Any) -> dict[str, Any]:
        """The master's last answer to a question on its control socket. OSError if there is no master."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(PATIENCE)
            sock.connect(str(self.run_dir / "control.sock"))
            sock.sendall(json.dumps({"v": 1, **question}).encode() + b"\n")
            with sock.makefile("rb") as lines:
                for line in lines:
                    message = json.loads(line)
                    if message.get("superseded"):
                        return self.question(**question)
                    if message["event"] == "done":
                        return message
        raise ConnectionError("the control socket closed before it had answered")

    def status(self) -> Status:
        return Status(self.question(do="status")["status"])

    def wait(self, until: Callable[[Status], Any], what: str = "", within: float = PATIENCE) -> Status:
        """The status as soon as it is as wanted. Fails when the server ends before."""
        deadline = time.monotonic() + within
        last = "no status yet"
        while time.monotonic() < deadline:
            if not self.alive:
                raise NotReached(f"the server ended with {self.process.returncode if self.process else None}: {what}")
            try:
                status = self.status()
            except OSError as error:
                last = repr(error)
            else:
                if until(status):
                    return status
                last = status.in_short()
            time.sleep(POLL)
        raise NotReached(f"not within {within:g} s: {what or 'the state waited for'}; at last: {last}")

    def settle(self, generation: int | None = None, within: float = PATIENCE) -> Status:
        """Wait until one generation serves at full strength and nothing else lives."""
        return self.wait(
            lambda s: s.is_settled() and generation in (None, s.serving), f"generation {generation} settled", within
        )

    # --- what it is told

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def hup(self) -> None:
        self.signal(signal.SIGHUP)

    def begin(self, *words: str) -> subprocess.Popen[str]:
        """Start a command such as `release` against this server."""
        command = subprocess.Popen(
            [sys.executable, "-m", "reuseport", *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, cwd=self.root, env=self.environment,
        )  # fmt: skip
        self._commands.append(command)
        return command

    def end(self, command: subprocess.Popen[str], within: float = PATIENCE) -> Outcome:
        """Wait for a command's end."""
        try:
            out, err = command.communicate(timeout=within)
        except subprocess.TimeoutExpired:
            command.kill()
            out, err = command.communicate()
            raise NotReached(f"{command.args} has not ended within {within:g} s: {out} {err}") from None
        return Outcome(command.returncode, out, err)

    def cli(self, *words: str, within: float = PATIENCE) -> Outcome:
        return self.end(self.begin(*words), within)

    def release(self, *more: str, within: float = PATIENCE) -> Outcome:
        """`reuseport release`, in this process: it is asked for so often that an interpreter each time would count."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            command = Background(lambda: cli.main(["release", "--run-dir", str(self.run_dir), *more]))
            status = command.result(within)
        return Outcome(status, out.getvalue(), err.getvalue())

    def renew(self) -> int:
        """Release, and wait until nothing is left of the old versions. The new generation's number."""
        outcome = self.release("--wait", "drained", "--json")
        assert outcome.exit == 0, outcome.err
        return outcome.json["generation"]

    def await_version(self, version: str) -> None:
        """Wait until this version answers. The old one may take a last connection while its SIGTERM is on its way."""
        wait_for(lambda: self.get().version == version, f"{version} answers")

    def await_drain(self) -> None:
        """Wait until every worker of a draining generation has heard its SIGTERM: its title says so. Then it accepts
        nothing any more."""

        def heard() -> bool:
            status = self.status()
            pids = [w["pid"] for number in status.draining for w in status.generation(number)["workers"]]
            return all(" draining" in (title_of(pid) or " draining") for pid in pids)

        wait_for(heard, "all old workers draining")

    # --- its clients

    @property
    def address(self) -> str:
        address = self.__dict__.get("_address")
        if address is None:
            address = self._address = self.status()["master"]["addresses"][0]
        return address

    def client(self, address: str = "", timeout: float = PATIENCE) -> http.client.HTTPConnection:
        """A connection to the first address, or this one, not yet open."""
        address = address or self.address
        if address.startswith("unix:"):
            return UnixConnection(address.removeprefix("unix:"), timeout)
        host, _, port = address.rpartition(":")
        return http.client.HTTPConnection(host.strip("[]"), int(port), timeout=timeout)

    def get(self, path: str = "/", address: str = "", timeout: float = PATIENCE) -> Answer:
        """GET with a connection of its own."""
        with contextlib.closing(self.client(address, timeout)) as connection:
            return ask(connection, path)

    def get_later(self, path: str) -> Background:
        """The same in the background."""
        self.address  # noqa: B018  (asked for now, not when there may be no master to ask)
        return Background(lambda: self.get(path))

    def load(self, **clients: Any) -> Load:
        self.address  # noqa: B018
        return Load(self, **clients)


def make_venv(directory: Path, interpreter: str = sys.executable, *, with_reuseport: bool = True) -> str:
    """A virtual environment that borrows what this one has installed; the path of its interpreter."""
    subprocess.run([interpreter, "-m", "venv", "--without-pip", str(directory)], check=True)
    packages = next(directory.glob("lib/python3*/site-packages"))
    if with_reuseport:
        borrowed = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), str(CHECKOUT)]
        (packages / "borrowed.pth").write_text("\n".join(dict.fromkeys(borrowed)) + "\n")
    return str(directory / "bin" / "python")


def environment(*requirements: str, interpreter: str = sys.executable) -> Path:
    """A virtual environment that has only these packages. It is made once, and kept beside what this Python has."""
    made_of = json.dumps([os.path.realpath(interpreter), *requirements])
    home = Path(sys.prefix) / "test-environments"
    home.mkdir(exist_ok=True)
    directory = home / hashlib.sha256(made_of.encode()).hexdigest()[:16]
    # The tests' processes share it. The first one makes it, and the stamp is its last step.
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = directory / "stamp.json"
        if not stamp.exists():
            shutil.rmtree(directory, ignore_errors=True)
            python = make_venv(directory, interpreter, with_reuseport=False)
            pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--only-binary", ":all:"]
            if requirements:
                subprocess.run([*pip, *requirements], check=True)
            stamp.write_text(made_of)
    return directory


def another_python() -> str | None:
    """The interpreter of another Python that is supported, in the PATH or beside this one (pyenv, uv)."""
    beside = sorted(Path(sys._base_executable).resolve().parents[2].glob("*/bin"))
    for minor in range(11, 15):
        if minor == sys.version_info.minor:
            continue
        for path in (shutil.which(f"python3.{minor}"), *(str(bin / f"python3.{minor}") for bin in beside)):
            if path and os.path.exists(path) and subprocess.run([path, "-c", ""], capture_output=True).returncode == 0:
                return path
    return None


STARTED: list[Server] = []  # servers that have been made and not ended: their logs belong to a failure's report


def free_port() -> int:
    """A port of 127.0.0.1 for what must know its port beforehand.

    It lies below the ports that the kernel gives to whoever asks for any (ip_local_port_range in ip(7)): no server and
    no client of another test gets it between this and its use.
    """
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for _ in range(100):
        port = first // 2 + secrets.randbelow(first - first // 2)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise NotReached(f"no free port below {first}")


def is_gone(pid: int) -> bool:
    """No such process, not even a zombie."""
    return not Path(f"/proc/{pid}").exists()


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def title_of(pid: int) -> str:
    """What ps shows; empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def proportional_memory(pid: int) -> int:
    """PSS in bytes: a page that n processes share counts as an n-th."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no Pss")


def resident_memory(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
