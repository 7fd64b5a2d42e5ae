"""Which server a command acts on, whatever the command line, the environment and a file say together.

Alpha is the server that the environment or the file points at, beta the one that the operator means.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_cli import SERVES, FakeMaster, home, master  # noqa: F401

from reuseport.cli import client
from reuseport.cli.main import main
from reuseport.options import OptionError, load
from reuseport.options.identity import is_borrowed, is_stranger

# Every command that asks a master, with what it needs to be said.
ASKING = (
    ["release"], ["promote"], ["rollback"], ["rollback", "7"], ["abort"], ["hold", "acme"], ["move", "acme"], ["stop"],
    ["stop", "--now"], ["upgrade"], ["status"], ["status", "--check"], ["history"], ["tenants"], ["stacks"],
)  # fmt: skip
ACTING = [words for words in ASKING if words[0] not in ("status", "history", "tenants", "stacks")]


@pytest.fixture(autouse=True)
def no_process_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop waits for the end of the process that answers, which is this one."""
    monkeypatch.setattr(client, "_await_end", lambda *whatever: None)


@pytest.fixture
def alpha(master) -> FakeMaster:  # noqa: F811
    return master(SERVES, name="alpha")


@pytest.fixture
def beta(master) -> FakeMaster:  # noqa: F811
    return master(SERVES, name="beta")


def points_at(where: str, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if where == "environment":
        monkeypatch.setenv("REUSEPORT_RUN_DIR", str(run_dir))
    elif where == "environment with its name":
        monkeypatch.setenv("REUSEPORT_RUN_DIR", str(run_dir))
        monkeypatch.setenv("REUSEPORT_NAME", run_dir.name)
    elif where == "name alone":
        monkeypatch.setenv("REUSEPORT_NAME", run_dir.name)
    elif where == "supervisor":
        monkeypatch.setenv("RUNTIME_DIRECTORY", str(run_dir))
    elif where == "file":
        Path("reuseport.toml").write_text(f'run_dir = "{run_dir}"\nname = "{run_dir.name}"\n')
    elif where == "file without a name":
        Path("reuseport.toml").write_text(f'run_dir = "{run_dir}"\n')
    else:
        Path("elsewhere.toml").write_text(f'run_dir = "{run_dir}"\n')
        monkeypatch.setenv("REUSEPORT_CONFIG", "elsewhere.toml")


WAYS = (
    "environment", "environment with its name", "name alone", "supervisor", "file", "file without a name",
    "file of the environment",
)  # fmt: skip


@pytest.mark.parametrize("words", ASKING, ids=" ".join)
@pytest.mark.parametrize("where", WAYS)
def test_a_name_on_the_command_line_is_looked_for_by_name(where, words, alpha, beta, home, monkeypatch):  # noqa: F811
    points_at(where, home / "reuseport/alpha", monkeypatch)
    main([*words, "-n", "beta"])
    assert not alpha.asked and beta.asked


@pytest.mark.parametrize("words", ASKING, ids=" ".join)
@pytest.mark.parametrize("where", [way for way in WAYS if way != "name alone"])
def test_without_a_server_of_that_name_the_command_is_refused(
    where, words, alpha, home, monkeypatch, capsys  # noqa: F811
):  # fmt: skip
    points_at(where, home / "reuseport/alpha", monkeypatch)
    assert main([*words, "--name", "beta"]) == 3
    assert not alpha.asked
    assert f'this run directory belongs to "alpha", not "beta": {home}/reuseport/alpha' in capsys.readouterr().err


@pytest.mark.parametrize("words", ASKING, ids=" ".join)
def test_a_run_directory_and_a_name_that_do_not_belong_together(words, alpha, beta, home, capsys):  # noqa: F811
    assert main([*words, "--run-dir", f"{home}/reuseport/alpha", "-n", "beta"]) == 3
    assert not alpha.asked and not beta.asked
    assert '--run-dir: this run directory belongs to "alpha", not "beta"' in capsys.readouterr().err


@pytest.mark.parametrize("words", ASKING, ids=" ".join)
@pytest.mark.parametrize("where", ["file on the command line", "file that is found", "file of the environment", "pair"])
def test_one_source_names_a_server_and_the_run_directory_of_another(
    where, words, alpha, beta, home, monkeypatch, capsys  # noqa: F811
):  # fmt: skip
    """As in a beta.toml that was copied from alpha.toml, where only the name was changed."""
    run_dir = home / "reuseport/alpha"
    path = Path("reuseport.toml" if where == "file that is found" else "beta.toml")
    if where == "pair":
        monkeypatch.setenv("REUSEPORT_RUN_DIR", str(run_dir))
        monkeypatch.setenv("REUSEPORT_NAME", "beta")
    else:
        path.write_text(f'name = "beta"\nrun_dir = "{run_dir}"\n')
    if where == "file of the environment":
        monkeypatch.setenv("REUSEPORT_CONFIG", str(path))
    assert main([*words, "-c", "beta.toml"] if where == "file on the command line" else words) == 3
    assert not alpha.asked and not beta.asked
    assert 'this run directory belongs to "alpha", not "beta"' in capsys.readouterr().err


def test_a_run_directory_on_the_command_line_needs_no_name(alpha, home, monkeypatch):  # noqa: F811
    monkeypatch.setenv("REUSEPORT_NAME", "beta")
    assert main(["release", "--run-dir", f"{home}/reuseport/alpha"]) == 0
    assert main(["release", "--run-dir", f"{home}/reuseport/alpha", "-n", "alpha"]) == 0
    assert len(alpha.asked) == 2


@pytest.mark.parametrize("where", ["environment", "file without a name", "supervisor", "file of the environment"])
def test_a_server_of_that_name_is_found_where_a_weaker_source_leads(where, master, home, monkeypatch):  # noqa: F811
    """As `serve -n beta` in a container that sets REUSEPORT_RUN_DIR."""
    beta = master(SERVES, name="../elsewhere/x")
    beta.identity["name"] = "beta"
    points_at(where, home / "elsewhere/x", monkeypatch)
    assert main(["release", "-n", "beta"]) == 0 and len(beta.asked) == 1


@pytest.mark.parametrize("says", ['run_dir = "{home}/reuseport/beta"', 'name = "beta"', 'app = "beta:app"'])
def test_a_file_on_the_command_line_wins_over_the_environment(
    says, alpha, beta, home, monkeypatch, capsys  # noqa: F811
):  # fmt: skip
    points_at("environment", home / "reuseport/alpha", monkeypatch)
    Path("beta.toml").write_text(says.format(home=home))
    assert main(["stop", "-c", "beta.toml", "--json"]) == 0
    assert not alpha.asked and beta.asked
    assert json.loads(capsys.readouterr().out)["server"]["name"] == "beta"
    assert main(["release", "-c", "beta.toml", "-n", "alpha"]) == 0
    assert len(alpha.asked) == 1, "a flag wins over the file that is named beside it"


def test_the_environment_wins_over_the_file_that_is_found(alpha, beta, home, monkeypatch):  # noqa: F811
    points_at("file", home / "reuseport/alpha", monkeypatch)
    monkeypatch.setenv("REUSEPORT_NAME", "beta")
    assert main(["release"]) == 0 and len(beta.asked) == 1
    monkeypatch.delenv("REUSEPORT_NAME")
    monkeypatch.setenv("REUSEPORT_RUN_DIR", f"{home}/reuseport/beta")
    assert main(["release"]) == 0 and len(beta.asked) == 2
    assert not alpha.asked


def test_a_file_may_say_the_name_as_gunicorn_does(alpha, beta):
    Path("reuseport.toml").write_text('proc_name = "beta"')
    assert main(["release"]) == 0 and len(beta.asked) == 1 and not alpha.asked


def test_a_broken_file_keeps_nobody_from_stopping_a_named_server(beta):
    Path("reuseport.toml").write_text("no toml =")
    assert main(["stop", "-n", "beta"]) == 0 and len(beta.asked) == 1


def test_a_master_of_an_older_version_is_asked_for_its_status(master, home, monkeypatch, capsys):  # noqa: F811
    old = master({"event": "done", "ok": False, "error": "does not know 'who'"}, name="alpha")
    old.knows_who = False
    points_at("environment", home / "reuseport/alpha", monkeypatch)
    status = {"event": "done", "ok": True, "status": {"master": {"name": "alpha", "pid": 7, "run_dir": "/r"}}}
    old.answers[:] = [status]
    assert main(["stop", "-n", "beta"]) == 3
    assert 'belongs to "alpha", not "beta"' in capsys.readouterr().err
    assert {question["do"] for question in old.asked} <= {"who", "status"}


def test_the_question_names_the_server_for_the_case_that_it_has_changed(alpha):
    assert main(["release", "-n", "alpha"]) == 0
    assert alpha.asked[-1]["server"] == "alpha"
    assert main(["release"]) == 0
    assert "server" not in alpha.asked[-1]


@pytest.mark.parametrize("words", ACTING, ids=" ".join)
def test_what_acts_says_on_which_server(words, alpha, home, capsys):  # noqa: F811
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"server alpha (pid 4711, run directory {home}/reuseport/alpha)"
    assert main([*words, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["server"] == {"name": "alpha", "pid": 4711, "run_dir": f"{home}/reuseport/alpha"}


# --- what is left without a master ------------------------------------------------------------------------------------


def history_of(directory: Path, name: str) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    lines = [
        {"event": "started", "at": 1.0, "number": None, "name": name},
        {"event": "release", "at": 2.0, "number": 1, "outcome": "serving", "seconds": 1.0, "label": f"v-{name}"},
    ]
    (directory / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return directory


def test_a_history_is_that_of_the_server_that_was_named(home, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setenv("REUSEPORT_STATE_DIR", str(history_of(home / "state", "alpha")))
    assert main(["history", "-n", "beta"]) == 3, "the history of alpha is not shown as that of beta"
    history_of(home / "reuseport/beta", "beta")
    assert main(["history", "-n", "beta"]) == 0
    assert "v-beta" in capsys.readouterr().out
    assert main(["history", "-n", "alpha"]) == 0, "the state directory has the history of that name"
    assert main(["history"]) == 0
    assert main(["history", "--state-dir", str(home / "reuseport/beta")]) == 0
    assert capsys.readouterr().out.count("v-alpha") == 2


# --- serve ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def cwd(tmp_path: Path) -> str:
    return str(tmp_path)


def test_a_named_file_says_where_a_server_lives_before_the_environment_does(cwd):
    (Path(cwd) / "beta.toml").write_text('run_dir = "/r/beta"\nname = "beta"\nworkers = 3\n')
    environ = {"REUSEPORT_RUN_DIR": "/r/alpha", "REUSEPORT_NAME": "alpha", "REUSEPORT_WORKERS": "5"}
    read = load(["-c", "beta.toml", "b:app"], environ, cwd)
    assert (read.name, read.run_dir, read.workers) == ("beta", "/r/beta", 5)
    remarked = [remark.partition(" does not count")[0] for remark in read.remarks]
    assert sorted(remarked) == ["REUSEPORT_NAME", "REUSEPORT_RUN_DIR"]
    read = load(["-c", "beta.toml", "b:app", "--run-dir", "/r/gamma"], environ, cwd)
    assert (read.name, read.run_dir) == ("beta", "/r/gamma")
    read = load(["b:app"], {**environ, "REUSEPORT_CONFIG": "beta.toml"}, cwd)
    assert (read.name, read.run_dir) == ("alpha", "/r/alpha"), "here the file is the weaker one"


@pytest.mark.parametrize(
    ("words", "environ", "strange"),
    [
        (["-n", "beta"], {"REUSEPORT_RUN_DIR": "/r"}, True),
        (["-n", "beta", "--run-dir", "/r"], {}, True),
        (["--run-dir", "/r"], {"REUSEPORT_NAME": "beta"}, False),
        (["--run-dir", "/r"], {}, False),
        ([], {"REUSEPORT_RUN_DIR": "/r"}, True),
        ([], {"REUSEPORT_RUN_DIR": "/r", "REUSEPORT_NAME": "beta"}, True),
        (["-n", "alpha"], {"REUSEPORT_RUN_DIR": "/r"}, False),
        (["-c", "both.toml"], {}, True),
        ([], {"REUSEPORT_CONFIG": "both.toml"}, True),
        (["-c", "both.toml", "--run-dir", "/r"], {}, False),
        (["-c", "both.toml", "-n", "alpha"], {}, False),
        (["-c", "directory.toml"], {"REUSEPORT_NAME": "beta"}, False),
        (["-c", "directory.toml"], {}, True),
    ],
)
def test_in_whose_run_directory_a_server_may_start(words, environ, strange, cwd):
    """The directory is alpha's. The application is that of another server: beta:app."""
    (Path(cwd) / "both.toml").write_text('run_dir = "/r"\nname = "beta"\n')
    (Path(cwd) / "directory.toml").write_text('run_dir = "/r"\n')
    read = load(["beta:app", *words], environ, cwd)
    assert is_stranger(read, "alpha") == strange
    assert not is_stranger(read, "") and not is_stranger(read, read.name)


def test_whose_history_a_server_may_go_on_with(cwd):
    def borrowed(words: list[str], environ: dict[str, str]) -> bool:
        return is_borrowed(load(["beta:app", *words], environ, cwd), "alpha")

    assert borrowed(["-n", "beta"], {"REUSEPORT_STATE_DIR": "/s"})
    assert borrowed(["-n", "beta"], {"REUSEPORT_RUN_DIR": "/r"})
    assert not borrowed(["-n", "beta", "--state-dir", "/s"], {})
    assert not borrowed(["-n", "beta"], {"STATE_DIRECTORY": "/s", "RUNTIME_DIRECTORY": "/r"})
    assert not borrowed(["-n", "beta"], {"STATE_DIRECTORY": "/s", "REUSEPORT_RUN_DIR": "/r"})
    assert not borrowed([], {"REUSEPORT_STATE_DIR": "/s"}), "its module may just have been renamed"
    assert not borrowed(["-n", "alpha"], {"REUSEPORT_STATE_DIR": "/s"})


@pytest.mark.parametrize("variable", ["REUSEPORT_NAME", "REUSEPORT_RUN_DIR", "REUSEPORT_CONFIG"])
@pytest.mark.parametrize("value", ["", "  "])
def test_an_empty_variable_that_would_decide_is_an_error(variable, value, alpha, monkeypatch, capsys, cwd):
    monkeypatch.setenv(variable, value)
    assert main(["stop"]) == 2 and not alpha.asked
    assert f"{variable}: the value is empty" in capsys.readouterr().err
    with pytest.raises(OptionError, match=variable):
        load(["app:app"], {variable: value}, cwd)
