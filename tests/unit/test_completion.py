"""What is completed is what is declared."""

from __future__ import annotations

import pytest

from reuseport.cli import completion
from reuseport.cli.main import COMMANDS, main, module_of
from reuseport.options.arguments import flags_of
from reuseport.options.table import FLAG


def test_every_flag_of_every_command_is_there(capsys) -> None:
    assert main(["completion", "bash"]) == 0
    bash = capsys.readouterr().out
    made = {one.name: {name for flag in one.flags for name in flag.names} for one in completion.commands()}
    assert set(made) == {*COMMANDS, "help"}
    for command in COMMANDS:
        typed = {flag for flag in flags_of(module_of(command).TAKES) if not flag.startswith("--no-")}
        aliases = {alias for option in module_of(command).TAKES for alias in option.aliases}
        assert typed - aliases <= made[command], command
    assert all(name in bash for names in made.values() for name in names)


def test_what_a_command_takes_is_what_its_help_explains() -> None:
    for command in COMMANDS:
        text = module_of(command).help_text()
        for option in module_of(command).TAKES:
            if option.positional or FLAG not in option.where or command == "doctor":
                continue  # the doctor's help refers to that of `serve`
            assert f"{option.flag} " in text or f"{option.flag}\n" in text, (command, option.flag)


@pytest.mark.parametrize("argv", [[], ["csh"], ["bash", "zsh"]])
def test_another_shell(argv: list[str], capsys) -> None:
    assert main(["completion", *argv]) == 2
    assert capsys.readouterr().err == "reuseport: completion: for which shell? reuseport completion bash|zsh|fish\n"
