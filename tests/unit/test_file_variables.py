"""Variables of --env-file where a process of root becomes the application's user: not before, and all of them then."""

from __future__ import annotations

import os
import time

import pytest

from reuseport.master import recipe
from reuseport.worker import filevariables

RECIPE = {"environment": {"OVER": "flag"}, recipe.FROM_FILES: {"PYTHONPATH": "/theirs", "OVER": "file"}}


@pytest.mark.parametrize(
    ("euid", "ids", "deferred"), [(0, (12, 12), True), (0, (0, 12), True), (0, None, False), (12, (12, 12), False)]
)
def test_what_an_interpreter_is_started_with(monkeypatch, euid, ids, deferred):
    monkeypatch.setattr(os, "geteuid", lambda: euid)
    one = {**RECIPE, "ids": ids}
    assert recipe.exec_variables(one) == ({"OVER": "flag"} if deferred else {"PYTHONPATH": "/theirs", "OVER": "flag"})
    assert recipe.deferred_variables(one) == ({"file_variables": True} if deferred else {})
    assert recipe.deferred_variables({**one, recipe.FROM_FILES: {}}) == {}


def test_what_is_taken_later(monkeypatch):
    monkeypatch.setattr(os, "environ", environment := {"OVER": "flag", "REUSEPORT_GENERATION": "3", "A": "start"})
    monkeypatch.setattr(time, "tzset", lambda: environment.update(asked=environment["TZ"]))
    filevariables.take({"OVER": "file", "REUSEPORT_GENERATION": "9", "A": "b", "TZ": "Etc/GMT+3"}, {"OVER"})
    assert environment == {
        "OVER": "flag", "REUSEPORT_GENERATION": "3", "A": "b", "TZ": "Etc/GMT+3", "asked": "Etc/GMT+3"
    }  # fmt: skip


def test_what_comes_too_late_is_named():
    assert filevariables.without_effect({"TOKEN": "secret", "PYTHONPATHS": "x"}) == ""
    text = filevariables.without_effect({"LD_PRELOAD": "secret", "PYTHONPATH": "secret"})
    assert text.startswith("PYTHONPATH, LD_PRELOAD of --env-file: ") and "secret" not in text
