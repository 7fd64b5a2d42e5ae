"""The running event loop belongs to a greenlet, not to the thread of all greenlets."""

from __future__ import annotations

import asyncio
import asyncio.events
import importlib.util
import sys

import gevent
import gevent.event
import greenlet
import pytest

from reuseport.worker import eventloops, interrupts


@pytest.fixture(autouse=True)
def adapted(monkeypatch):
    plain = asyncio.events._set_running_loop
    monkeypatch.setattr(asyncio.events, "_set_running_loop", plain)
    monkeypatch.setattr(asyncio, "_set_running_loop", plain)
    before = greenlet.gettrace()
    eventloops._adapt()
    yield
    assert greenlet.gettrace() is before
    assert asyncio._get_running_loop() is None


def now():
    """The running loop, and its current task."""
    loop = asyncio._get_running_loop()
    return loop, None if loop is None else asyncio.current_task()


def test_greenlets_run_loops_side_by_side_and_each_sees_its_own():
    def run(name):
        async def work():
            mine = now()
            assert None not in mine
            for _ in range(5):
                gevent.sleep(0)  # the others' turn
                assert now() == mine
                await asyncio.sleep(0)
                assert now() == mine
            return name

        assert now() == (None, None)
        assert asyncio.run(work()) == name
        assert now() == (None, None)
        return name

    greenlets = [gevent.spawn(run, number) for number in range(4)]
    gevent.joinall(greenlets, raise_error=True)
    assert [one.value for one in greenlets] == list(range(4))


def test_a_greenlet_without_a_loop_sees_none_while_others_wait_and_fail():
    go_on, seen = gevent.event.Event(), []

    async def wait():
        go_on.wait()
        raise ValueError("late")

    def fails():
        with pytest.raises(ValueError, match="late"):
            asyncio.run(wait())
        assert now() == (None, None)

    running = gevent.spawn(fails)
    gevent.sleep(0)
    seen.append(now())
    thrown = gevent.spawn(fails)
    gevent.sleep(0)
    thrown.kill(ValueError("late"))
    seen.append(now())
    thrown.get()
    assert greenlet.gettrace() is not None, "one loop still runs"
    go_on.set()
    running.get()
    assert seen == [(None, None)] * 2


def test_a_loop_within_a_running_loop_is_refused_as_ever():
    async def inner():
        pass

    async def outer():
        coroutine = inner()
        try:
            with pytest.raises(RuntimeError, match="running event loop"):
                asyncio.run(coroutine)
        finally:
            coroutine.close()

    asyncio.run(outer())


def test_a_tracer_that_was_there_is_called_and_stays():
    told = []

    def tracer(event, args):
        told.append(event)

    async def switch():
        gevent.sleep(0)

    before = greenlet.settrace(tracer)
    try:
        asyncio.run(switch())
        assert told.count("switch") >= 2
        assert greenlet.gettrace() is tracer
    finally:
        greenlet.settrace(before)


def test_another_tracer_that_came_meanwhile_stays_and_loops_still_work():
    def later(event, args):
        previous(event, args)

    async def switch():
        nonlocal previous
        previous = greenlet.settrace(later)
        gevent.sleep(0)

    previous = None
    asyncio.run(switch())
    assert greenlet.gettrace() is later
    asyncio.run(switch())
    greenlet.settrace(None)


def run_side_by_side():
    """Two greenlets run a loop at once, and this one sees none."""

    async def work():
        mine = now()
        for _ in range(3):
            gevent.sleep(0.001)  # gevent's selector does this, and is not patched in here
            await asyncio.sleep(0)
            assert now() == mine
        return True

    both = [gevent.spawn(asyncio.run, work()) for _ in range(2)]
    while not all(one.ready() for one in both):
        gevent.sleep(0)
        assert now() == (None, None)
    gevent.joinall(both, raise_error=True)


def beside_a_running_loop(function):
    """Call it while a loop runs in another greenlet. That loop must notice nothing."""

    async def work():
        mine = now()
        while not over:
            gevent.sleep(0.001)  # gevent's selector does this, and is not patched in here
            await asyncio.sleep(0)
            assert now() == mine

    over = []
    running = gevent.spawn(asyncio.run, work())
    while greenlet.gettrace() is None:
        gevent.sleep(0)
    try:
        function()
    finally:
        over.append(True)
        running.get(timeout=10)
    run_side_by_side()


def test_loops_stay_apart_after_the_stack_was_too_deep_at_a_switch():
    def dive(depth):
        if depth:
            dive(depth - 1)
        else:
            gevent.sleep(0)

    def dive_deeper_each_time():
        too_deep = 0
        for depth in range(sys.getrecursionlimit() - 60, sys.getrecursionlimit()):
            try:
                dive(depth)
                gevent.sleep(0)  # what was raised in the tracer comes here
            except RecursionError:
                too_deep += 1
        return too_deep

    def check():
        assert gevent.spawn(dive_deeper_each_time).get(timeout=10)
        gevent.sleep(0.001)
        run_side_by_side()

    beside_a_running_loop(check)


def test_a_tracer_that_greenlet_has_removed_comes_back():
    def check():
        tracer = greenlet.gettrace()
        greenlet.settrace(None)  # as greenlet does when not even the tracer's first line was reached
        gevent.sleep(0.005)
        assert greenlet.gettrace() is tracer
        run_side_by_side()

    beside_a_running_loop(check)


def test_a_tracer_that_was_lost_is_forgotten_with_its_last_loop():
    async def work():
        greenlet.settrace(None)

    asyncio.run(work())
    assert asyncio.events._set_running_loop._tracers == {}
    run_side_by_side()


@pytest.mark.parametrize("where", ["the tracer", "a tracer before it"])
def test_what_is_raised_at_a_switch_comes_where_the_greenlet_waits_next(monkeypatch, where):
    class Alarm(BaseException):
        """As a signal's handler raises it."""

    def strike():
        if armed and greenlet.getcurrent() is armed[0]:
            armed.clear()
            raise Alarm

    def work():
        gevent.sleep(0)
        armed.append(greenlet.getcurrent())
        try:
            gevent.sleep(0)
            assert not armed
            gevent.sleep(10)
        except Alarm:
            return "caught"

    def check():
        tracer = greenlet.gettrace()
        if where == "the tracer":
            swap = tracer._swap
            monkeypatch.setattr(tracer, "_swap", lambda target: (swap(target), strike()))
        else:
            monkeypatch.setattr(tracer, "_before", lambda event, args: strike())
        assert gevent.spawn(work).get(timeout=5) == "caught"
        assert greenlet.gettrace() is tracer

    armed = []
    beside_a_running_loop(check)


def test_a_signal_s_exception_at_a_switch_leaves_the_tracer(monkeypatch):
    class Alarm(Exception):
        pass

    def handler(number, frame):
        raise Alarm

    def work():
        try:
            gevent.sleep(10)
        except Alarm:
            return "caught"

    def check():
        waiting = gevent.spawn(work)
        gevent.sleep(0)
        monkeypatch.setattr(interrupts, "getcurrent", lambda: waiting)
        interrupts.Guarded(handler)(14, frame)
        assert waiting.get(timeout=5) == "caught"

    class Frame:
        f_code = eventloops._Tracer.__call__.__code__
        f_back = None

    frame = Frame()
    beside_a_running_loop(check)


def test_each_native_thread_has_loops_of_its_own():
    def run():
        async def work():
            gevent.sleep(0.001)
            return now()[0] is not None

        return asyncio.run(work())

    async def work():
        mine = now()
        assert pool.apply(run) is True
        return now() == mine

    pool = gevent.get_hub().threadpool
    assert asyncio.run(work())


def test_asyncio_is_adapted_behind_its_import(monkeypatch):
    adapted = []
    monkeypatch.setattr(eventloops, "_adapt", lambda: adapted.append(True))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.delitem(sys.modules, eventloops.MODULE)
    eventloops.install()
    eventloops.install()
    assert isinstance(sys.meta_path[0], eventloops._Finder) and not isinstance(sys.meta_path[1], eventloops._Finder)
    assert sys.meta_path[0].find_spec("asyncio.futures", asyncio.__path__) is None
    spec = importlib.util.find_spec(eventloops.MODULE)
    assert not any(isinstance(one, eventloops._Finder) for one in sys.meta_path)
    module = importlib.util.module_from_spec(spec)
    assert adapted == []
    spec.loader.exec_module(module)
    assert adapted == [True]
    assert module.__loader__ is module.__spec__.loader and not isinstance(module.__loader__, eventloops._Loader)
    assert module.BaseEventLoop


def test_asyncio_that_was_imported_before_is_adapted_at_once(monkeypatch):
    adapted = []
    monkeypatch.setattr(eventloops, "_adapt", lambda: adapted.append(True))
    eventloops.install()
    assert adapted == [True]
