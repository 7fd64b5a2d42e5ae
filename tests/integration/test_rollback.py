"""Going back: by hand, by itself, and to what has long gone; and the history that makes it possible."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
from datetime import datetime
from pathlib import Path

from harness import Background, wait_for

FAILING = """
whole = application
def application(environ, start_response):
    if environ["PATH_INFO"] == "/checkout":
        raise ValueError("broken")
    return whole(environ, start_response)
"""


def standby(server) -> list[int]:
    return [g["number"] for g in server.status()["generations"] if g["state"] == "standby"]


def release(server, version: str, *options: str, code: str = "") -> None:
    server.write(version, code)
    outcome = server.cli("release", *options)
    assert outcome.exit == 0, outcome.err
    server.settle()


def test_a_rollback_forks_from_the_zygote_that_stands_by_and_loads_nothing(server):
    release(server, "two")
    assert standby(server) == [1]
    import_pid = server.status().generation(1)["zygote"]["pid"]
    # Whatever is on disk by now: the version that comes back is the one that served.
    (server.releases / "one" / "app.py").write_text("raise SystemError('nobody may import this again')\n")
    with server.load() as load:
        outcome = server.cli("rollback")
        assert outcome.exit == 0, outcome.err
        assert "from the zygote of generation 1" in outcome.out and "generation 3 serves" in outcome.out
        one, two = server.releases / "one", server.releases / "two"
        assert f"warning: {server.current} still leads to {two}, and what serves was loaded from {one}" in outcome.err
        answer = server.get()
        assert (answer.version, answer.json["import_pid"]) == ("one", import_pid)
        load.more(20)
    assert load.failures == []
    status = server.settle(3)
    assert status.current["source"] == 1 and standby(server) == [2]
    assert server.get("/facts").json["facts"]["environment"]["REUSEPORT_GENERATION"] == "3"


def test_a_rollback_to_what_stands_by_does_not_wait_for_warm_ups(serve):
    """A worker that takes a dead one's place later is warmed up again before it accepts."""
    server = serve("--warmup", "/gate?name=warm", workers=1)
    gate = server.gate("warm")
    gate.open()
    server.start()
    release(server, "two")
    gate.close()
    before = set(gate.entered())
    assert server.cli("rollback").exit == 0
    answer = server.get()
    assert answer.version == "one"
    os.kill(answer.pid, signal.SIGKILL)
    wait_for(lambda: set(gate.entered()) > before, "the warm-up of another worker")
    assert answer.pid not in gate.entered()
    gate.open()
    server.wait(lambda s: s.is_settled() and answer.pid not in s.pids(), "another worker")


def test_a_worker_that_dies_after_a_rollback_is_forked_from_the_same_version(server):
    release(server, "two")
    assert server.cli("rollback").exit == 0
    (server.releases / "one" / "app.py").write_text("raise SystemError('nobody may import this again')\n")
    status = server.settle(3)
    victim = next(iter(status.pids()))
    os.kill(victim, signal.SIGKILL)
    server.wait(lambda s: s.is_settled() and victim not in s.pids(), "a replacement")
    with server.load() as load:
        load.more(40)
    assert load.failures == [] and set(load.versions) == {"one"}


def test_a_rollback_without_standby_loads_the_recorded_directory(serve):
    server = serve("--standby", "0").start()
    release(server, "two")
    release(server, "three")
    outcome = server.cli("rollback", "1", "--json")
    assert outcome.exit == 0 and outcome.json["generation"] == 4
    assert server.get().version == "one"
    assert server.status().current["directory"] == str(server.releases / "one")


def test_going_back_again_goes_further_back(server):
    release(server, "two")
    release(server, "three")
    for version in ("two", "one"):
        outcome = server.cli("rollback", "--json")
        assert outcome.exit == 0 and server.get().version == version
        [warning] = outcome.json["warnings"]
        assert f"still leads to {server.releases / 'three'}" in warning and str(server.releases / version) in warning
    outcome = server.cli("rollback")
    assert outcome.exit == 1 and "no version before" in outcome.err
    outcome = server.cli("rollback", "3")
    assert (outcome.exit, outcome.err) == (0, "") and server.get().version == "three"


def test_what_cannot_be_brought_back_is_said_and_nothing_changes(serve):
    server = serve("--standby", "0").start()
    release(server, "two")
    shutil.rmtree(server.releases / "one")
    for argument, says in (("1", "has gone"), ("2", "is what serves now"), ("9", "has never served")):
        outcome = server.cli("rollback", argument)
        assert outcome.exit == 1 and says in outcome.err
        assert len(outcome.err.splitlines()) == 1
    assert server.settle(2) and server.get().version == "two"


def test_numbers_and_history_outlive_the_master(serve):
    server = serve("--standby", "0")
    state = server.root / "state"
    state.mkdir()
    server.options += ("--state-dir", str(state))
    server.start()
    release(server, "two", "--label", "v2.0")
    assert server.cli("stop").exit == 0
    server.start()
    assert server.settle(3) and server.get().version == "two"
    assert server.cli("rollback", "1").exit == 0
    assert server.get().version == "one"
    lines = [line for line in json.loads(server.cli("history", "--json").out) if line["event"] == "release"]
    facts = [(line["number"], line["label"], line["outcome"], line["source"]) for line in lines]
    assert facts == [
        (1, "one", "serving", 0),
        (2, "v2.0", "serving", 0),
        (3, "two", "serving", 0),
        (4, "one", "serving", 1),
    ]
    table = server.cli("history").out
    assert "v2.0" in table and "one (back to 1)" in table
    assert (state / "history.jsonl").stat().st_mode & 0o777 == 0o600


def test_a_version_of_an_earlier_master_comes_back_with_what_this_one_was_started_with(serve):
    server = serve("--standby", "0")
    state = server.root / "state"
    state.mkdir()
    server.options += ("--state-dir", str(state))
    server.write("one", code="import tenanted\napplication = tenanted.make(VERSION)\n")
    server.start()
    assert server.cli("stop").exit == 0
    server.options += ("--tenant", "header:X-Tenant")
    server.start()
    assert server.cli("rollback", "1").exit == 0
    with contextlib.closing(server.client()) as connection:
        connection.request("GET", "/", headers={"X-Tenant": "acme"})
        assert json.loads(connection.getresponse().read())["tenant"] == "acme"


def test_a_history_that_says_too_little_is_an_error_and_no_silence(serve):
    server = serve()
    state = server.root / "state"
    state.mkdir()
    line = {"event": "release", "number": 1, "outcome": "serving", "source": 0}
    line["release"] = {"recipe": {}, "of_another_version": 1}
    (state / "history.jsonl").write_text(json.dumps(line) + "\n")
    server.options += ("--state-dir", str(state))
    server.start()
    outcome = server.cli("rollback", "1")
    assert outcome.exit == 1 and "does not tell what generation 1 was" in outcome.err


def test_the_history_tells_what_a_drain_waited_for(server):
    release(server, "jobs", code="import jobbing\napplication = jobbing.make(VERSION)\n")
    gate = server.gate("work")
    server.get("/spawn?name=work")
    gate.await_entered()
    server.write("two")
    assert server.release().exit == 0
    gate.open()
    server.settle(3)
    history = json.loads(server.cli("history", "--json").out)
    drained = next(line for line in history if line["event"] == "drained" and line["number"] == 2)
    assert [(job["name"], job["tenant"], job["lost"]) for job in drained["jobs"]] == [("export", "acme", False)]


def test_the_history_names_the_requests_that_a_drain_waited_for_and_who_released(server):
    gate = server.gate("slow")
    slow = server.get_later("/gate?name=slow")
    gate.await_entered()
    server.write("two")
    server.env["SUDO_USER"] = "sam"
    assert server.cli("release", "--by", "CI job 4711").exit == 0
    # What a drain waits for less than 0.1 s is not named.
    server.wait(lambda s: s.generation(1)["since"] > 0.2, "the drain to last")
    gate.open()
    assert slow.result().version == "one"
    server.settle(2)
    lines = json.loads(server.cli("history", "--json").out)
    drained = next(line for line in lines if line["event"] == "drained")
    [request] = drained["requests"]
    assert request["name"] == "GET /gate" and 0.1 < request["seconds"] <= drained["seconds"]
    release = next(line for line in lines if line["event"] == "release" and line["number"] == 2)
    who = release["operator"]
    assert (who["uid"], who["sudo_user"], who["by"]) == (os.geteuid(), "sam", "CI job 4711")
    assert who["host"] == os.uname().nodename and who["user"]
    assert release["by"].startswith("reuseport release (CI job 4711, sam as ")
    assert abs(datetime.fromisoformat(release["time"]).timestamp() - release["at"]) < 0.002
    table = server.cli("history").out
    assert re.search(r"request GET /gate \(\d+s\)", table) and "CI job 4711" in table
    assert "by reuseport release (CI job 4711" in server.cli("status").out
    server.hup()
    server.settle(3)
    assert "by SIGHUP" in server.cli("status").out


def test_a_release_that_answers_with_errors_is_taken_back(serve):
    server = serve("--probation", "60").start()
    server.write("two", FAILING)
    release = Background(lambda: server.cli("release"))
    server.wait(lambda s: s.serving == 2, "generation 2")
    for _ in range(30):
        assert server.get("/checkout").status == 500
    outcome = release.result()
    assert outcome.exit == 1 and "failed its probation" in outcome.err and "100.0%" in outcome.err
    server.settle(3)
    assert server.get().version == "one"
    events = [(line["event"], line["number"]) for line in json.loads(server.cli("history", "--json").out)]
    assert ("taken back", 2) in events


def test_a_version_whose_files_have_gone_is_not_brought_back(serve):
    """Its zygote stands by, but what its workers have not read yet has gone: each of their requests could fail."""
    server = serve("--probation", "60", workers=1).start()
    server.write("two", FAILING)
    release = Background(lambda: server.cli("release"))
    server.wait(lambda s: s.serving == 2, "generation 2")
    shutil.rmtree(server.releases / "one")
    gone = f"the directory of generation 1 has gone: {server.releases / 'one'}"
    outcome = server.cli("rollback")
    assert outcome.exit == 1 and gone in outcome.err
    for _ in range(30):
        assert server.get("/checkout").status == 500
    outcome = release.result()
    assert outcome.exit == 1 and "failed its probation" in outcome.err

    def ended() -> list[dict]:
        return [one for one in server.status()["releases"] if one["number"] == 3]

    wait_for(ended, "the end of generation 3")
    assert [(one["outcome"], one["error"]) for one in ended()] == [("failed", gone)]
    assert server.get().version == "two" and server.settle(2)


def test_a_release_whose_workers_crash_is_taken_back(serve):
    server = serve("--probation", "60").start()
    server.write("two")
    release = Background(lambda: server.cli("release"))
    server.wait(lambda s: s.serving == 2, "generation 2")
    for _ in range(2):
        pid = min(server.wait(lambda s: s.serving == 2 and s.pids(), "a worker").pids())
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda pid=pid: not Path(f"/proc/{pid}").exists(), "its end")
    assert release.result().exit == 1
    server.settle(3)
    assert server.get().version == "one"


def test_a_release_that_stands_its_probation_succeeds(serve):
    server = serve("--probation", "1.5").start()
    server.write("two")
    release = Background(lambda: server.cli("release"))
    server.wait(lambda s: s.serving == 2, "generation 2")
    assert not release.done
    assert release.result().exit == 0


def test_more_generations_than_allowed_are_refused_with_what_they_wait_for(serve):
    server = serve("--max-generations", "2").start()
    gate = server.gate("slow")
    slow = server.get_later("/gate?name=slow")
    gate.await_entered()
    server.write("two")
    assert server.release().exit == 0
    server.write("three")
    outcome = server.release()
    assert outcome.exit == 1 and "--max-generations" in outcome.err and "generation 1 is draining" in outcome.err
    assert server.status().serving == 2
    assert server.cli("rollback").exit == 0, "going back is never refused for that"
    assert server.status().serving == 3
    gate.open()
    assert slow.result().version == "one"
    server.settle(3)
    assert server.release().exit == 0


def test_a_next_master_finds_the_zygote_that_stands_by(server):
    release(server, "two")
    zygote = server.status().generation(1)["zygote"]["pid"]
    os.kill(server.pid, signal.SIGKILL)
    server.process.wait()
    server.start()
    server.wait(lambda s: standby(server) == [1], "the zygote on standby")
    assert server.status().generation(1)["zygote"]["pid"] == zygote
    outcome = server.cli("rollback")
    assert outcome.exit == 0 and "from the zygote of generation 1" in outcome.out
    assert server.get().version == "one"
    server.settle(3)
    drained = [line["number"] for line in json.loads(server.cli("history", "--json").out) if line["event"] == "drained"]
    assert sorted(drained) == [1, 2]
