"""The message catalogue: every message of every channel, declared once, and checked where it comes in.

A message is a JSON object with a `type` and a version `v` (`channel.py`). Each class here declares one kind: its fields
with their types and bounds (`fields.py`), and how many descriptors it brings. The groups at the end say who sends it.
`Heard.of` makes a typed value of each message before anything else looks at it. A question of the command line is one
JSON line with a `do` (`master/control.py`), which `asked` checks.

A message that is not as declared is malformed. It ends its sender's channel: the descriptors of that message and of
all behind it are closed, and the receiver logs one line that names sender, kind and field. The master also ends the
process that sent it, as if the process had crashed: its jobs are lost, and a worker gets a successor. The asker of
a malformed question gets an error as its answer.

Versions. The two ends of a channel can be of different versions of reuseport (upgrade, takeover, adoption, a release's
own environment), so:

- a field that is not declared here is passed over: a later version may send it;
- a field with a default may be missing: an earlier version did not send it. A new field needs a default;
- a bound is never below what an earlier version sends. A text that earlier versions did not bound is shortened, and not
  refused;
- a kind that the receiver does not know, or does not expect from this sender, is `Unknown`: its descriptors are closed,
  and nothing else happens.

A change that these rules do not cover raises `channel.VERSION`.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from posix import close
from typing import Any, ClassVar, NamedTuple, Self

from reuseport import names
from reuseport.core.model import FIRST_COMPANION, FIRST_JOB
from reuseport.core.routing import Table
from reuseport.ipc import fields
from reuseport.ipc.fields import REQUIRED, Field

JOBS = 1000  # of one process that the master is told of at a time
EXITS = 1000  # processes that have ended of which one message tells

_GENERATIONS = 1 << 31
_PIDS = 1 << 22  # PID_MAX_LIMIT (linux/threads.h)
_COUNT = (1 << 63) - 1
LATEST = 1e12  # Unix seconds
LONGEST = 1e308  # seconds of a job's deadline: earlier versions take every finite one
_WORKERS = 1024  # --workers
_ROWS = 4096  # of shared memory, and slots of an address
ERROR = 5000  # characters of an error or a note that are sent: as JSON they fit into a packet, 12 bytes each at most
_TEXT = 16384  # characters that are kept of an error or a note
_REASON = 500
_ADDRESS = 300
_FDS = 64  # `channel.FDS`
_MEMBERS = 60_000  # entries of a list: no packet holds more


class Malformed(Exception):
    """A message that is not as it is declared. `kind` and `field` are "" where it has none."""

    def __init__(self, why: str, kind: str = "", field: str = "") -> None:
        where = f"{names.line(kind, 40)!r}" if kind else "a message"
        super().__init__(names.line(f"{where}: {field} {why}" if field else f"{where} {why}", _REASON))
        self.kind = kind
        self.field = field


class Message:
    """`kind`: its type on the wire. `fds`: how many descriptors it brings, at least and at most. `sockets`: all of them
    are sockets."""

    kind: ClassVar[str] = ""
    fds: ClassVar[tuple[int, int]] = (0, 0)
    sockets: ClassVar[bool] = False
    fields: ClassVar[tuple[tuple[str, str, Field], ...]] = ()  # attribute, name in the message, type

    def __init_subclass__(cls, kind: str = "", fds: tuple[int, int] | int = 0, sockets: bool = False) -> None:
        own = {name: value for name, value in vars(cls).items() if isinstance(value, Field)}
        for name in own:
            delattr(cls, name)
        cls.kind = kind or cls.kind
        cls.fds = (fds, fds) if isinstance(fds, int) else fds
        cls.sockets = sockets
        cls.fields += tuple((name, field.key or name, field) for name, field in own.items())

    @classmethod
    def parse(cls, said: Mapping[str, Any], brought: int = 0) -> Self:
        """The typed value of a message that came with so many descriptors. Malformed."""
        message = cls.__new__(cls)
        values = message.__dict__
        for attribute, name, field in cls.fields:
            value = said.get(name, REQUIRED)
            if value is REQUIRED:
                value = field.default
                if value is REQUIRED:
                    raise Malformed("is missing", cls.kind, name)
            else:
                try:
                    value = field.check(value)
                except ValueError as error:
                    raise Malformed(str(error), cls.kind, name) from None
            values[attribute] = value
        least, most = cls.fds
        if not least <= brought <= most or brought != message.expected(brought):
            raise Malformed(f"does not come with {brought} descriptors", cls.kind)
        return message

    def expected(self, brought: int) -> int:
        """How many descriptors belong to this message, where that depends on its fields."""
        return brought

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"


class Unknown(Message):
    """A kind that is not declared for this sender. `named` is the kind, printable."""

    named: str

    def __init__(self, named: str) -> None:
        self.named = names.line(named, 40)


Group = Mapping[str, type[Message]]


class Heard(NamedTuple):
    """A message that has come, and the descriptors that it brought."""

    message: Message
    fds: list[int]

    @classmethod
    def of(cls, data: bytes, fds: list[int], group: Group) -> Heard:
        """The typed value of a message from a sender of this group. Malformed; then the descriptors are still open."""
        said = decoded(data)
        if type(said.get("type")) is not str or type(said.get("v")) is not int:
            raise Malformed(f"has no type and version: {data[:60]!r}")
        kind = group.get(said["type"])
        if kind is None:
            for fd in fds:
                close(fd)
            return cls(Unknown(said["type"]), [])
        message = kind.parse(said, len(fds))
        if kind.sockets and not all(stat.S_ISSOCK(os.fstat(fd).st_mode) for fd in fds):
            raise Malformed("comes with a descriptor that is no socket", kind.kind)
        return cls(message, fds)


def _group(*kinds: type[Message]) -> Group:
    return {one.kind: one for one in kinds}


def decoded(data: bytes) -> dict[str, Any]:
    """The JSON object that these bytes are. Malformed."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:  # an int of too many digits, and lists that are nested too deeply
        raise Malformed(f"is not JSON ({type(error).__name__}): {data[:60]!r}") from None
    if type(found) is not dict:
        raise Malformed(f"is no object: {data[:60]!r}")
    return found


def asked(data: bytes) -> Question:
    """The typed value of a question of the command line. Malformed."""
    question = decoded(data)
    do = question.get("do")
    if type(do) is not str:
        raise Malformed("has no 'do' that is a text")
    one = QUESTIONS.get(do)
    return OtherQuestion(do) if one is None else one.parse(question)


# --- what a process says to the master --------------------------------------------------------------------------------

# Address, index, and whether it is the master's only one of that address (a unix socket).
_SLOT = fields.row(fields.address(_ADDRESS), fields.whole(0, 65535), fields.flag())


class Hello(Message, kind="hello", fds=(0, 2), sockets=True):
    """The first message of a zygote, a worker or a job's process. With `queue` it brings both ends of the generation's
    hand-over queue. `slots` are the slots of the process. `logs`: it wants the log files from the master. `shared`: the
    zygote has opened the files of shared memory."""

    v: int = fields.whole(0, _COUNT)
    generation: int = fields.whole(0, _GENERATIONS)
    number: int = fields.whole(0, FIRST_COMPANION - 1)
    state: str = fields.text(40)
    slots: tuple[tuple[str, int, bool], ...] = fields.several(_SLOT, _ROWS)
    queue: bool = fields.flag(False)
    logs: bool = fields.flag(False)
    shared: bool = fields.flag(False)
    packages: dict[str, Any] | None = fields.maybe(fields.facts(20), None)

    def expected(self, brought: int) -> int:
        return 2 if self.queue else 0


class TakeOver(Message, kind="takeover"):
    """Another master wants to take over. The fields behind `protocol` are its protocol's."""

    protocol: int = fields.whole(0, _COUNT, 0)
    version: str = fields.line(40, "unknown")
    release: dict[str, Any] = fields.made(dict, {})
    addresses: tuple[str, ...] | None = fields.maybe(fields.several(fields.text(_ADDRESS), _ROWS), None)


class Loaded(Message, kind="loaded"):
    """The zygote can fork. `workers`: how many the application's script said, if it did (`reuseport.serve`)."""

    workers: int | None = fields.maybe(fields.whole(1, _WORKERS), None)


class Forked(Message, kind="forked"):
    """A worker, or with number 0 the zygote of `generation`; without one, of the sender's."""

    generation: int | None = fields.maybe(fields.whole(0, _GENERATIONS), None)
    number: int = fields.whole(0, FIRST_JOB - 1)
    pid: int = fields.whole(1, _PIDS)


class Unborn(Message, kind="unborn"):
    generation: int | None = fields.maybe(fields.whole(0, _GENERATIONS), None)
    number: int = fields.whole(0, FIRST_JOB - 1)
    error: str = fields.lines(_TEXT)


class Noted(Message, kind="note"):
    """A line for the master's log."""

    level: str = fields.text(20)
    text: str = fields.lines(_TEXT)


class Failed(Message, kind="failed"):
    error: str = fields.lines(_TEXT)


class Ready(Message, kind="ready"):
    pass


class Accepting(Message, kind="accepting"):
    pass


class LetGo(Message, kind="let-go"):
    """From a worker: it has let go of the slots. To a zygote: close them."""


class Retire(Message, kind="retire"):
    reason: str = fields.line(_REASON)


class Job(Message, kind="job"):
    """A job that runs, as it is now. `started` is in Unix seconds, `deadline` in seconds from then."""

    number: int = fields.whole(0, _COUNT)
    name: str = fields.name()
    tenant: str | None = fields.maybe(fields.name())
    started: float = fields.real(0, LATEST)
    deadline: float | None = fields.maybe(fields.real(0, LONGEST), None)
    fraction: float | None = fields.maybe(fields.real(0, 1, flags=True), None)
    text: str = fields.line(names.LONGEST, "")
    where: str = fields.line(20, "")
    overdue: bool = fields.flag(False)


class JobEnded(Message, kind="job-ended"):
    number: int = fields.whole(0, _COUNT)


class JobsRepeated(Message, kind="jobs-repeated"):
    """After a hello: every job that the sender has now has been told again."""


class JobLost(Message, kind="job-lost"):
    """A job that no process has begun. `pid` is the process that ended before it could, 0 for none."""

    pid: int = fields.whole(0, _PIDS)
    why: str = fields.line(_REASON)
    name: str = fields.name()
    tenant: str | None = fields.maybe(fields.name())
    started: float = fields.real(0, LATEST)


class Stays(Message, kind="stays"):
    """The tenant stays in generation `at` for so many seconds, because its requests there have not ended."""

    tenant: str = fields.name()
    at: int = fields.whole(0, _GENERATIONS)
    seconds: float = fields.real(0, 1e9)


class Seen(Message, kind="seen"):
    """Tenants whose requests a worker has had, each once. `more`: it had requests of others, too."""

    tenants: tuple[str, ...] = fields.several(fields.name(), _MEMBERS)
    more: bool = fields.flag(False)


class Imported(Message, kind="imported"):
    """The application was imported from there (--reload)."""

    directory: str = fields.path()


class Slots(Message, kind="slots", fds=(0, _FDS), sockets=True):
    """A descriptor for each slot, in this order."""

    slots: tuple[tuple[str, int, bool], ...] = fields.several(_SLOT, _FDS)

    def expected(self, brought: int) -> int:
        return len(self.slots)


# --- what the master says to a process --------------------------------------------------------------------------------


class Boot(Message, kind="boot", fds=2, sockets=True):
    """The recipe that a zygote loads, with both ends of its generation's hand-over queue."""

    recipe: dict[str, Any] = fields.made(dict)
    name: str = fields.text(_TEXT)


class Fork(Message, kind="fork"):
    number: int = fields.whole(1, FIRST_JOB - 1)
    row: int = fields.whole(-1, _ROWS)
    booting: bool = fields.flag()


class Copy(Message, kind="copy", fds=1):
    """Fork a copy that becomes the zygote of `generation`, and prints to the descriptor."""

    generation: int = fields.whole(0, _GENERATIONS)


class BootErrors(Message, kind="boot_errors", fds=1):
    """The standard error of the next copy, see `BootLog.open`. A zygote of an earlier version passes over it."""


class Superseded(Message, kind="superseded"):
    pass


class Standby(Message, kind="standby"):
    pass


class Logs(Message, kind="logs", fds=(0, _FDS)):
    """A descriptor for each log file, in this order."""

    paths: tuple[str, ...] = fields.several(fields.path(), _FDS)

    def expected(self, brought: int) -> int:
        return len(self.paths)


class Reopen(Message, kind="reopen"):
    pass


class Exited(Message, kind="exited"):
    """These processes of the application's have ended."""

    pids: tuple[int, ...] = fields.several(fields.whole(1, _PIDS), EXITS)


class Heir(Message, kind="heir", fds=(0, 1), sockets=True):
    """The sending end of the queue of the generation that gets this worker's connections, and its number of workers."""

    generation: int = fields.whole(0, _GENERATIONS)
    workers: int = fields.whole(0, _COUNT)


class Routes(Message, kind="routes", fds=(0, _FDS), sockets=True):
    """The table of tenants, and the sending ends of the queues of these generations."""

    table: Table = fields.made(Table.from_json)
    queues: tuple[int, ...] = fields.several(fields.whole(0, _GENERATIONS), _FDS)
    workers: int = fields.whole(0, _COUNT)

    def expected(self, brought: int) -> int:
        return len(self.queues)


class Accept(Message, kind="accept"):
    """`own`: the worker's slots; None: it leaves all slots alone. `farewell`: a stop has been announced."""

    own: tuple[int, ...] | None = fields.maybe(fields.several(fields.whole(0, 65535), _MEMBERS))
    farewell: bool = fields.flag(False)


class Attend(Message, kind="attend"):
    pass


class Drain(Message, kind="drain"):
    last: bool = fields.flag()


class Quit(Message, kind="quit"):
    pass


class Known(Message, kind="known"):
    """The master knows of the job's process: the function may begin."""


# --- what two masters say to each other in a takeover -----------------------------------------------------------------


_INODE = fields.whole(0, (1 << 64) - 1)


def _identities(files: dict[str, Any]) -> dict[str, tuple[int, int]]:
    return {address: fields.row(_INODE, _INODE).check(identity) for address, identity in files.items()}


class Accepted(Message, kind="accepted"):
    version: str = fields.line(40, "unknown")
    metrics: str | None = fields.maybe(fields.text(_TEXT), None)


class Refused(Message, kind="refused"):
    error: str = fields.lines(_TEXT)
    output: str = fields.lines(65536, "")


class _OfKey(Message):
    generation: int = fields.whole(0, _GENERATIONS)
    number: int = fields.whole(0, _COUNT)


class Start(Message, kind="start"):
    generation: int = fields.whole(0, _GENERATIONS)
    hello: str = fields.path()
    scoreboard: str = fields.path()
    boot_log: str = fields.path()


class Launch(_OfKey, kind="launch"):
    pass


class Go(_OfKey, kind="go"):
    pass


class Queue(Message, kind="queue", fds=2, sockets=True):
    generation: int = fields.whole(0, _GENERATIONS)


class Lock(_OfKey, kind="lock", fds=1):
    pass


class Metrics(Message, kind="metrics", fds=1, sockets=True):
    """The socket at which metrics are asked for. `file`: device and inode of a unix socket's."""

    path: str = fields.text(4096)
    file: tuple[int, int] | None = fields.maybe(fields.row(_INODE, _INODE), None)


class Yours(Message, kind="yours", fds=(0, 1)):
    """The other master has let go of the lock. The descriptor is that of its books. `files` has device and inode of
    each unix socket that it has bound, by address."""

    masters: tuple[int, ...] = fields.several(fields.whole(1, _PIDS), _MEMBERS)
    theirs: tuple[str, ...] = fields.several(fields.text(_ADDRESS), _MEMBERS)
    files: dict[str, tuple[int, int]] = fields.made(_identities, {})


class Started(Message, kind="started"):
    pid: int = fields.whole(0, _PIDS, 0)
    error: str = fields.lines(_TEXT, "")


class Launched(_OfKey, kind="launched"):
    pid: int = fields.whole(0, _PIDS, 0)
    error: str = fields.lines(_TEXT, "")


class Said(_OfKey, kind="said"):
    """A companion shows something of itself: see `core.events.Said`."""

    pid: int = fields.whole(0, _PIDS)
    ready: bool = fields.flag(False)
    status: str | None = fields.maybe(fields.lines(_TEXT), None)
    extend: float = fields.real(0, LONGEST, 0.0)
    why: str | None = fields.maybe(fields.lines(_TEXT), None)


class Ended(_OfKey, kind="ended"):
    how: str = fields.line(_REASON)


class Mine(Message, kind="mine"):
    """The sender is the master now. `metrics`: it answers where the other one did."""

    metrics: bool = fields.flag(False)


# --- what the command line asks ---------------------------------------------------------------------------------------


class Question(Message):
    """`server`: the name of the server that is meant. `by`, `session`: the operator. `started`: when the command was
    started, in seconds of CLOCK_BOOTTIME. `user`, `sudo_user`, `host` and `on_behalf` (--by) are for the history."""

    server: str | None = fields.maybe(fields.text(_TEXT), None)
    by: str = fields.line(names.LONGEST, "")
    session: str = fields.line(names.LONGEST, "")
    user: str = fields.line(names.LONGEST, "")
    sudo_user: str = fields.line(names.LONGEST, "")
    host: str = fields.line(names.LONGEST, "")
    on_behalf: str = fields.line(names.LONGEST, "")
    started: float | None = fields.maybe(fields.real(0, LATEST), None)


class OtherQuestion(Question):
    """A question that this version does not know. `named` is its `do`, printable."""

    def __init__(self, named: str) -> None:
        self.named = names.line(named, 40)
        self.server = None


class _Waiting(Question):
    wait: str = fields.text(20, "ready")


class AskStatus(Question, kind="status"):
    pass


class AskWho(Question, kind="who"):
    pass


class AskUpgrade(Question, kind="upgrade"):
    pass


def _canary(value: dict[str, Any]) -> dict[str, Any]:
    tenants = fields.several(fields.name(), _MEMBERS).check(value.get("tenants", []))
    return {**value, "tenants": list(tenants), "percent": fields.real(0, 100).check(value.get("percent", 0))}


class AskRelease(_Waiting, kind="release"):
    label: str = fields.line(_REASON, "")
    canary: dict[str, Any] | None = fields.maybe(fields.made(_canary), None)


class AskPromote(_Waiting, kind="promote"):
    came_from: int | None = fields.maybe(fields.whole(0, _GENERATIONS, key="from"), None)


class AskRollback(_Waiting, kind="rollback"):
    generation: int | None = fields.maybe(fields.whole(0, _GENERATIONS), None)
    came_from: int | None = fields.maybe(fields.whole(0, _GENERATIONS, key="from"), None)


class AskAbort(_Waiting, kind="abort"):
    pass


class AskDrain(Question, kind="await drain"):
    generation: int = fields.whole(0, _GENERATIONS)


class AskHistory(Question, kind="history"):
    samples: bool = fields.flag(False)


class AskStop(Question, kind="stop"):
    now: bool = fields.flag(False)


class AskQuarantine(Question, kind="quarantine"):
    clear: bool = fields.flag(False)


class AskTenants(Question, kind="tenants"):
    pass


class AskHold(Question, kind="hold"):
    tenant: str = fields.text(names.LONGEST)


class AskMove(Question, kind="move"):
    tenant: str = fields.text(names.LONGEST)


# --- who sends what ---------------------------------------------------------------------------------------------------

HELLOS = _group(Hello, TakeOver)
FROM_ZYGOTE = _group(Loaded, Failed, Forked, Unborn, Noted, Slots, Imported)
FROM_WORKER = _group(
    Ready, Accepting, LetGo, Failed, Retire, Slots, Job, JobEnded, JobsRepeated, JobLost, Stays, Seen, Imported
)  # fmt: skip
FROM_JOB = _group(Job, JobEnded, JobsRepeated, JobLost)
TO_ZYGOTE = _group(Boot, Fork, Copy, BootErrors, Slots, Logs, Superseded, Standby, LetGo, Quit)
TO_WORKER = _group(Slots, Logs, Heir, Routes, Accept, Attend, Drain, Reopen, Exited, Quit)
TO_JOB = _group(Known, Logs, Drain, Reopen, Quit)
FROM_SUCCESSOR = _group(Started, Launched, Said, Ended, Mine)
TO_SUCCESSOR = _group(Accepted, Start, Launch, Go, Slots, Queue, Lock, Metrics, Yours, Refused, Quit)
QUESTIONS: Mapping[str, type[Question]] = {
    one.kind: one
    for one in (
        AskStatus, AskRelease, AskPromote, AskRollback, AskAbort, AskWho, AskDrain, AskHistory, AskStop, AskUpgrade,
        AskQuarantine, AskTenants, AskHold, AskMove,
    )
}  # fmt: skip
