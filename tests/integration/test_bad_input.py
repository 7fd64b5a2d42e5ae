"""What a user can get wrong, at a start and at a release: a clear line, and nothing lost."""

from __future__ import annotations

import os
import shutil
import signal
import sys

import pytest
from harness import make_venv, wait_for
from test_addresses import refused


@pytest.fixture
def configured(serve):
    """A server with a configuration file."""
    server = serve("-c", "conf.toml")
    (server.root / "conf.toml").write_text("# nothing yet\n")
    return server.start()


def assert_nothing_changed(server, before, outcome, *words):
    assert outcome.exit == 1, outcome
    for word in words:
        assert word in outcome.err
    assert "Traceback" not in outcome.err
    status = server.settle(before.serving)
    assert status.pids() == before.pids()
    assert status["releases"][-1]["outcome"] == "failed"
    assert server.get().version == "one"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--wokers", "3"), "--workers"),
        (("--workers", "many"), "'many'"),
        (("--workers", "0"), "--workers"),
        (("-c", "nowhere.toml"), "nowhere.toml"),
        (("-c", "broken.toml"), "broken.toml:2"),
        (("-c", "wrong.toml"), "wrong.toml: timeout"),
        (("-c", "."), "is a directory"),
        (("--daemon",), "--daemon"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(serve, words, says):
    server = serve(*words)
    (server.root / "broken.toml").write_text("workers = 2\nbind = =\n")
    (server.root / "wrong.toml").write_text('timeout = "soon"\n')
    assert says in refused(server, exit=2)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--chdir", "nowhere"), "nowhere"),
        (("--python", "/nowhere/python"), "/nowhere/python"),
        (("--user", "nosuchuser"), "nosuchuser"),
        (("--log-file", "nowhere/log"), "nowhere"),
        (("--pid", "nowhere/pid"), "nowhere"),
        (("--run-dir", "a-file"), "a-file"),
        (("--run-dir", "/tmp/" + "long" * 30), "too long"),
    ],
)
def test_what_is_not_there_is_one_line_and_exit_1(serve, words, says):
    server = serve(*words)
    (server.root / "a-file").write_text("")
    assert says in refused(server)


def test_current_leads_nowhere_at_a_start(serve):
    server = serve()
    server.flip(server.releases / "gone")
    assert "gone" in refused(server)


def test_no_application_is_named(serve):
    server = serve()
    server.app = "--factory"
    assert "MODULE:APP" in refused(server, exit=2)


def test_a_run_directory_of_another_master_is_refused_and_that_one_serves_on(server, serve):
    line = refused(serve(run_dir=server.run_dir))
    assert server.name in line and str(server.run_dir) in line
    assert server.get().status == 200
    assert server.release().exit == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_run_directory_of_another_user_is_refused(serve):
    server = serve()
    server.run_dir.mkdir()
    os.chown(server.run_dir, 65534, 65534)
    assert "65534" in refused(server)


def test_a_run_directory_without_room_is_refused(serve):
    """A limit on the size of files stands for a full disk: the counters' files are the largest."""
    server = serve()
    server.python = shutil.which("prlimit") or pytest.skip("there is no prlimit(1)")
    server.flags = ("--fsize=1000000", sys.executable)
    line = refused(server)
    assert line.startswith(f"reuseport: --run-dir: {server.run_dir}: ")
    assert line.endswith("; what lies there takes 8 MB")


def test_a_run_directory_that_a_dead_master_left_is_taken(serve):
    first = serve().start()
    os.kill(first.pid, 9)
    first.await_exit()
    for pid in list(first.processes()):
        os.kill(pid, 9)
    second = serve(run_dir=first.run_dir).start()
    assert second.get().status == 200


def test_a_run_directory_that_was_removed_fails_releases_and_interrupts_nobody(server):
    address = server.address
    shutil.rmtree(server.run_dir)
    server.hup()
    wait_for(lambda: f"the run directory {server.run_dir} has gone" in server.log.read_text(), "the reason")
    assert server.get(address=address).version == "one"
    server.signal(signal.SIGTERM)
    assert server.await_exit() == 0


def test_a_release_with_current_leading_nowhere(server):
    before = server.status()
    server.flip(server.releases / "gone")
    assert_nothing_changed(server, before, server.release(), "--chdir", "gone")
    server.write("two")
    server.renew()


def test_a_release_with_a_broken_configuration(configured):
    server, before = configured, configured.status()
    config = server.root / "conf.toml"
    for text, says in (("workers = [\n", "conf.toml"), ('workers = "many"\n', "workers"), ("wokers = 2\n", "wokers")):
        config.write_text(text)
        assert_nothing_changed(server, before, server.release(), says)
    config.unlink()
    assert_nothing_changed(server, before, server.release(), "conf.toml", "no such file")
    config.write_text("workers = 3\n")
    server.write("two")
    server.renew()
    assert server.get().version == "two"


def test_a_hup_with_a_broken_configuration_shows_in_the_status(configured):
    (configured.root / "conf.toml").write_text("workers = [\n")
    configured.hup()
    status = configured.wait(lambda s: s["releases"][-1]["outcome"] == "failed")
    assert "conf.toml" in status["releases"][-1]["error"]
    assert status.is_settled()


def test_what_only_a_start_can_change_does_not_fail_a_release(configured):
    server, address = configured, configured.address
    (server.root / "conf.toml").write_text('umask = "077"\nlog_file = "other.log"\nbacklog = 5\n')
    server.write("two")
    server.renew()
    assert server.get(address=address).version == "two"
    assert not (server.root / "other.log").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the user")
def test_another_user_at_a_release_is_not_another_user_until_the_next_start(configured):
    (configured.root / "conf.toml").write_text('user = "nobody"\n')
    configured.write("two")
    configured.renew()
    facts = configured.get("/facts").json["facts"]
    assert (facts["uid"], configured.get().version) == (0, "two")


def test_a_release_brings_its_own_virtual_environment_and_one_without_it_changes_nothing(serve):
    server = serve("--python", "venv/bin/python")
    for version in ("one", "two"):
        code = f"import only_in_{version}\nbasic.extra['prefix'] = basic.sys.prefix\n"
        directory = server.write(version, code, flip=version == "one")
        make_venv(directory / "venv")
        packages = next(directory.glob("venv/lib/python3*/site-packages"))
        (packages / f"only_in_{version}.py").write_text("")
    server.start()
    assert server.get().json["prefix"] == str(server.releases / "one" / "venv")
    server.flip(server.releases / "two")
    server.renew()
    assert server.get().version == "two"
    assert server.get().json["prefix"] == str(server.releases / "two" / "venv")
    assert server.settle(2).current["interpreter"] == str(server.releases / "two" / "venv" / "bin" / "python")

    for case, says in (("no interpreter", "venv/bin/python"), ("not executable", "venv/bin/python")):
        directory = server.write("three", flip=False)
        python = directory / "venv" / "bin" / "python"
        if case == "not executable":
            python.parent.mkdir(parents=True)
            python.write_text("")
        server.flip(directory)
        outcome = server.release()
        assert outcome.exit == 1, case
        assert says in outcome.err
    python.unlink()
    python.write_text("not a program\n")
    python.chmod(0o755)
    outcome = server.release()
    assert outcome.exit == 1
    assert "cannot execute" in outcome.err
    server.settle(2)
    assert server.get().version == "two"


def test_a_worker_killed_after_its_interpreter_has_gone_is_replaced(serve):
    """A fork needs no interpreter on disk; a zygote that comes back would."""
    server = serve("--python", "venv/bin/python")
    directory = server.write("one")
    make_venv(directory / "venv")
    server.start()
    shutil.rmtree(directory / "venv")
    victim = min(server.status().pids())
    os.kill(victim, 9)
    server.wait(lambda s: s.is_settled() and victim not in s.pids())
    assert server.get().version == "one"


def test_a_zygote_that_cannot_come_back_costs_nothing_until_a_release(serve):
    server = serve()
    server.start()
    shutil.rmtree(server.releases / "one")
    zygote = server.status().current["zygote"]["pid"]
    os.kill(zygote, 9)
    server.wait(lambda s: not s.current["zygote"] or s.current["zygote"]["pid"] != zygote)
    assert {server.get().version for _ in range(10)} == {"one"}
    server.write("two")
    server.renew()
    server.settle(2)
    assert server.get().version == "two"
