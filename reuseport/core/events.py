"""What can happen to the cluster, and what can be done about it.

Events are facts that the master learned; commands are what it must do. Both are plain data, so that a test can make up
any story, and a log can tell one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

from reuseport.core.immutable import immutable
from reuseport.core.model import Asker, Key, Release

# --- events ---------------------------------------------------------------------------------------------------------


@immutable
class Tick:
    """Time has passed, nothing else."""


@immutable
class ReleaseAsked:
    release: Release
    asker: Asker | None = None


@immutable
class PromoteAsked:
    """The canary is to serve everybody. For the fields see RollbackAsked."""

    asker: Asker | None = None
    by: str = ""
    session: str = ""
    came_from: int = 0
    seen_at: float | None = None


@immutable
class RollbackAsked:
    """An earlier version is to serve again; or, while a release boots, that release is to end.

    `release` is what to go back to from generation `against`, None where there is nothing (`refusal` says why).
    `number` is the generation that the operator named, `source` the version that it had; both 0 for "the one before".
    `came_from`: the generation that must serve (--from), 0 for any. `by` and `session` are as in Release.
    `seen_at`: when the operator's command was started, None where that is not known.
    """

    release: Release | None
    against: int
    asker: Asker | None = None
    refusal: str = ""
    number: int = 0
    source: int = 0
    came_from: int = 0
    by: str = ""
    session: str = ""
    seen_at: float | None = None


@immutable
class AbortAsked:
    """Every release that has not begun to accept is to end. For the fields see RollbackAsked."""

    asker: Asker | None = None
    by: str = ""
    session: str = ""
    seen_at: float | None = None


@immutable
class Started:
    """The zygote or companion runs (its pid); or it could not even be started (`error`)."""

    key: Key
    pid: int = 0
    error: str = ""


@immutable
class Loaded:
    """The zygote can fork workers. `workers` is set where the application's own script said how many (embedding)."""

    key: Key
    workers: int | None = None


@immutable
class Failed:
    """A process says why it cannot go on; its exit follows."""

    key: Key
    error: str


@immutable
class Forked:
    key: Key
    pid: int


@immutable
class Born:
    """A job's process says hello, for the first time or to another master."""

    key: Key
    pid: int


@immutable
class Ready:
    key: Key


@immutable
class Accepting:
    key: Key


@immutable
class LetGo:
    """A draining worker has let go of the slots: it gets no new connection any more."""

    key: Key


@immutable
class Retire:
    """The worker, or an operator, wants it replaced: it goes when its successor accepts."""

    key: Key
    reason: str


@immutable
class Blocked:
    """The worker's loop has not turned for too long."""

    key: Key


@immutable
class Unblocked:
    key: Key


@immutable
class Judged:
    """The generation that serves does worse than its predecessor; `verdict` says how."""

    generation: int
    verdict: str


@immutable
class Pinned:
    """Whether tenants are kept in the generation, by their jobs or by an operator."""

    generation: int
    pinned: bool


@immutable
class Exited:
    """A process is gone. `how` says it in words, as in "was killed by SIGKILL"; `clean`: with status 0."""

    key: Key
    how: str = "exited"
    clean: bool = False


@immutable
class Said:
    """What a companion's process shows of itself. `pid` is that process: the next one of that key has said nothing.

    `ready`: it is ready. `status`: its state in words. `extend`: it asks for so many seconds, from now on, until it
    must be ready (EXTEND_TIMEOUT_USEC, sd_notify(3)). `why`: why it is not ready yet. None: nothing was said of that.
    """

    key: Key
    pid: int
    ready: bool = False
    status: str | None = None
    extend: float = 0.0
    why: str | None = None


@immutable
class DrainAwaited:
    """Somebody waits until all that is older than this generation has drained, and has asked another master before."""

    asker: Asker
    generation: int


@immutable
class ScaleAsked:
    by: int


@immutable
class StopAsked:
    """`timeout`: seconds after which a graceful stop becomes a quick one; 0 for never.

    `insist`: if the server stops already, stop at once: a second SIGTERM. `delay`: for so many seconds before it the
    server still accepts, and says that it will leave, so that nobody sends anything more to it. `timeout` counts from
    the end of that.
    """

    quick: bool = False
    insist: bool = False
    timeout: float = 0.0
    delay: float = 0.0


@immutable
class Survivor:
    """A process that outlived its master: a worker in `state` at `place`, a loaded zygote, or a companion."""

    key: Key
    pid: int
    release: Release
    state: str = "accepting"
    place: int = 0


@immutable
class Adopted:
    """What an earlier master of this run directory left behind, all of it at once, and how far it had counted.

    `ended` are the companions that had ended for good, and `failed` those of them that had not ended well. `gone` are
    the companions that ran and have ended without a master: whether each ended cleanly, as far as that is known.

    `otherwise`: the release to begin with where none of it serves; with `renew`, in any case.
    """

    survivors: tuple[Survivor, ...]
    last: int
    slots: int
    forked: Mapping[int, int] = field(default_factory=dict)  # generation -> the highest worker number given out
    otherwise: Release | None = None
    ended: tuple[Key, ...] = ()
    renew: bool = False
    gone: Mapping[Key, bool] = field(default_factory=dict)
    failed: tuple[Key, ...] = ()


Event = (
    Tick | ReleaseAsked | PromoteAsked | RollbackAsked | AbortAsked | Started | Loaded | Failed | Forked | Born | Ready
    | Accepting | LetGo | Retire | Blocked | Unblocked | Judged | Pinned | Exited | Said | DrainAwaited | ScaleAsked
    | StopAsked | Adopted
)  # fmt: skip

# --- commands -------------------------------------------------------------------------------------------------------


@immutable
class OpenSlots:
    """Have this many slots per address, in every process that may need them."""

    count: int


@immutable
class CloseSlots:
    """The master lets go of the slots: a stop."""


@immutable
class StartZygote:
    generation: int
    release: Release


@immutable
class CopyZygote:
    """Have the zygote of generation `donor` fork a copy of itself, which becomes that of `generation`."""

    generation: int
    donor: int


@immutable
class Fork:
    """Ask the zygote for a worker."""

    key: Key
    place: int


@immutable
class Accept:
    """Tell the worker to accept, and which slots are its own. A later one replaces an earlier one.

    None: it leaves all slots alone, and serves what is handed over to it. `farewell`: a stop has been announced, which
    it tells whoever asks, and each response is its connection's last.
    """

    key: Key
    slots: tuple[int, ...] | None
    farewell: bool = False


@immutable
class Attend:
    """Accept nothing new, serve what is handed over, and stay until told to drain."""

    key: Key


@immutable
class Drain:
    """SIGTERM. `last`: nobody accepts after it, so it takes what waits in the queues before it lets go of them.

    A job's process gets no signal: it only hears that its generation leaves.
    """

    key: Key
    last: bool = False


@immutable
class Bequeath:
    """Tell a draining worker that its connections now go to the generation that serves."""

    key: Key


@immutable
class Launch:
    """Prepare a companion's process, which executes nothing before it is told to go."""

    key: Key


@immutable
class Go:
    """Its process is known, to a next master too: let it execute its command."""

    key: Key


@immutable
class Stop:
    """Give a companion its stop signal. It gets no second one."""

    key: Key


@immutable
class Quit:
    """End at once, in an orderly way if it can."""

    key: Key


@immutable
class Abort:
    """End, and leave a Python stack behind, since it is not known what it hangs in."""

    key: Key


@immutable
class Kill:
    """SIGKILL; whomever a companion has started gets it, too."""

    key: Key


@immutable
class Answer:
    """Tell an asker how its release ended. `outcome`: SUPERSEDED or ABORTED, if it did not fail by itself. `aborted`:
    the generation whose boot this asker has ended, 0 for none."""

    asker: Asker
    ok: bool
    generation: int
    text: str
    outcome: str = ""
    aborted: int = 0


@immutable
class Record:
    """A release ended: "serving", "failed", "superseded" or "aborted". Before that it may be "canary", and later
    "taken back". `generation` is 0 for a release that ended before it had begun."""

    generation: int
    outcome: str
    text: str
    seconds: float


@immutable
class Drained:
    """The last worker of an old generation has left, `seconds` after its drain began."""

    generation: int
    seconds: float


@immutable
class Note:
    """A line for the log, and for whoever waits. `silent`: the one who waits gets it as his answer anyway."""

    level: str
    text: str
    silent: bool = False


@immutable
class Finish:
    """All is ended: leave with this exit status."""

    status: int


Command = (
    OpenSlots
    | CloseSlots
    | StartZygote
    | CopyZygote
    | Fork
    | Accept
    | Attend
    | Drain
    | Bequeath
    | Launch
    | Go
    | Stop
    | Quit
    | Abort
    | Kill
    | Answer
    | Record
    | Drained
    | Note
    | Finish
)
