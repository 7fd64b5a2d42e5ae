"""Which exit handlers of an import only its zygote runs, and which process is the last with that import."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import pathlib
import shutil
import tempfile
import weakref

import pytest

from reuseport.ipc.lifeline import Family
from reuseport.worker.exithandlers import _Matching, removes_files

PATH = "/nonexistent/cache"
TEMPORARY = None  # a TemporaryDirectory, in the tests


def removes_a_tree():
    shutil.rmtree(PATH, ignore_errors=True)


def removes_inside_another_function():
    with contextlib.suppress(OSError):
        (lambda: os.remove(PATH))()


def removes_its_own():
    os.unlink(f"/nonexistent/{os.getpid()}.sock")


def cleans_a_temporary_directory():
    TEMPORARY.cleanup()


def cleans_up():
    Exporter().cleanup()


def forgets():
    [PATH].remove(PATH)


class Cache:
    def close(self):
        pathlib.Path(PATH).unlink()


class Exporter:
    def shutdown(self):
        return "flushed"

    cleanup = close = shutdown


@pytest.mark.parametrize(
    "handler",
    [
        shutil.rmtree, os.remove, os.unlink, os.rmdir, os.removedirs, pathlib.Path(PATH).unlink, removes_a_tree,
        removes_inside_another_function, lambda: os.rmdir(PATH), functools.partial(shutil.rmtree, PATH),
        functools.partial(functools.partial(removes_a_tree)), Cache().close, contextlib.ExitStack().close,
    ],
)  # fmt: skip
def test_a_handler_that_removes_files_is_the_zygote_s(handler):
    assert removes_files(handler)


@pytest.mark.parametrize(
    "handler",
    [
        print, logging.shutdown, Exporter().shutdown, Exporter().close, cleans_up, removes_its_own, forgets,
        weakref.finalize._exitfunc, functools.partial(print, "rmtree"), Exporter,
    ],
)  # fmt: skip
def test_any_other_handler_runs_in_each_process(handler):
    assert not removes_files(handler)


def test_a_handler_that_asks_for_the_pid_removes_files_of_its_process():
    assert removes_files(removes_its_own, own=True) and not removes_files(removes_its_own)


def test_a_temporary_directory_is_known_by_the_name_that_a_handler_uses(monkeypatch):
    with tempfile.TemporaryDirectory() as _:
        pass
    directory = tempfile.TemporaryDirectory()
    try:
        assert removes_files(directory.cleanup)
        assert not removes_files(cleans_a_temporary_directory)
        monkeypatch.setitem(globals(), "TEMPORARY", directory)
        assert removes_files(cleans_a_temporary_directory)
        assert removes_files(lambda: directory.cleanup())
    finally:
        directory.cleanup()


def test_a_matching_object_is_equal_to_what_it_matches():
    """As `atexit.unregister` compares: the handler comes first."""
    assert (shutil.rmtree == _Matching(removes_files)) is True
    assert (print == _Matching(removes_files)) is False


def test_no_object_of_the_application_is_woken_or_ends_the_process(monkeypatch):
    class Lazy:
        @property
        def __class__(self):
            raise RuntimeError("woken")

        def cleanup(self):
            raise RuntimeError("called")

        def __eq__(self, other):
            raise RuntimeError("compared")

        __hash__ = None

    monkeypatch.setitem(globals(), "TEMPORARY", Lazy())
    assert not removes_files(cleans_a_temporary_directory)
    assert not removes_files(Lazy().cleanup) and not removes_files(Lazy())
    assert (Lazy().cleanup == _Matching(removes_files)) is False
    assert _Matching(removes_files) != Lazy()


def others(family: Family, count: int) -> list[Family]:
    """The same family, as processes that were forked from this one have it."""
    made = []
    for _ in range(count):
        one = object.__new__(Family)
        for name, fd in vars(family).items():
            setattr(one, name, os.dup(fd))
        made.append(one)
    return made


def test_the_last_of_a_family_knows_that_it_is_the_last():
    first = Family()
    second, child = others(first, 2)
    child.forget()
    assert not first.leave()
    assert second.leave()


def test_of_two_that_leave_at_once_one_is_the_last():
    first = Family()
    (second,) = others(first, 1)
    os.close(second._writing)  # it has, and has not looked yet
    second._writing = os.open("/dev/null", os.O_RDONLY)
    assert first.leave()
    assert not second.leave()
