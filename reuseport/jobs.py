"""Jobs: named pieces of work that may outlive their request, and that a drain waits for.

    with reuseport.job("export", tenant="acme") as job:
        for page in pages:
            ...
            job.progress(page / len(pages), f"page {page}")

    handle = reuseport.spawn(send_invoices, month, name="invoices", tenant="acme", where="process")

An old generation leaves when its requests and its jobs have ended; what was not registered it does not know of. Outside
a server a job is just code that runs, so tests and shells need nothing.

Jobs may begin and end in any greenlet or native thread. So the registry is one dict, whose changes the interpreter
makes atomic, and whoever must know of a change is told through `changed`, which has to be safe in any thread. Those
that run beside whoever begins them are in `spawned`.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar

from reuseport import names, values
from reuseport.deadlines import JobCancelled, Limit, plain

F = TypeVar("F", bound=Callable[..., Any])

GREENLET, THREAD, PROCESS = "greenlet", "thread", "process"
FOREVER = 1e9  # seconds, 31 years: a deadline as far away as this is none

active: dict[int, Job] = {}
late: dict[int, Job] = {}  # of the active ones, those that run on although their deadline and the grace have passed
starting: dict[int, Job] = {}  # jobs that have been asked for, and whose processes no master knows yet


def changed() -> None:
    """Called after each change, in whichever thread made it. A worker puts its own function here."""


def pins_nobody(tenant: str) -> Callable[[], None] | None:
    """A job of `tenant` begins, in any thread; what this returns is called at its end."""
    return None


pin = pins_nobody  # a worker that knows tenants puts its own function here


def nobody_notes(one: Job, begins: bool) -> None:
    """A job begins, and nothing of it has run; or it has ended. In any thread."""


note = nobody_notes  # a worker writes down here what it had begun if it is killed


def nobody_hears(one: Job, pid: int, why: str) -> bool:
    """A job is lost that no process has begun; `pid` is the one that died before it could, 0 for none. In any thread.

    Returns whether a master hears of it.
    """
    return False


lost = nobody_hears  # a worker that has a master puts its own function here
tenant_now: ContextVar[str | None] = ContextVar("reuseport.tenant", default=None)  # whose request this code runs for


@dataclass
class Server:
    """What a worker, or a job's process, says about itself: the defaults are those of no server at all."""

    loop: Any = None  # gevent's, of the main thread
    door: str = ""  # where the zygote takes requests for processes
    patience: float = 0.0  # seconds to wait for a zygote that starts again
    timeout: float = 0.0  # seconds for jobs without a deadline of their own; 0: none
    grace: float = 30.0  # seconds between a deadline and force
    in_process: bool = False  # this is a job's process, whose loop may not turn for long
    begins_job: bool = False  # and it still runs its start hooks
    forked: bool = False  # the application has forked this process from one of the server's


server = Server()
current: ContextVar[Job | None] = ContextVar("reuseport_job", default=None)
_numbers = count(1)


def overdue() -> list[Job]:
    """The jobs that run on although their deadline and the grace have passed."""
    return list(late.values())


def _deadline(value: Any) -> float:
    """Seconds above 0, infinity included. TypeError and ValueError."""
    what = "a job's deadline is a number of seconds above 0"
    seconds = values.number(value, what)
    if not seconds > 0:
        raise ValueError(f"{what}, not {value!r}")
    return seconds


class Job:
    """One run of a job, and what `status` shows of it. `started`: Unix time in seconds; `deadline`: seconds from then.

    `name` and `tenant` become printable names (`reuseport.names.name`): a text with control characters or with more
    than 200 characters is escaped and shortened, and different texts stay different. An int stands for its digits.
    `deadline` is any real number. TypeError for a name or tenant of another type and for a deadline that is no number,
    ValueError for one that is not above 0.

    Whatever must know of jobs in this process hooks in at `begin` and `end`.
    """

    def __init__(self, name: str, tenant: str | None = None, deadline: float | None = None, where: str = "") -> None:
        limit = server.timeout if deadline is None else _deadline(deadline)
        whose = tenant_now.get() if tenant is None else values.text(tenant, "a job's tenant")
        self.name = names.name(values.text(name, "a job's name"))
        self.tenant = None if whose is None else names.name(whose)
        self._unpin: Callable[[], None] | None = None
        self.deadline = limit if 0 < limit < FOREVER else None
        self.where = where
        self.number = 0
        self.started = 0.0
        self.fraction: float | None = None
        self.text = ""
        self.overdue = False  # it runs on although its deadline and the grace have passed
        self.in_request = False  # what runs it is one of the greenlets that serve requests
        self.limit: Limit | None = None
        self.runner = 0  # the ident of the greenlet or thread whose `with` it is
        self.greenlet: Any = None  # what runs it in a native thread, if gevent is there

    def progress(self, fraction: float, text: str = "") -> None:
        """Say how far it is, from 0 to 1, and in words; `reuseport status` shows both.

        `fraction` is any real number, of which a float is kept; True stands for 1, False for 0. `text` is shown in one
        line of at most 200 characters.
        TypeError for what is no number or no str, ValueError beyond 0 and 1.
        """
        what = "a job's progress lies between 0 and 1"
        converted = float(fraction) if isinstance(fraction, bool) else values.number(fraction, what)
        if not 0 <= converted <= 1:
            raise ValueError(f"{what}, not at {fraction!r}")
        self.fraction, self.text = converted, names.line(values.text(text, "the text of a job's progress"))
        changed()

    def begin(self, registry: dict[int, Job] | None = None, started: float = 0.0) -> None:
        self.number = next(_numbers)
        self.started = started or time.time()
        if self.tenant is not None:
            self._unpin = pin(self.tenant)
        note(self, True)
        (active if registry is None else registry)[self.number] = self
        changed()

    def end(self) -> None:
        active.pop(self.number, None)
        late.pop(self.number, None)
        starting.pop(self.number, None)
        unpin, self._unpin = self._unpin, None
        if unpin is not None:
            unpin()
        note(self, False)
        changed()

    def bound(self, always: bool = False, overdue: bool = True) -> None:
        """From here to `unbound` the calling greenlet or thread is what its deadline ends; or `Handle.cancel`."""
        if self.deadline is not None:
            left = max(0.0, self.started + self.deadline - time.time())
            self.limit = Limit(left, server.grace, self._is_overdue if overdue else None)
            self.in_request = self.where == "" and self.limit.in_request
        elif always:
            self.limit = Limit(None, server.grace)

    def unbound(self) -> None:
        if self.limit is not None:
            self.limit.close()

    def _is_overdue(self) -> None:
        if self.number in active:
            self.overdue = True
            late[self.number] = self
            changed()


def progress(fraction: float, text: str = "") -> None:
    """`Job.progress` of the job that the caller is in: of a spawned or decorated function, which has no Job at hand.

    Does nothing where there is none, so the same function can also be called plainly.
    """
    one = current.get()
    if one is not None:
        one.progress(fraction, text)


class job:
    """Context manager and decorator: the code inside, or the function, is a job of this name.

    `tenant` is the customer it works for, by default the one whose request this is (--tenant). As a context manager it
    gives the Job; a decorated function runs as a new job each time it is called. `deadline`: seconds after which
    JobTimeout is raised inside it; by default --job-timeout, and float("inf") for none whatever that says. Wrong values
    raise here, with the errors of `Job`.
    """

    def __init__(self, name: str, tenant: str | None = None, deadline: float | None = None) -> None:
        self._name = name
        self._tenant = tenant
        self._deadline = deadline
        self._running: dict[int, list[Job]] = {}  # by greenlet or thread: it may be shared by many
        Job(name, tenant, deadline)  # what is wrong with them is said now

    def __enter__(self) -> Job:
        one = Job(self._name, self._tenant, self._deadline)
        one.runner = threading.get_ident()
        self._running.setdefault(one.runner, []).append(one)
        one.begin()
        if one.deadline is not None:
            try:
                one.bound()
            except BaseException:
                self.__exit__()
                raise
        return one

    def __exit__(self, *error: object) -> None:
        who = threading.get_ident()
        one = self._running[who].pop()
        if not self._running[who]:
            del self._running[who]
        try:
            if one.limit is not None:
                one.unbound()
        finally:
            one.end()
        caught = error[1] if len(error) > 1 else None
        if one.limit is not None and one.limit.was_in_library and isinstance(caught, JobCancelled):
            told = plain(caught)
            if told is not caught:
                raise told from None

    def __call__(self, function: F) -> F:
        values.function(function, "what reuseport.job decorates")

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            with job(self._name, self._tenant, self._deadline) as one:
                before = current.set(one)
                try:
                    return function(*args, **kwargs)
                finally:
                    current.reset(before)

        return run  # type: ignore[return-value]
