"""The limit of open files that programs get: lowered while one is started, unless the process has many descriptors."""

from __future__ import annotations

import os
import resource

import pytest

from reuseport.worker import programs

has_few_descriptors = programs._has_few_descriptors


@pytest.fixture
def raised(monkeypatch):
    """The limit of this process, with 300 as the one that programs get. It counts as one with few descriptors."""
    monkeypatch.setattr(programs, "_has_few_descriptors", lambda: True)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr(programs.State, "original", 300)
    monkeypatch.setattr(programs.State, "raised", soft)
    monkeypatch.setattr(programs.State, "lowered", False)
    yield soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def limit(*_: object, **__: object) -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def test_the_limit_is_low_only_while_a_program_is_started(raised):
    assert programs._limited(limit)("sh", env={}) == 300
    assert limit() == raised

    def fails() -> int:
        assert limit() == 300
        raise FileNotFoundError

    with pytest.raises(FileNotFoundError):
        programs._limited(fails)()
    assert limit() == raised


def test_a_start_inside_a_start_is_no_second_one(raised):
    inner = programs._limited(limit)
    assert programs._limited(inner)() == 300
    assert programs._limited(lambda: (inner(), limit())[1])() == 300
    assert limit() == raised


def test_a_process_with_many_descriptors_lowers_the_limit_of_the_child(raised, monkeypatch):
    monkeypatch.setattr(programs, "_has_few_descriptors", has_few_descriptors)
    told = []
    monkeypatch.setattr(resource, "prlimit", lambda *words: told.append(words))
    monkeypatch.setattr(os, "listdir", lambda path: [str(number) for number in range(300 - programs.SPARE + 1)])

    def start() -> int:
        assert limit() == raised
        return 4711

    assert programs._limited(start)() == 4711
    assert told == [(4711, resource.RLIMIT_NOFILE, (300, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))]


def test_a_limit_that_the_application_has_set_stays(raised):
    programs.nofile.set_limit(200)
    assert programs._limited(limit)() == 200
    programs.give_back()
    assert limit() == 200
    assert programs._limited_system(len)("true") == len("true")


def test_a_process_that_is_forked_while_a_program_is_started_has_its_own_limit(raised):
    def forked() -> int:
        programs.renew()
        found = limit()
        programs.nofile.set_limit(300)
        return found

    assert programs._limited(forked)() == raised
    assert limit() == raised
    programs.give_back()
    assert limit() == 300


def test_a_shell_lowers_its_limit_itself(raised):
    assert programs._limited_system(lambda command: command)("exit 3") == b"ulimit -S -n 300; exit 3"


def test_nothing_is_wrapped_where_no_limit_was_raised():
    before = os.posix_spawn
    for original in (None, resource.getrlimit(resource.RLIMIT_NOFILE)[0]):
        programs.guard(original)
        assert os.posix_spawn is before
