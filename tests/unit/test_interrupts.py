"""A signal's handler of the application's raises anywhere: no client is forgotten, and no request stays open."""

from __future__ import annotations

import ast
import contextlib
import io
import pdb
import signal
from pathlib import Path
from types import CodeType, FunctionType

import gevent
import greenlet
import pytest
from http_harness import Harness, parse, turn, wait_for

from reuseport import jobs
from reuseport.worker import (
    body,
    connection,
    gather,
    interrupts,
    lingering,
    pool,
    readers,
    response,
    stream,
    wheel,
    wsgi,
)
from reuseport.worker import engine as engine_module
from reuseport.worker.reporter import Ledger

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


def sizes(environ, start_response):
    body = b"%d;" % len(environ["wsgi.input"].read())
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


class Interrupted(BaseException):
    pass


class Handler:
    """Raises, and counts how often."""

    calls = 0
    error: type[BaseException] = TimeoutError

    def __call__(self, number, frame):
        self.calls += 1
        raise self.error


@pytest.fixture
def reported(monkeypatch):
    errors = []
    monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda context, kind, error, tb: errors.append(error))
    return errors


@pytest.fixture
def handler(monkeypatch, reported):
    monkeypatch.setattr(signal, "signal", signal.signal)
    monkeypatch.setattr(signal, "getsignal", signal.getsignal)
    interrupts.guard()
    handler = Handler()
    before = signal.signal(signal.SIGALRM, handler)
    yield handler
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def engine(handler, request):
    harness = Harness(sizes, buffer_chunked=getattr(request, "param", False))
    yield harness
    harness.close()


MODULES = (body, connection, engine_module, gather, lingering, pool, readers, response, stream, wheel, wsgi)


class Ticking(ast.NodeTransformer):
    """Puts a call of TICK before each statement of each function."""

    def __init__(self, name: str) -> None:
        self._name = name

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if not isinstance(node, (ast.Module, ast.ClassDef)):
            for field in ("body", "orelse", "finalbody"):
                if isinstance(statements := getattr(node, field, None), list):
                    setattr(
                        node, field, [one for statement in statements for one in (self._tick(statement), statement)]
                    )
        return node

    def _tick(self, statement: ast.stmt) -> ast.stmt:
        call = ast.parse(f"{TICK}({self._name!r}, {statement.lineno})").body[0]
        return ast.copy_location(call, statement)


TICK = "_tick_of_the_test"


def functions_of(owner) -> list:
    """A module's, or a class's, and those of its classes."""
    found = []
    for value in vars(owner).values():
        value = getattr(value, "fget", getattr(value, "__func__", value))
        if isinstance(value, type) and value.__module__ == getattr(owner, "__name__", None):
            found += functions_of(value)
        elif isinstance(value, FunctionType) and not value.__name__.startswith("<"):
            found.append(value)
    return found


def codes_in(code: CodeType) -> list[CodeType]:
    inner = [one for one in code.co_consts if isinstance(one, CodeType)]
    return inner + [one for each in inner for one in codes_in(each)]


@pytest.fixture(autouse=True, scope="module")
def ticking():
    """The server's functions, each with a tick before each statement. Of sys.settrace, greenlets and native threads
    together CPython 3.11 makes an endless loop."""
    before, marks = {}, (set(interrupts._servers), set(interrupts._applications))
    for module in MODULES:
        tree = Ticking(module.__name__).visit(ast.parse(Path(module.__file__).read_text()))
        codes = {code.co_qualname: code for code in codes_in(compile(tree, module.__file__, "exec"))}
        setattr(module, TICK, lambda *line: Interruption.tick(line))
        for function in functions_of(module):
            code = codes.get(function.__code__.co_qualname)
            if function.__module__ == module.__name__ and code and code.co_freevars == function.__code__.co_freevars:
                before[function] = function.__code__
                for marked in (interrupts._servers, interrupts._applications):
                    if function.__code__ in marked:
                        marked.add(code)
                function.__code__ = code
    assert len(before) > 100
    yield
    for function, code in before.items():
        function.__code__ = code
    interrupts._servers, interrupts._applications = marks
    for module in MODULES:
        delattr(module, TICK)


class Interruption:
    """Raises the signal the first time that the hub, or with `everywhere` a request's greenlet, too, comes to a line of
    the server's."""

    now: Interruption | None = None

    def __init__(self, at: tuple[str, int] | None = None, everywhere: bool = False) -> None:
        self.at = at
        self.lines: dict[tuple[str, int], None] = {}  # that it came by, in this order
        self._everywhere = everywhere

    def __enter__(self) -> Interruption:
        Interruption.now = self
        return self

    def __exit__(self, *_: object) -> None:
        Interruption.now = None

    @staticmethod
    def tick(line: tuple[str, int]) -> None:
        self, current = Interruption.now, greenlet.getcurrent()
        if self is not None and (isinstance(current, gevent.hub.Hub) or (self._everywhere and current.parent)):
            self.lines[line] = None
            if line == self.at:
                self.at = None
                signal.raise_signal(signal.SIGALRM)


def converse(engine) -> bytes:
    """All that a client can do; what it hears until the server closes, or has answered all."""
    with engine.connect() as client:
        # Of a client that was aborted, the rest cannot be sent.
        with contextlib.suppress(OSError):
            client.send(GET)
            client.send(GET * 2)
            client.send(POST + b"ab")
            client.send(b"cde")
            client.send(CHUNKED + b"2\r\nab")
            client.send(b"\r\n3\r\ncde\r\n0\r\n\r\n")
            client.send(GET[:9])
            client.send(GET[9:])
            wait_for(lambda: not client.receive() or client.received.count(b"HTTP/1.1 ") == 6)
        return client.received


WHOLE = [b"0;", b"0;", b"0;", b"5;", b"5;", b"0;"]


def lines_of(story, everywhere: bool = False) -> list[tuple[str, int]]:
    with Interruption(None, everywhere) as interruption:
        story()
    return list(interruption.lines)


@pytest.mark.parametrize("engine", [False, True], ids=["streamed", "buffered"], indirect=True)
def test_the_loop_goes_on_as_if_nothing_had_been_raised(engine, handler, reported):
    """At each line of the server that runs in the hub."""
    for line in lines_of(lambda: converse(engine)):
        with Interruption(line):
            assert [answer.body for answer in parse(converse(engine))] == WHOLE, line
    turn()
    assert handler.calls > 100
    assert [type(error) for error in reported] == [TimeoutError] * handler.calls
    assert engine.errors() == []


@pytest.mark.parametrize("error", [TimeoutError, Interrupted])  # an OSError, as a client's own, and one of no kind
def test_a_request_that_is_interrupted_ends_and_so_do_all_behind_it(engine, handler, reported, error):
    """At each line of the server that runs in a request's greenlet. What answers a client gets is right, and whole, or
    one that says that it failed, or broken off where that can be seen; and nothing is left open."""
    handler.error = error
    for line in lines_of(lambda: converse(engine), everywhere=True):
        with Interruption(line, everywhere=True):
            data = converse(engine)
        assert engine.engine.requests == 0, line
        expected = iter(WHOLE)
        for answer in parse(data):
            assert answer.body == next(expected) or answer.status in (400, 500) or not answer.whole, (line, data)
        wait_for(lambda: not engine.engine.connections)
    assert handler.calls - len(reported) > 50
    assert [answer.body for answer in parse(converse(engine))] == WHOLE


def test_what_was_set_is_what_signal_tells(handler):
    assert signal.getsignal(signal.SIGALRM) is handler
    assert signal.signal(signal.SIGALRM, signal.SIG_IGN) is handler
    assert signal.signal(signal.SIGALRM, handler) is signal.SIG_IGN
    with pytest.raises(TimeoutError):
        signal.raise_signal(signal.SIGALRM)


def test_handlers_are_set_and_asked_for_by_name_as_ever(handler):
    assert signal.signal(signalnum=signal.SIGALRM, handler=signal.SIG_IGN) is handler
    assert signal.getsignal(signalnum=signal.SIGALRM) is signal.SIG_IGN
    signal.signal(signal.SIGALRM, handler)


def test_a_real_time_signal_has_no_name_and_its_handler_s_error_is_reported_like_any(handler, reported):
    unnamed = signal.SIGRTMIN + 1
    before = signal.signal(unnamed, handler)
    gevent.get_hub().loop.run_callback(signal.raise_signal, unnamed)
    turn()
    signal.signal(unnamed, before)
    assert [type(error) for error in reported] == [TimeoutError]


def test_a_body_whose_reading_was_interrupted_can_be_read_on(engine):
    """By a Timeout between two chunks, when nothing was lost."""

    def application(environ, start_response):
        pieces = []
        while not pieces or pieces[-1] != b"":
            with gevent.Timeout(0.001, False):
                pieces.append(environ["wsgi.input"].read1())
        body = b"".join(pieces)
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]

    engine.application = application
    with engine.connect() as client:
        client.send(CHUNKED)
        for piece in (b"2\r\nab\r\n", b"3\r", b"\ncde", b"\r\n0\r", b"\n\r\n"):
            gevent.sleep(0.01)
            client.send(piece)
        wait_for(lambda: client.receive() and client.received.endswith(b"abcde"))


@pytest.mark.parametrize("pieces", [(POST + b"ab", b"cde"), (CHUNKED + b"2\r\nab\r\n", b"3\r\ncde\r\n0\r\n\r\n")])
@pytest.mark.parametrize(
    "read",
    [
        lambda file: file.read(),
        lambda file: file.read(5),
        lambda file: file.readinto(bytearray(5)),
        lambda file: file.readline(),
        lambda file: file.readlines(),
    ],
)
def test_a_body_of_which_a_call_has_lost_a_part_cannot_be_read_on(engine, read, pieces):
    """A Timeout ends a call that has taken something, and what comes behind that would look like all of the body."""

    def application(environ, start_response):
        start_response("200 OK", [])
        for patience in (0.01, 10):
            with gevent.Timeout(patience, False):
                return [str(read(environ["wsgi.input"])).encode()]
        raise AssertionError("the rest did not come")

    engine.application = application
    first, rest = pieces
    with engine.connect() as client:
        client.send(first)
        gevent.sleep(0.05)
        with contextlib.suppress(OSError):
            client.send(rest)
        client.read_all()
        (answer,) = parse(client.received)
        assert (answer.status, b"interrupted" in answer.body) == (400, True)


@pytest.mark.parametrize("read", [lambda file: file.read(), lambda file: next(file)])
def test_a_body_of_which_nothing_had_come_can_be_read_after_a_timeout(engine, read):
    def application(environ, start_response):
        start_response("200 OK", [])
        while True:
            with gevent.Timeout(0.01, False):
                return [read(environ["wsgi.input"])]

    engine.application = application
    with engine.connect() as client:
        client.send(POST)
        gevent.sleep(0.03)
        client.send(b"abcde")
        wait_for(lambda: client.receive() and client.received.endswith(b"abcde"))


def test_what_was_half_sent_never_looks_whole(engine):
    """The application takes an exception from write() for a reason to write something else."""

    def application(environ, start_response):
        write = start_response("200 OK", [("Content-Length", str(length + 10))])
        try:
            with gevent.Timeout(0.01):
                write(bytes(length))
        except gevent.Timeout:
            write(bytes(10))
        return []

    length = 1 << 22
    engine.application = application
    with engine.connect() as client:
        client.send(GET)
        wait_for(lambda: not engine.engine.requests)
        with contextlib.suppress(ConnectionResetError):
            client.read_all()
        assert len(client.received) < length


def test_behind_hints_that_were_half_sent_nothing_comes(engine):
    """It would be taken for the rest of their fields."""

    def application(environ, start_response):
        with gevent.Timeout(0.01, False):
            environ["wsgi.early_hints"]([("Link", "x" * (1 << 22))])
        start_response("200 OK", [])
        return [b"the answer"]

    engine.application = application
    with engine.connect() as client:
        client.send(GET)
        gevent.sleep(0.1)  # the Timeout comes, and nothing is read before
        with contextlib.suppress(ConnectionResetError):
            client.read_all()
        assert b"the answer" not in client.received


def test_what_begins_and_ends_a_job_is_not_interrupted(handler, reported, monkeypatch):
    """It would be counted for ever, or be written down and never begin."""
    assert Ledger  # whose module marks them
    told = []
    monkeypatch.setattr(jobs, "note", lambda one, begins: signal.raise_signal(signal.SIGALRM))
    monkeypatch.setattr(jobs, "changed", lambda: told.append(len(jobs.active)))
    with jobs.job("export"):
        assert told == [1]
    assert told == [1, 0]
    turn()
    assert [type(error) for error in reported] == [TimeoutError, TimeoutError]
    with jobs.job("export"), pytest.raises(TimeoutError):
        signal.raise_signal(signal.SIGALRM)


def test_a_debugger_does_not_get_the_interrupt(handler):
    """pdb sets a handler at `continue`. A Ctrl-C is the master's, and must not stop a worker in the server's code."""
    debugger = pdb.Pdb(stdin=io.StringIO(), stdout=io.StringIO())
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert signal.signal(signal.SIGINT, debugger.sigint_handler) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        signal.signal(signal.SIGALRM, debugger.sigint_handler)
        assert signal.getsignal(signal.SIGALRM) == debugger.sigint_handler
    finally:
        signal.signal(signal.SIGINT, before)
