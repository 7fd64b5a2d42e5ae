"""The router of a worker: whose a request is, and which generation serves it.

It stands between a parsed head and the application (`Engine.run`), and only where --tenant asks for it. A request that
belongs to another generation is put back in front of its connection's unread bytes, and the connection is handed over;
the receiver parses it again and decides for itself, so that no decision is ever taken on somebody else's word.

What must hold at every moment rests on the marks and the locks, in this order:

- only a worker of the generation that a tenant moves to moves it: it claims the tenant's bytes of all older
  generations, which it gets only if nobody has a job there (strict: nor a request), marks, and lets go;
- a job takes its byte first and looks at the mark then: if the tenant has moved on meanwhile the job pins nobody;
- strict: so does a request; if the tenant has moved on it goes after it.

A request that cannot be decided now (the tenant is being moved; strict: its requests on the older generation have not
ended; the table of this worker is not the newest) waits in line, a millisecond at a time, and nobody waits for it.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable
from functools import lru_cache, partial
from io import BytesIO
from typing import Any, NamedTuple

from gevent import monkey

from reuseport import jobs as jobs_api
from reuseport import names
from reuseport.core.routing import MOVED, SERVING, Route, Table, binding, route
from reuseport.ipc.inflight import of_tenant
from reuseport.ipc.marks import VERSION, Full, Marks
from reuseport.ipc.pins import JOBS, REQUESTS, Pins, number_of
from reuseport.worker.alarm import Alarm
from reuseport.worker.birth import Birth
from reuseport.worker.body import NO_BODY
from reuseport.worker.connection import Connection
from reuseport.worker.handover import MOST_UNREAD, Sender
from reuseport.worker.pool import Pool
from reuseport.worker.request import CACHED_LINES, RequestError
from reuseport.worker.response import Response
from reuseport.worker.seen import SeenTenants
from reuseport.worker.states import CLOSED
from reuseport.worker.tenancy import Finder, finder, pinner, valid
from reuseport.worker.upgrade import OFFER

HEAD = "reuseport.head"  # in environ between the parser and `admit`: the head as it came
AGAIN = 0.001  # seconds between two attempts of a request that waits in line
PATIENCE = 1.0  # seconds for a table, a queue or a mover that should be there at once
STAY = 10  # times --strict-wait: how long a tenant stays whose requests did not end in time, before the next attempt
NAMES = 65536  # tenants remembered as moved


Run = Callable[[Response], None]


class _Request(NamedTuple):
    response: Response
    run: Run  # has it answered, by the application
    head: bytes
    tenant: str | None
    number: int  # the tenant's, or a hash of the client where there is none
    since: float  # when it came, CLOCK_MONOTONIC


class Router:
    """Decides for the worker of `generation` whose engine this is.

    `tenant_of` gives a request's tenant; `may_block`: it is the application's, and runs in the request's greenlet.
    `requests`: locks for requests too, where isolation is strict. `hear()` reads what the master has said meanwhile;
    `say(kind, **fields)` speaks to it, at once if `has_room()`. `make_sender(on_refused)` makes the way to one other
    generation.
    """

    def __init__(
        self,
        engine: Any,
        generation: int,
        tenant_of: Finder,
        may_block: bool,
        marks: Marks,
        jobs: Pins,
        requests: Pins | None,
        make_sender: Callable[[Callable[[list[Connection]], None]], Sender],
        hear: Callable[[], None],
        say: Callable[..., None],
        log: Callable[[str, str], None],
        has_room: Callable[[], bool] = lambda: True,
    ) -> None:
        self.table = Table()
        self.seen = SeenTenants(engine.loop, say, has_room)
        self._seen = self.seen.names
        self._engine = engine
        self._loop = engine.loop
        self._here = generation
        self._tenant_of = tenant_of
        self._marks = marks
        self._words = marks.words
        self._jobs = jobs
        self._requests = requests
        self._make_sender = make_sender
        self._hear = hear
        self._say = say
        self._log = log
        self._senders: dict[int, Sender] = {}
        self._outgoing: dict[int, list[Connection]] = {}
        self._line: list[_Request] = []
        self._again = Alarm(self._loop, AGAIN, self._try_again)
        self._mine: set[str] = set()  # tenants that have moved here, and can go nowhere else by the table's version
        self._mine_version = -1
        self._stayers: set[Connection] = set()
        self._full = False
        self._asking = Pool(engine.hub, self._ask)
        self._named = lru_cache(maxsize=CACHED_LINES)(of_tenant)
        self._parse = engine.parser.parse
        self._working: dict[Connection, int] = {}  # strict: whose request each of these connections has, by number

        engine.parser.parse = self._parse_and_keep
        admit = self._admit_by_application if may_block else self._admit_by_head
        engine.run = partial(admit, engine.run)
        if engine.run_upgradable is not None:
            engine.run_upgradable = partial(admit, engine.run_upgradable)
        if engine.run_chunked is not None:
            engine.run_chunked = partial(admit, engine.run_chunked)
        if requests is not None:
            engine.request_dropped = self._drop
            self._request_done, engine.request_done = engine.request_done, self._drop_at_end
            self._upgraded, engine.connection_upgraded = engine.connection_upgraded, self._drop_at_upgrade
        self.pin = jobs_api.pin = pinner(jobs, marks, generation)

    # --- a request comes --------------------------------------------------------------------------------------------

    def _parse_and_keep(self, head: bytes | bytearray, template: dict[str, Any]) -> Any:
        result = self._parse(head, template)
        result[0][HEAD] = head
        return result

    def _admit_by_head(self, run: Run, response: Response) -> None:
        environ = response.environ
        assert environ is not None
        self._admit(run, response, environ.pop(HEAD), valid(self._tenant_of(environ)))

    def _admit_by_application(self, run: Run, response: Response) -> None:
        assert response.environ is not None
        self._asking.run((run, response, response.environ.pop(HEAD)))

    def _ask(self, job: tuple[Run, Response, bytes], seat: Any) -> None:
        """In a greenlet: the application says whose request this is."""
        run, response, head = job
        environ = response.environ
        assert environ is not None
        # The head decides. What it read of the body, or a connection that it took, could not be handed over any more.
        body, environ["wsgi.input"] = environ["wsgi.input"], NO_BODY
        offer = environ.pop(OFFER, None)
        try:
            tenant = valid(self._tenant_of(environ))
        except BaseException:  # noqa: BLE001 - SystemExit or a stray Timeout ends the request, not the worker
            self._log("error", f"--tenant: its function failed\n{traceback.format_exc().rstrip()}")
            error = RequestError(500, "it is not known whose request this is")
            self._loop.run_callback(self._refuse, response, head, error)
            return
        environ["wsgi.input"] = body
        if offer is not None:
            environ[OFFER] = offer
        self._loop.run_callback(self._admit, run, response, head, tenant)

    def _admit(self, run: Run, response: Response, head: bytes, tenant: str | None) -> None:
        environ = response.environ
        assert environ is not None
        environ["reuseport.tenant"] = tenant  # as the client wrote it: the application may look it up
        if tenant is not None:
            tenant = names.name(tenant)
        response.connection.tenant = tenant
        if tenant is not None:
            if tenant not in self._seen:
                self.seen.note(tenant)
            response.connection.name = self._named(response.connection.name, tenant)
        version = self._words[VERSION]
        free = self._requests is None or tenant is None  # no lock of its own
        if free and (not version or (version == self._mine_version and tenant in self._mine)):
            run(response)
            return
        number = number_of(environ["REMOTE_ADDR"] if tenant is None else tenant)
        request = _Request(response, run, head, tenant, number, time.monotonic())
        if not self._decided(request):
            self._line.append(request)
            self._again.set()

    def _try_again(self) -> None:
        line, self._line = self._line, []
        left = [one for one in line if one.response.connection.state is not CLOSED and not self._decided(one)]
        self._line = left + self._line
        if self._line:
            self._again.set()

    def _decided(self, request: _Request) -> bool:
        """As `_decide`. What goes wrong (the kernel has no memory for a lock) costs this request, and no other."""
        try:
            return self._decide(request)
        except Exception:  # noqa: BLE001
            self._log("error", f"a request could not be routed\n{traceback.format_exc().rstrip()}")
            self._drop(request.response.connection)
            self._refuse(
                request.response, request.head, RequestError(500, "it is not known where this request belongs")
            )
            return True

    # --- whose is it ------------------------------------------------------------------------------------------------

    def _route(self, tenant: str | None, number: int, now: float) -> tuple[Route, int]:
        """Where the request belongs by all that is known, and how far its tenant has moved."""
        if tenant is None:
            return route(self.table, None, share=number >> 2), 0
        moved = self._marks.moved(number)
        stays = self._marks.stays(number, now) if self._requests is not None else 0
        tied = partial(self._jobs.held_in, number)
        found = route(self.table, tenant, share=number >> 2, moved=moved, stays=stays, tied=tied, now=now)
        return found, moved

    def _decide(self, request: _Request) -> bool:
        """Serve the request here, pass it on or refuse it. False where it has to wait."""
        version = self._words[VERSION]
        if version and version != self.table.version:
            self._hear()
        tenant, number = request.tenant, request.number
        if not version:
            if self._requests is None or tenant is None:
                self._begin(request, 0)
                return True
            if not self._requests.take(number, wait=False):
                return False
            if self._words[VERSION] == version:
                self._begin(request, number)
                return True
            self._requests.drop(number)  # a release has begun just now
            return False
        now = time.monotonic()
        late = now >= request.since + PATIENCE
        found, moved = self._route(tenant, number, now)
        here = self._here
        if moved > here and self._words[VERSION] != self.table.version:
            # It has moved to where this worker has not heard of yet.
            if late:
                error = RequestError(503, f"its tenant has moved to generation {moved}")
                self._refuse(request.response, request.head, error)
            return late
        if found.generation != here:
            if self._words[VERSION] != self.table.version and not late:
                return False
            if self._pass(request, found.generation):
                return True
            if moved > here or (self._requests is not None and found.generation < here):
                # To serve it here would be a step back, or a second version at work.
                if not late:
                    return False
                text = f"its tenant is in generation {found.generation}, which cannot be reached"
                self._refuse(request.response, request.head, RequestError(503, text))
                return True
            # Nobody there takes it: then it stays with whom it has come to.
        if tenant is None:
            self._begin(request, 0)
            return True
        must_move = moved < here == found.generation and self.table.living[0] < here
        if must_move and not self._move(request, moved, now) and (self._requests is not None or not late):
            return False
        if self._requests is None:
            if found.generation == here == self.table.serving and found.why in (SERVING, MOVED):
                self._remember(tenant, version)
            self._begin(request, 0)
            return True
        if not self._requests.take(number, wait=False):
            return False
        # What was true before the lock was taken need not be so now.
        if self._route(tenant, number, now)[0] != found or self._words[VERSION] != version:
            self._requests.drop(number)
            return False
        self._begin(request, number)
        return True

    def _move(self, request: _Request, moved: int, now: float) -> bool:
        """Have the tenant move here, if nothing holds it. Only its new generation moves a tenant."""
        number, here = request.number, self._here
        first = binding(self.table, moved, here, now)
        if self._requests is not None and not self._requests.claim(number, first, here):
            self._await_requests(request, first, now)
            return False
        try:
            if not self._jobs.claim(number, first, here):
                return False
            try:
                self._marks.move(number, here)
            except Full as error:
                self._no_room(error)
            finally:
                self._jobs.unclaim(number, first, here)
        finally:
            if self._requests is not None:
                self._requests.unclaim(number, first, here)
        return True

    def _await_requests(self, request: _Request, first: int, now: float) -> None:
        """The tenant's requests still run on an older generation. When that takes too long it stays there for now."""
        assert self._requests is not None
        if now < request.since + self.table.strict_wait:
            return
        for g in self.table.living:
            if first <= g < self._here and self._requests.held_in(request.number, g):
                seconds = STAY * self.table.strict_wait
                try:
                    self._marks.stay(request.number, g, now + seconds)
                except Full as error:
                    self._no_room(error)  # it waits on, until its requests there have ended
                    return
                self._say("stays", tenant=request.tenant, at=g, seconds=seconds)
                return

    def _no_room(self, error: Full) -> None:
        if not self._full:
            self._full = True
            self._log("error", f"tenants cannot be told apart any more: {error}")

    def _remember(self, tenant: str, version: int) -> None:
        if self._mine_version != version or len(self._mine) >= NAMES:
            self._mine.clear()
            self._mine_version = version
        if version == self.table.version:
            self._mine.add(tenant)

    # --- what becomes of it -----------------------------------------------------------------------------------------

    def _begin(self, request: _Request, number: int) -> None:
        """Have it answered. `number`: the tenant's, where this request's lock is to be given back at its end."""
        if number:
            self._working[request.response.connection] = number
        request.run(request.response)

    def _drop_at_end(self, response: Response, failed: bool) -> None:
        self._drop(response.connection)
        self._request_done(response, failed)

    def _drop_at_upgrade(self, connection: Connection, upgraded: Any) -> None:
        self._drop(connection)
        self._upgraded(connection, upgraded)

    def _drop(self, connection: Connection) -> None:
        """Its request is over, or does not count any more."""
        if number := self._working.pop(connection, 0):
            assert self._requests is not None
            self._requests.drop(number)

    def _pass(self, request: _Request, generation: int) -> bool:
        """Hand the connection over, with the request in front of it. False where that generation cannot be reached."""
        connection = request.response.connection
        environ = request.response.environ
        assert environ is not None
        # A body that came with its head has been taken from behind it.
        taken = environ["wsgi.input"]
        body = taken.getvalue() if type(taken) is BytesIO else b""
        if generation not in self._senders or len(request.head) + 4 + len(body) + len(connection.unread) > MOST_UNREAD:
            return False
        request.response.environ = None
        request.response.body.detach()
        connection.put_back(request.head, body)
        if not self._outgoing:
            self._loop.run_callback(self._send)
        self._outgoing.setdefault(generation, []).append(connection)
        return True

    def _send(self) -> None:
        outgoing, self._outgoing = self._outgoing, {}
        for generation, connections in outgoing.items():
            if sender := self._senders.get(generation):
                sender.give(connections)
            else:
                self._refused(generation, connections)

    def _refused(self, generation: int, connections: list[Connection]) -> None:
        """Nobody there takes them, or not these: they are this worker's again, and decided anew."""
        if (sender := self._senders.get(generation)) and not sender.has_heir:
            del self._senders[generation]
        for connection in connections:
            connection.go_on()

    def _refuse(self, response: Response, head: bytes, error: RequestError) -> None:
        response.environ = None
        response.body.detach()
        if response.connection.state is not CLOSED:
            response.connection.refuse(error, head)

    # --- what the master says ---------------------------------------------------------------------------------------

    def set_table(self, table: Table, queues: dict[int, int], workers: int) -> None:
        """`queues`: descriptors of the queues' sending ends, by generation; they are this router's from now on.

        One that is missing is that of a generation which another master does not know yet: the way there stays.
        """
        self.table = table
        self._mine.clear()
        for generation in set(self._senders).difference(table.living):
            self._senders.pop(generation).close()
        for generation, fd in queues.items():
            if generation in self._senders or generation == self._here:
                os.close(fd)
            else:
                sender = self._senders[generation] = self._make_sender(partial(self._refused, generation))
                sender.set_heir(fd, workers)

    # --- idle connections of a worker that drains -------------------------------------------------------------------

    def belongs_here(self, connection: Connection) -> bool:
        """Whether the connection's last request was of a tenant that is kept in this generation now."""
        tenant = connection.tenant
        if tenant is None or not self._words[VERSION]:
            return False
        return self._route(tenant, number_of(tenant), time.monotonic())[0].generation == self._here

    def sort_out(self, connections: list[Connection]) -> list[Connection]:
        """Of the idle connections, those that can go to the heir; the others stay while their tenants do."""
        going = []
        for connection in connections:
            if connection.can_pass and not connection.unread and self.belongs_here(connection):
                self._stayers.add(connection)
            else:
                going.append(connection)
        return going

    def no_longer_kept(self) -> list[Connection]:
        """Idle connections that were to stay and need not any more."""
        kept, self._stayers = self._stayers, set()
        return self.sort_out([connection for connection in kept if connection.state is not CLOSED])

    def abandon(self) -> None:
        """In a child that the application has forked: the queues are its parent's."""
        self._again.stop()
        self.seen.abandon()
        for sender in self._senders.values():
            sender.abandon()


def make_router(
    birth: Birth,
    engine: Any,
    make_sender: Callable[[Callable[[list[Connection]], None]], Sender],
    hear: Callable[[], None],
    say: Callable[..., None],
    has_room: Callable[[], bool],
    log: Callable[[str, str], None],
) -> Router:
    """The router that a worker's settings ask for. LoadError where the application has no such function."""
    settings, generation = birth.settings, birth.generation
    tenant_of, may_block = finder(settings.tenant)
    lock = monkey.get_original("_thread", "allocate_lock")
    locks = birth.shared["pins"]
    requests = Pins(locks, REQUESTS, generation, lock()) if settings.tenant_isolation == "strict" else None
    jobs, marks = Pins(locks, JOBS, generation, lock()), Marks.of(birth.shared["marks"], lock())
    ways = make_sender, hear, say, log, has_room
    return Router(engine, generation, tenant_of, may_block, marks, jobs, requests, *ways)
