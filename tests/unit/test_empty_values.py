"""An empty value, as a script makes it of a variable that is not set, is an error in every option of every command.

The tests walk over the declarations, so a new option is in them.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from test_cli import home  # noqa: F401

from reuseport.cli.main import COMMANDS, main, module_of
from reuseport.options import OPTIONS, Option, OptionError, load
from reuseport.options.manual import manual, options_page
from reuseport.options.table import FLAG, FOREIGN

BEFORE = {"init": ["systemd"], "completion": []}  # what a command wants first


def flags() -> Iterator[tuple[str, Option, str]]:
    for command in COMMANDS:
        for option in module_of(command).TAKES:
            if FLAG in option.where and not option.positional and not option.is_switch:
                for flag in (option.flag, *option.flags, *option.aliases):
                    yield command, option, flag


FLAGS = [pytest.param(*found, id=f"{found[0]} {found[2]}") for found in flags()]


def test_every_command_with_options_is_walked_over():
    walked = {command for command, _, _ in flags()}
    assert walked >= set(COMMANDS) - {"completion", "translate"} and len(FLAGS) > 300


@pytest.mark.parametrize(("command", "option", "flag"), FLAGS)
def test_an_empty_value_is_an_error_that_names_the_option(command, option, flag, capsys):
    if option.empty:
        return
    for words in ([flag, ""], [flag, " "], [f"{flag}="]) if flag.startswith("--") else ([flag, ""], [flag, " "]):
        assert main([command, *BEFORE.get(command, []), *words]) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"reuseport: {flag}: the value is empty"), err
        assert len(err.splitlines()) == 1


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_argument_is_an_error(command, value, capsys):
    assert main([command, value]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    positional = [option for option in module_of(command).TAKES if option.positional]
    if positional and command != "init":
        assert err.startswith(f"reuseport: {positional[0].name}: the value is empty")


def test_help_explains_nothing_that_is_empty(capsys):
    assert main(["help", ""]) == 2
    assert main(["help", "serve", ""]) == 2


@pytest.mark.parametrize("entry", FOREIGN, ids=lambda entry: entry.flag)
def test_an_option_of_gunicorn_is_no_exception(entry):
    if entry.takes_value:
        with pytest.raises(OptionError, match=f"{entry.flag}: the value is empty"):
            load([entry.flag, "", "app:app"], {}, "/")


LISTS = [option for option in OPTIONS if option.repeatable and FLAG in option.where]


@pytest.mark.parametrize("option", LISTS, ids=lambda option: option.name)
def test_a_list_of_nothing_is_an_error(option):
    with pytest.raises(OptionError, match=option.flag):
        load([option.flag, "," if not option.kind.split(",") else "", "app:app"], {}, "/")


def test_what_an_empty_value_means_is_told_where_the_option_is_told_of():
    told = [option for option in OPTIONS if option.empty]
    assert [option.name for option in told] == ["access_log", "statsd_prefix", "dogstatsd_tags"]
    page, text = options_page(), manual(OPTIONS, "x", "y", 100)
    for option in told:
        assert f"Empty: {option.empty}." in page and f"Empty: {option.empty}." in " ".join(text.split())
        assert getattr(load([option.flag, "", "app:app"], {option.variable: "x"}, "/"), option.name) == ""


def test_an_empty_variable_counts_as_not_set_unless_it_decides_which_server_is_meant():
    for option in OPTIONS:
        if option.decisive:
            with pytest.raises(OptionError, match=f"{option.variable}: the value is empty"):
                load(["app:app"], {option.variable: ""}, "/")
        else:
            load(["app:app"], {option.variable: ""}, "/")
    assert {option.name for option in OPTIONS if option.decisive} == {"name", "run_dir", "config"}


def test_one_empty_value_in_a_list_of_a_file_is_an_error(tmp_path):
    (tmp_path / "reuseport.toml").write_text('reload_extra_file = ["a", ""]\n')
    with pytest.raises(OptionError, match="reload_extra_file: one of the values is empty"):
        load(["app:app"], {}, str(tmp_path))
