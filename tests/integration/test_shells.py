"""What shells complete: bash and fish are asked, as far as they are installed, and zsh reads its script."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from reuseport.cli import completion
from reuseport.cli.main import COMMANDS, main

needs = {
    shell: pytest.mark.skipif(shutil.which(shell) is None, reason=f"{shell} is not installed")
    for shell in completion.TARGETS
}


def script(shell: str, directory: Path, capsys) -> Path:
    assert main(["completion", shell]) == 0
    path = directory / shell
    path.write_text(capsys.readouterr().out)
    return path


def told(*command: str, directory: Path | None = None) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True, cwd=directory)
    assert done.stderr == ""
    return done.stdout.splitlines()


BASH = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _reuseport; printf "%s\\n" "${COMPREPLY[@]}"'


@needs["bash"]
def test_bash(tmp_path: Path, capsys) -> None:
    path = script("bash", tmp_path, capsys)
    (tmp_path / "a dir").mkdir()
    (tmp_path / "a file").touch()

    def complete(*words: str) -> list[str]:
        # --flag=value is three words to bash.
        apart = [part for word in words for part in (word.replace("=", " = ").split(" ") if "=" in word else [word])]
        found = told("bash", "-c", BASH, "bash", str(path), "reuseport", *apart, directory=tmp_path)
        return [one for one in found if one]

    assert complete("re") == ["release"]
    assert set(COMMANDS) | {"help"} <= set(complete(""))
    assert complete("serve", "--log-l") == ["--log-level"]
    assert complete("serve", "--no-check") == ["--no-check-memory"]
    assert complete("serve", "-w", "2", "--preload", "a") == ["auto", "always"]
    assert complete("serve", "--preload=n") == ["never"]
    assert complete("serve", "--preload=") == ["auto", "always", "never"]
    assert complete("serve", "--chdir", "a") == ["a dir"]
    assert sorted(complete("serve", "-c", "a")) == ["a dir", "a file"]
    assert "root" in complete("serve", "--user", "ro")
    assert complete("serve", "--workers", "") == []
    assert complete("release", "--wait", "d") == ["drained"]
    assert complete("release", "--w") == ["--wait"]
    assert complete("help", "sta") == ["status", "stacks"]
    assert complete("completion", "") == list(completion.TARGETS)
    assert complete("completion", "bash", "") == []
    assert complete("nonsense", "--") == []


@needs["zsh"]
def test_zsh_can_read_it(tmp_path: Path, capsys) -> None:
    assert told("zsh", "-f", "-n", str(script("zsh", tmp_path, capsys))) == []


@needs["fish"]
def test_fish(tmp_path: Path, capsys) -> None:
    path = script("fish", tmp_path, capsys)

    def complete(line: str) -> list[str]:
        lines = told("fish", "--no-config", "-c", f'source {path}; complete -C "{line}"')
        return [one.partition("\t")[0] for one in lines]

    assert complete("reuseport relea") == ["release"]
    assert sorted(complete("reuseport serve --preload ")) == ["always", "auto", "never"]
    assert "--log-level" in complete("reuseport serve --log")
    assert sorted(complete("reuseport completion ")) == sorted(completion.TARGETS)
