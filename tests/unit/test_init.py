"""`reuseport init systemd`: the unit says what was said to it, and systemd reads it as it was meant."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from reuseport.cli.init import unit
from reuseport.cli.main import main
from reuseport.options import load


def made(*words: str, cwd: str = "/", user: str = "shop", **environ: str) -> list[str]:
    return unit(load(words, environ, cwd), words, ["/venv/bin/reuseport"], user).splitlines()


def value(lines: list[str], key: str) -> str:
    return next(line.partition("=")[2] for line in lines if line.startswith(f"{key}="))


def test_the_command_line_is_the_one_that_was_typed():
    lines = made("shop:app", "-b", "0.0.0.0:8000", "--env", 'A="$b" 100%\\')
    assert value(lines, "ExecStart") == (
        '/venv/bin/reuseport serve shop:app -b 0.0.0.0:8000 --env "A=\\"$$b\\" 100%%\\\\"'
    )
    assert value(lines, "ExecReload") == "/venv/bin/reuseport release --wait ready --run-dir /run/reuseport/shop"
    assert value(lines, "Type") == "notify"
    assert value(lines, "KillMode") == "process"


def test_directories_are_the_units_where_no_option_names_them():
    lines = made("shop:app")
    assert value(lines, "RuntimeDirectory") == value(lines, "StateDirectory") == "reuseport/shop"
    assert value(lines, "RuntimeDirectoryMode") == "0700"
    lines = made("shop:app", "--run-dir", "/srv/run", "--state-dir", "/srv/state")
    assert "--run-dir /srv/run" in value(lines, "ExecReload")
    assert not any(line.startswith(("RuntimeDirectory", "StateDirectory")) for line in lines)


def test_a_linked_working_directory_stays_the_link(tmp_path: Path):
    (tmp_path / "1").mkdir()
    (tmp_path / "current").symlink_to("1")
    current = str(tmp_path / "current")
    assert value(made("shop:app", cwd=current), "Environment") == f"PWD={current}"
    assert not any(line.startswith("Environment=") for line in made("shop:app", cwd=str(tmp_path / "1")))


def test_variables_that_said_something_are_said_again():
    lines = made("shop:app", REUSEPORT_WORKERS="3", WEB_CONCURRENCY="5", HOME="/root")
    assert [line for line in lines if line.startswith("Environment=")] == ["Environment=REUSEPORT_WORKERS=3"]


def test_who_it_runs_as():
    assert value(made("shop:app"), "User") == "shop"
    assert not any(line.startswith("User=") for line in made("shop:app", user="root"))
    assert not any(line.startswith("User=") for line in made("shop:app", "--user", "nobody"))
    assert value(made("shop:app", "-b", ":80"), "AmbientCapabilities") == "CAP_NET_BIND_SERVICE"
    assert not any("CAP_" in line for line in made("shop:app", "-b", ":80", user="root"))


def test_two_units_that_take_over_from_each_other_share_a_directory_that_ends_with_neither():
    assert value(made("shop:app"), "RuntimeDirectoryPreserve") == "restart"
    assert value(made("shop:app", "--takeover", "if-running"), "RuntimeDirectoryPreserve") == "yes"


def test_it_waits_for_as_long_as_a_boot_may_take():
    assert value(made("shop:app", "--boot-timeout", "10m", "--probation", "60"), "TimeoutStartSec") == "690"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "init: what for?"),
        (["docker"], "init: what for?"),
        (["systemd"], "init: which application?"),
        (["systemd", "shop:app", "--workres", "3"], "did you mean --workers"),
        (["systemd", "shop:app", "--env", "A=b\nc"], "a line break"),
    ],
)
def test_mistakes(capsys, words, message):
    assert main(["init", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze (apt: systemd)")
def test_systemd_finds_nothing_wrong_with_it(tmp_path: Path, capsys):
    assert main(["init", "systemd", "shop:app", "-b", ":80", "--user", "nobody", "--env", "A=$b 100% \\"]) == 0
    path = tmp_path / "shop.service"
    path.write_text(capsys.readouterr().out)
    done = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, check=False)
    # It also loads the machine's own units; only what it says of this one counts.
    assert [line for line in done.stderr.splitlines() if "shop.service" in line] == []
