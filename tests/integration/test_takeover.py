"""Two independent masters: the second takes over from the first, and whatever fails before that changes nothing."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest
from harness import Server, ask, is_gone, make_venv, parent_of, title_of, wait_for
from test_metrics import ANYWHERE, scrape
from test_supervision import Supervisor, launch_with, listener

from reuseport.master.roster import start_time

JOBBING = "import jobbing\napplication = jobbing.make(VERSION)\n"
TENANTED = "import tenanted\napplication = tenanted.make(VERSION)\n"


@pytest.fixture
def second(serve):
    """Makes a master that takes over from another one: a directory of its own, and the run directory of both."""

    def make(first: Server, *options: str, version: str = "two", code: str = "", **fields) -> Server:
        server = serve("--takeover", *options, run_dir=first.run_dir, **fields)
        server.name = first.name  # by which both know their processes
        server.write(version, code)
        return server

    return make


def await_owner(server: Server, generation: int | None = None) -> None:
    """Until this is the master, and serves at full strength, whatever still drains."""
    server.wait(
        lambda s: (
            s["master"]["pid"] == server.pid
            and generation in (None, s.serving)
            and len(s.workers("serving")) == s.current["wanted"]
        ),
        f"{server.root} to have taken over",
    )


def take_over(server: Server, generation: int | None = None) -> Server:
    server.launch()
    await_owner(server, generation)
    return server


def log_of(server: Server) -> str:
    return server.log.read_text(errors="replace")


def await_log(server: Server, text: str) -> None:
    wait_for(lambda: text in log_of(server), f"{text!r} in the log of {server.root}")


def processor_time(pid: int) -> float:
    """Seconds of the processor that it has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def fails(server: Server, why: str) -> str:
    outcome = server.run()
    assert outcome.exit == 1
    assert why in outcome.err
    assert "Traceback" not in outcome.err or "app.py" in outcome.err
    return outcome.err


# --- it goes well -------------------------------------------------------------------------------------------------


def test_no_request_fails_and_kept_connections_move(server, second):
    with server.load(one_shot=2, keep_alive=4) as load:
        two = take_over(second(server), 2)
        load.more(100)
        assert server.await_exit() == 0, "it leaves with its last process"
        load.more(100)
        assert load.failures == []
        assert load.versions[-1] == "two"
    assert two.get().version == "two"
    status = two.settle(2)
    assert all(parent_of(pid) == two.pid for pid in status.pids())
    assert status["master"]["earlier"] == []


def test_an_idle_connection_is_answered_by_the_new_version(server, second):
    connection = server.client()
    assert ask(connection, "/").version == "one"
    two = take_over(second(server))
    port = connection.sock.getsockname()[1]
    assert ask(connection, "/").version == "two"
    assert connection.sock.getsockname()[1] == port
    two.settle(2)


def test_another_directory_and_another_virtual_environment(server, second, tmp_path):
    python = make_venv(tmp_path / "venv")
    two = take_over(second(server, python=python))
    facts = two.get("/facts").json["facts"]
    assert facts["prefix"] == str(tmp_path / "venv") != server.status()["generations"][0]["interpreter"]
    assert facts["cwd"] == str(two.releases / "two")


def test_the_new_master_releases_and_the_old_one_refuses(server, second):
    gate = server.gate("slow")
    slow = server.get_later("/gate?name=slow")
    gate.await_entered()
    two = take_over(second(server))
    server.hup()
    await_log(server, f"no release here: superseded by master {two.pid}")
    two.write("three")
    two.hup()
    two.await_version("three")
    status = two.wait(lambda s: (s.serving, s.draining) == (3, [1]), "the second version to have gone")
    assert status["master"]["earlier"] == [server.pid]
    assert f"master {server.pid} leaves with its last process" in two.cli("status").out
    assert f"superseded by master {two.pid}" in title_of(server.pid)
    # Back to the version that still drains: a copy of its zygote would be the old master's child.
    assert two.cli("rollback", "1").exit == 0
    assert {parent_of(pid) for pid in two.status().pids()} == {two.pid}
    gate.open()
    assert slow.result().version == "one"
    assert server.await_exit() == 0
    assert two.get().version == "one"
    two.settle(4)


def test_a_superseded_master_sleeps(server, second):
    """Whatever becomes of the other one: a descriptor that nobody looks at any more would keep it turning."""
    gate = server.gate("slow")
    slow = server.get_later("/gate?name=slow")
    gate.await_entered()
    two = take_over(second(server))
    assert two.address
    two.process.kill()
    two.process.wait()
    before, since = processor_time(server.pid), time.monotonic()
    for _ in range(100):
        assert two.get(address=two.address).version == "two"
        time.sleep(0.01)
    assert processor_time(server.pid) - before < 0.05 * (time.monotonic() - since)
    gate.open()
    assert slow.result().version == "one"


@pytest.mark.parametrize("where", ["thread", "process"])
def test_a_running_job_ends_and_then_the_old_master_leaves(serve, second, where):
    one = serve()
    one.write("one", JOBBING)
    one.start()
    if where == "thread":
        one.get("/spawn?name=work&where=thread")
    else:
        one.get("/begin?name=work")
    (pid,) = one.gate("work").await_entered()
    two = take_over(second(one, code=JOBBING))
    status = two.wait(lambda s: s.generation(1)["waits_for"]["jobs"], "the job to be known to the new master")
    assert [job["name"] for job in status.generation(1)["waits_for"]["jobs"]] == ["export"]
    assert one.alive
    assert not is_gone(pid)
    one.gate("work").open()
    assert one.await_exit() == 0
    one.gate("work-ended").await_entered()
    two.settle(2)
    assert two.question(do="history")["history"][-1]["jobs"][0]["name"] == "export"


def test_a_job_of_the_old_version_gets_its_process_through_its_own_door(serve, second):
    """The request that begins it runs in the old generation, under a master that is gone from there."""
    one = serve()
    one.write("one", JOBBING + "from basic import pass_gate\n")
    one.start()
    block = one.get_later("/block?name=held")
    one.gate("held").await_entered()
    kept = one.client()
    kept.request("GET", "/begin?name=work")
    kept.getresponse().read()
    (pid,) = one.gate("work").await_entered()
    two = take_over(second(one, code=JOBBING))
    zygote = two.status().generation(1)["zygote"]["pid"]
    assert parent_of(zygote) == one.pid == parent_of(pid)
    one.gate("held").open()
    assert block.result().version == "one"
    one.gate("work").open()
    assert one.await_exit() == 0


def test_a_tenant_stays_where_its_job_runs_and_moves_when_it_ends(serve, second):
    options = ("--tenant", "header:X-Tenant")
    one = serve(*options)
    one.write("one", TENANTED)
    one.start()
    address = one.address

    def version(tenant: str, path: str = "/") -> str:
        with contextlib.closing(one.client(address)) as connection:
            connection.request("GET", path, headers={"X-Tenant": tenant})
            return __import__("json").loads(connection.getresponse().read())["version"]

    assert version("acme", "/job?name=job") == "one"
    one.gate("job").await_entered()
    two = take_over(second(one, *options, code=TENANTED))
    for _ in range(20):
        assert (version("acme"), version("globex")) == ("one", "two")
    # Released once more, by the new master: acme stays where its job is.
    two.write("three", TENANTED)
    assert two.release().exit == 0
    for _ in range(20):
        assert (version("acme"), version("globex")) == ("one", "three")
    one.gate("job").open()
    wait_for(lambda: version("acme") == "three", "acme to move")
    assert one.await_exit() == 0
    two.settle(3)


def test_a_takeover_changes_whose_a_request_is(serve, second):
    """No rule, one by a header, one by another header, and none: each generation goes by its own."""
    one = serve()
    one.write("one", TENANTED)
    one.start()
    address = one.address

    def version(header: str = "X-None", path: str = "/") -> str:
        with contextlib.closing(one.client(address)) as connection:
            connection.request("GET", path, headers={header: "acme"})
            return json.loads(connection.getresponse().read())["version"]

    two = take_over(second(one, "--tenant", "header:X-A", code=TENANTED), 2)
    assert one.await_exit() == 0
    assert version("X-A", "/job?name=first") == "two"
    two.gate("first").await_entered()
    assert two.cli("hold", "globex").exit == 0
    two.write("three", TENANTED)
    assert two.release().exit == 0
    assert (version("X-A"), version("X-B")) == ("two", "three")  # acme is kept, as always with one rule

    three = take_over(second(one, "--tenant", "header:X-B", version="four", code=TENANTED), 4)
    # The job goes on where it is. It keeps no tenant, and neither does the hold.
    for header in ("X-A", "X-B", "X-None"):
        assert [version(header) for _ in range(10)] == ["four"] * 10
    # Its worker tells the new master of the job when it has said hello to it.
    three.wait(
        lambda s: [job["name"] for job in s.generation(2)["waits_for"]["jobs"]] == ["export"], "the job to be told of"
    )
    assert three.question(do="tenants")["tenants"] == []
    assert version("X-B", "/job?name=second") == "four"
    three.gate("second").await_entered()
    three.write("five", TENANTED)
    assert three.release().exit == 0
    assert (version("X-A"), version("X-B")) == ("five", "four")
    two.gate("first").open()
    three.wait(lambda s: 2 not in s.numbers, "the first job's generation to end")
    assert two.await_exit() == 0

    four = take_over(second(one, version="six", code=TENANTED), 6)
    assert {version("X-A"), version("X-B"), version()} == {"six"}
    assert not four.question(do="tenants")["ok"]
    three.gate("second").open()
    assert three.await_exit() == 0
    assert four.settle(6)


def test_a_takeover_of_a_takeover(server, second):
    gate = server.gate("slow")
    slow = server.get_later("/gate?name=slow")
    gate.await_entered()
    two = take_over(second(server), 2)
    second_gate = two.gate("slow")
    slower = two.get_later("/gate?name=slow")
    second_gate.await_entered()
    three = take_over(second(two, version="three"), 3)
    assert sorted(three.status()["master"]["earlier"]) == sorted([server.pid, two.pid])
    assert three.get().version == "three"
    second_gate.open()
    assert slower.result().version == "two"
    assert two.await_exit() == 0
    assert server.alive
    gate.open()
    assert slow.result().version == "one"
    assert server.await_exit() == 0
    three.settle(3)


def test_a_stop_stops_all_of_it(server, second):
    gate = server.gate("slow")
    slow = server.get_later("/gate?name=slow")
    gate.await_entered()
    two = take_over(second(server))
    stop = two.begin("stop")
    two.wait(lambda s: s["master"]["state"] == "stopping", "the stop to begin")
    gate.open()
    assert slow.result().version == "one"
    assert two.end(stop).exit == 0
    assert (two.await_exit(), server.await_exit()) == (0, 0)
    left = {path.name for path in server.run_dir.iterdir() if path.suffix != ".jsonl"}
    assert left == {"master.lock", "work"}


def test_a_superseded_master_that_is_told_twice_does_not_wait(server, second):
    gate = server.gate("slow")
    slow = server.get_later("/gate?name=slow")
    gate.await_entered()
    two = take_over(second(server))
    server.signal(signal.SIGTERM)
    await_log(server, "leaving with the last process anyway")
    assert server.alive
    server.signal(signal.SIGTERM)
    assert server.await_exit() == 0
    gate.open()
    assert slow.result().version == "one"
    two.settle(2)


def test_both_supervisors_hear_what_concerns_them(serve, second, tmp_path):
    supervisor, other = Supervisor(str(tmp_path / "old")), Supervisor(str(tmp_path / "new"))
    one = serve(env={"NOTIFY_SOCKET": supervisor.address, "FDSTORE": "16"}).start()
    supervisor.await_words("READY")
    gate = one.gate("slow")
    slow = one.get_later("/gate?name=slow")
    gate.await_entered()
    try:
        two = take_over(second(one, env={"NOTIFY_SOCKET": other.address, "FDSTORE": "16"}))
        other.await_words("READY")
        assert other.told[-1].get("MAINPID", str(two.pid)) == str(two.pid)
        wait_for(lambda: supervisor.status.startswith(f"superseded by master {two.pid}"), "the old unit's status")
        # It is not told to be stopping: no clock of its runs against the jobs.
        assert "STOPPING" not in supervisor.words()
        assert "generation 1 (one) drains: 1 request" in other.status
        # The slots are kept where they belong by now.
        assert (len(supervisor.stored), len(other.stored)) == (0, 2)
        gate.open()
        assert slow.result().version == "one"
        assert one.await_exit() == 0
    finally:
        supervisor.close()
        other.close()


def test_unix_sockets_and_their_paths(serve, second, tmp_path):
    path = tmp_path / "socket"
    one = serve(bind=(f"unix:{path}",)).start()
    two = take_over(second(one, bind=(f"unix:{path}",)))
    assert one.await_exit() == 0
    assert two.get(address=f"unix:{path}").version == "two"
    assert two.cli("stop").exit == 0
    assert not path.exists()


def test_the_path_of_a_socket_unit_stays_the_units(serve, second, tmp_path):
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as passed:
        passed.bind(str(path))
        passed.listen()
        one = launch_with(serve(bind=(f"unix:{path}",)), [passed.fileno()], ["web"])
        one.settle()
    two = take_over(second(one, bind=(f"unix:{path}",)))
    assert two.get(address=f"unix:{path}").version == "two"
    assert two.cli("stop").exit == 0
    assert path.exists()


def test_a_pid_file_of_both_is_the_new_masters(serve, second, tmp_path):
    options = ("--pid", str(tmp_path / "pid"))
    one = serve(*options).start()
    two = take_over(second(one, *options))
    assert one.await_exit() == 0
    assert int((tmp_path / "pid").read_text()) == two.pid
    three = take_over(second(two, version="three"))
    assert two.await_exit() == 0
    assert not (tmp_path / "pid").exists()
    three.settle(3)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_masters_of_root_with_a_user(serve, second, interpreter_for_all):
    options = ("--user", "nobody", "--python", interpreter_for_all)
    one = serve(*options).start()
    two = take_over(second(one, *options))
    assert one.await_exit() == 0
    assert two.get("/facts").json["facts"]["uid"] == os.stat(two.run_dir / "work").st_uid != 0
    assert "--user and --group must be those" in fails(second(two, version="three"), "--user")


def test_what_is_lost_while_nobody_is_the_master_is_added_to_what_was_lost_before(serve, second):
    one = serve()
    one.write("one", JOBBING)
    one.start()
    for name in ("first", "second"):
        one.get(f"/spawn?name={name}&where=thread")
        (pid,) = one.gate(name).await_entered()
        if name == "first":
            os.kill(pid, signal.SIGKILL)
            one.wait(lambda s: s["lost"]["count"] == 1 and s.is_settled(), "the first loss")
    two = second(one, "--probation", "2", "--metrics", ANYWHERE, code=JOBBING).launch()
    one.wait(lambda s: s.serving == 2 and len(s.workers("serving")) == 2, "the new version to serve")
    two.signal(signal.SIGSTOP)
    try:
        await_log(one, "handing over to")
        os.kill(pid, signal.SIGKILL)
        # A process that is killed loses its title before it is dead for the next master.
        wait_for(lambda: not start_time(pid), "the worker's end")
    finally:
        two.signal(signal.SIGCONT)
    await_owner(two)
    lost = two.status()["lost"]
    assert (lost["count"], [job["how"] for job in lost["jobs"]]) == (
        2, ["was killed by SIGKILL", "died while there was no master"],
    )  # fmt: skip
    assert scrape(two)["reuseport_jobs_ended_total", ("outcome", "lost")] == 2


# --- it fails, and nothing has changed --------------------------------------------------------------------------------


def test_code_that_does_not_import_is_told_of_by_both(server, second):
    before = server.status().pids()
    error = fails(second(server, code="raise RuntimeError('no such table')\n"), "RuntimeError: no such table")
    assert "app.py" in error and "nothing was taken over: generation 2 failed" in error
    status = server.status()
    assert (status.serving, status.pids(), status.numbers) == (1, before, [1])
    assert status["releases"][-1]["outcome"] == "failed"
    assert status["master"]["takeover"]["outcome"] == "failed"
    assert "the last takeover failed" in server.cli("status").out
    server.write("three")
    assert server.release().exit == 0
    assert server.get().version == "three"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_one_that_is_ended_while_it_loads_leaves_nothing(server, second, number):
    two = second(server, code="basic.pass_gate('import')\n").launch()
    (zygote,) = two.gate("import").await_entered()
    two.signal(number)
    assert two.await_exit() == -number
    wait_for(lambda: is_gone(zygote), "the end of its zygote")
    server.settle(1)
    assert server.get().version == "one"
    assert server.release().exit == 0


def test_one_that_hangs_while_it_loads_is_given_up(server, second):
    two = second(server, "--boot-timeout", "5", code="basic.pass_gate('import')\n").launch()
    (zygote,) = two.gate("import").await_entered()
    two.signal(signal.SIGSTOP)
    wait_for(lambda: title_of(zygote) == "" or is_gone(zygote), "the end of its zygote")
    two.signal(signal.SIGCONT)
    assert two.await_exit() == 1
    server.settle(1)


def test_one_that_does_not_even_start_its_zygote_is_given_up(server, second, tmp_path):
    """Its python is no interpreter that could be executed, which only the exec tells."""
    python = tmp_path / "python"
    python.write_text("#!/nonexistent\n")
    python.chmod(0o755)
    fails(second(server, "--python", str(python)), "cannot execute")
    server.settle(1)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("-b", "127.0.0.1:1"), "--bind: 127.0.0.1:1 is none of"),
        (("--run-dir", "{tmp}"), "no master owns"),
        (("--state-dir", "{tmp}"), "--state-dir is"),
    ],
)
def test_what_two_masters_must_share_is_refused_otherwise(server, second, tmp_path, options, why):
    options = [one.format(tmp=tmp_path) for one in options]
    bind = () if "-b" in options else ("127.0.0.1:0",)
    fails(second(server, *options, bind=bind), why)
    assert server.status().numbers == [1]
    assert server.get().version == "one"


def test_an_address_of_the_running_master_must_not_be_left_out(serve, second):
    one = serve(bind=("127.0.0.1:0", "127.0.0.2:0")).start()
    fails(second(one), "the running master also listens on 127.0.0.2:")
    two = take_over(second(one, bind=()))  # without a word about them all are meant
    assert len(two.status()["master"]["addresses"]) == 2


def test_without_a_running_master_it_refuses_or_starts_as_usual(serve):
    assert "start without --takeover" in fails(serve("--takeover"), "no master owns")
    assert serve("--takeover", "if-running").start().get().version == "one"


def test_a_second_candidate_is_refused(server, second):
    two = second(server, code="basic.pass_gate('import')\n").launch()
    two.gate("import").await_entered()
    fails(second(server, version="three"), "is taking over already")
    two.gate("import").open()
    await_owner(two, 2)


def test_a_newer_release_takes_the_place_of_one_that_boots(server, second):
    two = second(server, code="basic.pass_gate('import')\n").launch()
    two.gate("import").await_entered()
    server.write("three")
    assert server.release().exit == 0
    assert two.await_exit() == 1
    assert "a newer release has taken its place" in log_of(two)
    assert server.get().version == "three"
    assert server.status()["master"]["pid"] == server.pid


def test_a_release_that_boots_when_it_is_time_to_hand_over_is_not_lost(server, second):
    two = second(server, "--probation", "1").launch()
    server.wait(lambda s: s.serving == 2, "the new version to serve, on probation")
    server.write("three", "basic.pass_gate('import')\n")
    server.hup()
    server.gate("import").await_entered()
    server.wait(lambda s: s.generation(2)["since"] > 2, "the probation to be over")
    assert two.alive
    server.gate("import").open()
    assert two.await_exit() == 1
    assert "a newer release has taken its place" in log_of(two)
    server.settle(3)


def test_one_that_fails_with_everything_in_its_hands_gives_it_back(serve, second, tmp_path):
    """The new version serves by then, and goes on; the running master stays the master."""
    path = tmp_path / "socket"
    one = serve(bind=("127.0.0.1:0", f"unix:{path}")).start()
    stray = listener()
    two = second(one, bind=one.bind)
    try:
        with one.load() as load:
            launch_with(two, [stray.fileno()], ["stray"])
            assert two.await_exit() == 1
            assert "is no --bind" in log_of(two)
            await_log(one, "this master goes on")
            load.more(50)
            assert load.failures == []
    finally:
        stray.close()
    status = one.wait(lambda s: s.is_settled() and s.serving == 2, "the new version, under the old master")
    assert status["master"]["pid"] == one.pid
    assert one.get(address=f"unix:{path}").version == "two"
    os.kill(min(status.pids()), signal.SIGKILL)
    one.settle(2)
    one.write("three")
    assert one.cli("release").exit == 0
    assert one.get().version == "three"


# --- somebody dies ----------------------------------------------------------------------------------------------------


def test_the_running_master_dies_while_the_other_loads(server, second):
    """The other one is the next master: it adopts, and brings its own version as it was asked to."""
    gate = server.gate("slow")
    slow = server.get_later("/gate?name=slow")
    gate.await_entered()
    two = second(server, code="if not basic.is_open('import'): basic.pass_gate('import')\n").launch()
    two.gate("import").await_entered()
    with server.load() as load:
        server.process.kill()
        server.process.wait()
        two.gate("import").open()
        two.wait(lambda s: s.serving and s.serving > 2, "its own version to serve")
        load.more(50)
        assert load.failures == []
    assert two.get().version == "two"
    gate.open()
    assert slow.result().version == "one"
    two.settle()


def test_the_old_master_dies_while_its_version_drains(server, second):
    gate = server.gate("slow")
    slow = server.get_later("/gate?name=slow")
    gate.await_entered()
    two = take_over(second(server))
    server.process.kill()
    server.process.wait()
    gate.open()
    assert slow.result().version == "one"
    two.settle(2)
    wait_for(lambda: two.status()["master"]["earlier"] == [], "the old master's end to be seen")


def test_the_new_master_dies_after_it_has_taken_over(server, second):
    gate = server.gate("slow")
    slow = server.get_later("/gate?name=slow")
    gate.await_entered()
    two = take_over(second(server))
    with two.load() as load:
        two.process.kill()
        two.process.wait()
        load.more(50)
        # The next one adopts both versions, though the first master still lives.
        third = second(server, version="three")
        third.options = ("--takeover", "if-running")
        third.launch()
        status = third.wait(lambda s: s.serving == 2 and len(s.workers("serving")) == 2, "both to be adopted")
        assert status.draining == [1]
        load.more(50)
        assert load.failures == []
    gate.open()
    assert slow.result().version == "one"
    assert server.await_exit() == 0
    third.settle(2)


def test_both_die_and_a_plain_master_adopts(server, second):
    two = take_over(second(server))
    for one in (server, two):
        one.process.kill()
        one.process.wait()
    two.options = ()
    two.start()
    assert two.status().serving == 2
    assert two.get().version == "two"


def test_probation_is_over_when_it_is_handed_over(server, second):
    two = take_over(second(server, "--probation", "3"), 2)
    assert server.await_exit() == 0
    pids = two.status().pids()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    two.wait(lambda s: s.is_settled() and not s.pids() & pids, "both to be replaced")
    events = [line["event"] for line in two.question(do="history")["history"]]
    assert "taken back" not in events


def test_probation_counts_before_anything_is_handed_over(server, second):
    """Two crashes: the running master brings its own version back, and stays the master."""
    two = second(server, "--probation", "60").launch()
    for _ in range(2):
        status = server.wait(lambda s: s.serving == 2 and len(s.workers("serving")) == 2, "the new version to serve")
        assert status["master"]["pid"] == server.pid
        os.kill(min(status.pids()), signal.SIGKILL)
        dead = min(status.pids())
        server.wait(lambda s, dead=dead: dead not in s.pids() and s.serving != 1, "the crash to be noticed")
    assert two.await_exit() == 1
    assert "failed its probation" in log_of(two)
    server.await_version("one")
    server.settle(3)
