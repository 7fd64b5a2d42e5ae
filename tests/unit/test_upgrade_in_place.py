"""What is executed at an upgrade in place, and what a master of another version makes of the state that it gets."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from reuseport.core import record
from reuseport.core.model import SERVING, Asker, Cluster, Generation, Release, Worker, Zygote
from reuseport.master import estate
from reuseport.master.upgrade import Command, Refused, Upgrade, command_of

CWD = "/srv/shop"


def test_whoever_comes_for_another_one_at_the_last_moment_is_refused_and_takes_nobodys_place(monkeypatch):
    """A SIGUSR2 that is heard between the end of the trial and the exec."""
    log, answers = [], []
    client = SimpleNamespace(done=lambda ok, **fields: answers.append(fields["error"]))
    master = SimpleNamespace(
        cluster=Cluster(), exit_status=None, log=SimpleNamespace(write=lambda level, text: log.append(text)),
        control=SimpleNamespace(clients={"client 1": client}), catch_up=lambda: upgrade.ask(),
    )  # fmt: skip
    upgrade = Upgrade(master)
    upgrade._trial, upgrade._asker = SimpleNamespace(command="it"), "client 1"
    upgrade.due = True
    monkeypatch.setattr(upgrade, "_command", lambda: "it")

    def execute(command: str) -> None:
        assert upgrade._asker == "client 1", "who is told by the next master"
        raise Refused("the kernel will not")

    monkeypatch.setattr(upgrade, "_exec", execute)
    upgrade.perform()
    assert ["under way already" in text for text in log] == [True, False]
    assert answers == ["the kernel will not"]
    assert not upgrade.due and upgrade._trial is None


@pytest.fixture
def script(tmp_path: Path):
    """Makes an executable script with such a first line; its path."""

    def make(first_line: str, mode: int = 0o755) -> str:
        path = tmp_path / "reuseport"
        path.write_text(f"{first_line}\nimport sys\n")
        path.chmod(mode)
        return str(path)

    return make


def words(argv: list[str], orig_argv: list[str], executable: str = "/usr/bin/python3") -> list[str]:
    return list(command_of(argv, orig_argv, executable, CWD).words)


@pytest.mark.parametrize(
    ("said", "first"),
    [
        ("/srv/venv/bin/python", "/srv/venv/bin/python"),
        ("venv/bin/python", f"{CWD}/venv/bin/python"),  # where it was said, not where that led to then
        ("python3", "/usr/bin/python3"),
    ],
)
def test_a_module_is_run_again_by_the_interpreter_as_it_was_said(said, first):
    rest = ["-P", "-m", "reuseport", "serve", "shop:app", "-w", "4"]
    assert words(["/lib/reuseport/__main__.py", "serve", "shop:app", "-w", "4"], [said, *rest]) == [first, *rest]


@pytest.mark.parametrize(
    ("line", "flags"),
    [
        ("#!/srv/venvs/1/bin/python", []),
        ("#!/srv/venvs/1/bin/python -I", ["-I"]),
        ("#!/usr/bin/env python3", []),
        ("#!/usr/bin/env -S python3 -P", ["-P"]),
        ("#!/bin/sh", []),  # pip's way with a path that is too long for a first line
    ],
)
def test_a_script_names_its_interpreter_afresh(script, line, flags):
    path = script(line)
    orig = ["/srv/venvs/1/bin/python", *flags, path, "serve", "shop:app"]
    command = command_of([path, "serve", "shop:app"], orig, "/srv/venvs/1/bin/python", CWD)
    assert command == Command((path, "serve", "shop:app"), (path,))


@pytest.mark.parametrize(("mode", "flags"), [(0o644, []), (0o755, ["-X", "dev"])])
def test_a_script_that_was_run_by_an_interpreter_is_run_by_it_again(script, mode, flags):
    path = script("#!/srv/venvs/1/bin/python", mode)
    orig = ["/srv/venv/bin/python", *flags, path, "serve"]
    assert words([path, "serve"], orig) == orig


def test_what_a_flipped_link_leads_to_shows_in_the_files(tmp_path):
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "python").symlink_to("/bin/true")
    link = tmp_path / "current"
    orig = [str(link / "python"), "-m", "reuseport", "serve"]
    found = []
    for name in ("1", "2"):
        link.unlink(missing_ok=True)
        link.symlink_to(name)
        found.append(command_of(["x", "serve"], orig, "", CWD))
    assert found[0].words == found[1].words == tuple(orig)
    assert [command.files for command in found] == [(f"{tmp_path}/{name}/python",) for name in ("1", "2")]


def a_cluster() -> Cluster:
    g = Generation(
        7, Release({"app": "shop:app"}, 2), 2, SERVING, 1.0, 0.5, zygote=Zygote(11, True, 0.7),
        workers={1: Worker(0, pid=12), 2: Worker(1, pid=13)}, askers=(Asker("client 1"),),
    )  # fmt: skip
    return Cluster({7: g}, 7, 2, pending=Release(workers=3), drain_askers=((Asker("client 2", "drained"), 7),))


def test_a_cluster_goes_through_json_and_back():
    assert record.cluster_of(json.loads(json.dumps(record.to_json(a_cluster())))) == a_cluster()


def test_fields_of_a_newer_version_are_passed_over_and_those_of_an_older_one_get_their_defaults():
    data = json.loads(json.dumps(record.to_json(a_cluster())))
    data["weather"] = data["generations"]["7"]["weather"] = data["generations"]["7"]["workers"]["1"]["weather"] = "fair"
    del data["served"], data["generations"]["7"]["pinned"], data["generations"]["7"]["release"]["canary"]
    assert record.cluster_of(data) == a_cluster()


def test_a_state_of_another_number_is_refused_with_its_version():
    fd = os.memfd_create("estate")
    os.write(fd, json.dumps({"v": estate.VERSION + 1, "version": "9.9 (Python 3.99)"}).encode())
    with pytest.raises(estate.EstateError, match=r"9\.9 .* is number 2, this reads 1"):
        estate.read(fd)
