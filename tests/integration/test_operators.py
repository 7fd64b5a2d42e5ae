"""Two operators, a release that boots, several servers on one machine: each command does what was meant, or nothing."""

from __future__ import annotations

import json
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Outcome, Server, wait_for
from test_takeover import log_of, second  # noqa: F401

WAITS = "basic.pass_gate('import')\n"


def outcomes(server: Server) -> dict[int, str]:
    return {line["number"]: line["outcome"] for line in server.status()["releases"]}


def boots(server: Server, version: str, *words: str) -> subprocess.Popen[str]:
    """A release of `version`, which imports for as long as the gate is closed."""
    server.write(version, WAITS)
    release = server.begin("release", "--json", *words)
    server.gate("import").await_entered()
    return release


def elsewhere(server: Server, *words: str) -> Outcome:
    """A command of an operator in another login session."""
    command = subprocess.run(
        [sys.executable, "-m", "reuseport", *words], capture_output=True, text=True, cwd=server.root,
        env=server.environment, start_new_session=True, check=False, timeout=60,
    )  # fmt: skip
    return Outcome(command.returncode, command.stdout, command.stderr)


# --- while a release boots --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["rollback", "abort"])
def test_a_rollback_while_a_release_boots_ends_it_and_changes_nothing_else(server, command):
    server.write("two")
    server.renew()
    release = boots(server, "three")
    with server.load() as load:
        outcome = server.cli(command)
        load.more(20)
    assert load.failures == [] and set(load.versions) == {"two"}
    assert outcome.exit == 0, outcome.err
    assert "generation 3 was booting, and was aborted; generation 2 serves on" in outcome.out
    left = f"{server.current} still leads to {server.releases / 'three'}"
    assert left in outcome.err and f"loaded from {server.releases / 'two'}" in outcome.err
    waited = server.end(release)
    assert waited.exit == 4
    assert (waited.json["outcome"], waited.json["ok"], waited.json["generation"]) == ("aborted", False, 3)
    assert f"generation 3 was aborted by reuseport {command} (" in waited.err and left in waited.json["warnings"][0]
    assert server.settle(2) and outcomes(server) == {1: "serving", 2: "serving", 3: "aborted"}
    lines = json.loads(server.cli("history", "--json").out)
    [aborted] = [line for line in lines if line.get("number") == 3]
    assert aborted["error"].startswith(f"by reuseport {command} (") and aborted["by"].startswith("reuseport release (")
    assert f"aborted: by reuseport {command}" in server.cli("history").out
    assert "aborted" in server.cli("history", "--html", "-").out


def test_an_abort_ends_a_release_by_signal_and_the_release_that_waits(server):
    for number in range(3):
        server.write(f"v{number}", WAITS)
        server.hup()
        server.wait(lambda s, n=number: s.booting and s.booting["directory"].endswith(f"/v{n}"), "its boot")
    behind = server.begin("release", "--json")
    server.wait(lambda s: s.booting, "the boot")
    wait_for(lambda: "waits until generation 4" in log_of(server), "the release to wait")
    outcome = server.cli("abort", "--json")
    assert outcome.exit == 0, outcome.err
    assert (outcome.json["aborted"], outcome.json["generation"], outcome.json["ok"]) == (4, 1, True)
    assert outcome.json["server"] == {"name": server.name, "pid": server.pid, "run_dir": str(server.run_dir)}
    waited = server.end(behind)
    assert waited.exit == 4 and "it had not begun" in waited.err
    server.settle(1)
    assert server.get().version == "one"
    by = {line["number"]: line["by"] for line in server.status()["releases"] if line["number"]}
    assert by[4] == "SIGHUP"


def test_there_is_nothing_to_abort(server):
    outcome = server.cli("abort")
    assert outcome.exit == 1 and "no release is under way; generation 1 serves" in outcome.err
    assert server.settle(1)


def test_an_abort_that_nobody_waits_for(server):
    release = boots(server, "two")
    outcome = server.cli("abort", "--wait", "none", "--json")
    assert outcome.exit == 0 and outcome.json["aborted"] == 2
    assert server.end(release).exit == 4
    server.settle(1)


def test_an_abort_of_a_takeover_is_told_to_the_other_master(server, second):  # noqa: F811
    two = second(server, code=WAITS).launch()
    two.gate("import").await_entered()
    outcome = server.cli("abort")
    assert outcome.exit == 0, outcome.err
    assert two.await_exit() == 1
    assert "nothing was taken over: generation 2 was aborted by reuseport abort" in log_of(two)
    assert server.settle(1) and server.status()["master"]["pid"] == server.pid


def test_an_abort_works_behind_an_upgrade_in_place(server):
    release = boots(server, "two")
    assert server.cli("upgrade").exit == 0
    assert server.cli("rollback").exit == 0
    waited = server.end(release)
    assert waited.exit == 4 and waited.json["outcome"] == "aborted"
    server.settle(1)


# --- two operators ----------------------------------------------------------------------------------------------------


@pytest.fixture
def five(server) -> Server:
    """Versions one, two and three have served."""
    for version in ("two", "three"):
        server.write(version)
        server.renew()
    return server


def test_two_operators_at_once_go_back_one_version(five):
    both = [five.begin("rollback", "--json") for _ in range(2)]
    answers = [five.end(command) for command in both]
    assert [answer.exit for answer in answers] == [0, 0], [answer.err for answer in answers]
    for answer in answers:
        assert (answer.json["from"], answer.json["source"], answer.json["generation"]) == (3, 2, 4)
    five.settle(4)
    assert five.get().version == "two"


def test_a_second_operator_is_told_what_the_first_one_did(five):
    first = five.cli("rollback")
    assert "rolled back from generation 3 to the version of 2: generation 4 serves" in first.out
    assert first.out.startswith(f"server {five.name} (pid {five.pid}, run directory {five.run_dir})\n")
    late = elsewhere(five, "rollback")
    assert late.exit == 0 and "already rolled back from generation 3 to the version of 2" in late.out
    assert "by reuseport rollback (" in late.out and five.get().version == "two"
    refused = elsewhere(five, "rollback", "--from", "3")
    assert refused.exit == 1 and "--from 3: that generation does not serve, generation 4 does" in refused.err
    assert five.status().serving == 4
    further = elsewhere(five, "rollback", "--from", "4")
    assert further.exit == 0 and five.get().version == "one"


def test_a_rollback_during_the_probation_ends_the_command_that_waits_for_it(serve):
    server = serve("--probation", "60").start()
    server.write("two")
    release = server.begin("release", "--json")
    server.wait(lambda s: s.serving == 2, "the new version, on probation")
    outcome = server.cli("rollback")
    assert outcome.exit == 0, outcome.err
    waited = server.end(release)
    assert waited.exit == 4 and waited.json["outcome"] == "superseded"
    assert "generation 2 served, and was rolled back to the version of 1" in waited.err
    assert server.get().version == "one"


# --- several servers --------------------------------------------------------------------------------------------------


# A server's processes are known by its name, and other tests run beside these.
ALPHA, BETA = (f"{word}-{secrets.token_hex(4)}" for word in ("alpha", "beta"))
FOREIGN = f'this run directory belongs to "{ALPHA}", not "{BETA}"'


def named(serve: Callable[..., Server], name: str, beside: Server | None = None, **fields) -> Server:
    server = serve("--standby", "0", workers=1, **fields)
    home = beside.run_dir.parent.parent if beside else server.root / "xdg"
    server.name, server.run_dir = name, home / "reuseport" / name
    server.env = {"XDG_RUNTIME_DIR": str(home)}
    server.run_dir.parent.mkdir(parents=True, exist_ok=True)
    return server


@pytest.fixture
def servers(serve) -> tuple[Server, Server]:
    alpha = named(serve, ALPHA).launch()
    beta = named(serve, BETA, alpha).launch()
    alpha.settle()
    beta.settle()
    return alpha, beta


def test_a_named_server_is_never_exchanged_for_another_one(servers):
    """What the environment and the working directory say points at alpha."""
    alpha, beta = servers
    (alpha.root / "reuseport.toml").write_text(f'run_dir = "{alpha.run_dir}"\n')
    assert json.loads(alpha.cli("status", "--json", "-n", BETA).out)["master"]["pid"] == beta.pid
    assert alpha.cli("release", "-n", BETA, "--json").json["server"]["name"] == BETA
    beta.settle(2)
    stopped = alpha.cli("stop", "-n", BETA, "--json")
    assert stopped.exit == 0 and stopped.json["server"]["pid"] == beta.pid
    assert beta.await_exit() == 0 and alpha.settle(1)
    for command in ("stop", "status", "release", "rollback", "abort", "promote", "upgrade", "tenants", "stacks"):
        refused = alpha.cli(command, "--run-dir", str(alpha.run_dir), "-n", BETA)
        assert refused.exit == 3 and FOREIGN in refused.err, command
        assert refused.out == ""
    (beta.run_dir / "history.jsonl").unlink()
    for path in sorted(beta.run_dir.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    beta.run_dir.rmdir()
    for command in ("stop", "status", "history", "hold acme", "move acme"):
        refused = alpha.cli(*command.split(), "-n", BETA)
        assert refused.exit == 3 and ALPHA not in refused.out, command
        assert f'REUSEPORT_RUN_DIR: {FOREIGN}: {alpha.run_dir}' in refused.err
    assert alpha.settle(1)


@pytest.mark.parametrize("takeover", [(), ("--takeover",), ("--takeover", "if-running")])
def test_a_server_of_another_name_neither_starts_in_its_place_nor_takes_it_over(serve, takeover):
    alpha = named(serve, ALPHA).start()
    beta = named(serve, BETA, alpha)
    beta.options += takeover
    beta.run_dir = alpha.run_dir  # by the environment, while -n says beta
    outcome = beta.run()
    assert outcome.exit == 1
    assert f'REUSEPORT_RUN_DIR: {FOREIGN}: {alpha.run_dir}' in outcome.err
    assert alpha.settle(1) and alpha.alive


def test_a_server_of_another_name_does_not_adopt_the_workers_of_one_that_died(serve):
    alpha = named(serve, ALPHA).start()
    pids = alpha.status().pids()
    alpha.signal(signal.SIGKILL)
    alpha.await_exit()
    beta = named(serve, BETA, alpha)
    beta.run_dir = alpha.run_dir
    outcome = beta.run()
    assert outcome.exit == 1 and FOREIGN in outcome.err
    again = named(serve, ALPHA, alpha)
    again.write("one")
    again.start()
    assert again.status().pids() == pids


def test_a_server_of_another_name_says_that_it_goes_on_with_its_history(serve):
    alpha = named(serve, ALPHA).start()
    assert alpha.cli("stop").exit == 0
    beta = named(serve, BETA, alpha)
    beta.run_dir = alpha.run_dir
    beta.start()
    beta.settle(2)
    assert f'REUSEPORT_RUN_DIR: {alpha.run_dir} has the history of "{ALPHA}", not of "{BETA}"' in log_of(beta)


def test_a_file_that_the_command_line_names_wins_over_the_environment(serve, tmp_path: Path):
    alpha = named(serve, ALPHA).start()
    beta = named(serve, BETA, alpha)
    own = beta.run_dir
    file = tmp_path / "beta.toml"
    file.write_text(f'run_dir = "{own}"\n')
    beta.options += ("-c", str(file))
    beta.run_dir = alpha.run_dir  # says the environment
    beta.launch()
    wait_for(lambda: "does not count" in log_of(beta), "the remark")
    beta.run_dir = own
    beta.settle(1)
    assert alpha.cli("status", "-c", str(file), "--json").json["master"]["pid"] == beta.pid
    assert alpha.cli("stop", "-c", str(file)).exit == 0
    assert beta.await_exit() == 0 and alpha.settle(1)
