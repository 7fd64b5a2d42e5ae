"""What becomes of each part of a master when another one takes over: nothing is lost, and nothing is done twice."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from collections import Counter
from pathlib import Path

import pytest
from harness import APPS, Server, is_gone, parent_of, title_of, wait_for
from test_companions import await_event, await_state, companion, declare, events, start
from test_metrics import ANYWHERE, Scraper, metrics_of, requests, scrape
from test_supervision import launch_with, listener
from test_takeover import await_log, await_owner, fails, log_of, processor_time, second, take_over  # noqa: F401
from test_upgrading import HANGING, Installed

# --- companions -------------------------------------------------------------------------------------------------------

FOR_LONG = "ready_after = 600"
CRON = "exclusive = true"


def companies(first: Server, other: Server, **companions: str) -> Server:
    """Let the other one have companions too; what they tell goes to its own gates."""
    declare(other, **companions)
    return other


def has_open(pid: int, name: str) -> bool:
    links = []
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            links.append(os.readlink(entry.path))
    return any(Path(link).name == name for link in links)


def test_companions_are_the_new_masters_and_stay_whose_children_they_are(serve, second):  # noqa: F811
    one = start(serve(), mail="", cron=CRON)
    two = take_over(companies(one, second(one), mail="", cron=CRON))
    mine = await_event(two, what="begins", name="mail", generation=2)
    assert parent_of(mine["pid"]) == two.pid
    assert mine["directory"] == str(two.releases / "two")
    (theirs,) = events(one, what="begins", name="mail")
    await_event(one, what="signalled", name="mail", signal="SIGTERM")
    await_event(one, what="signalled", name="cron", signal="SIGTERM")
    assert parent_of(theirs["pid"]) == one.pid
    # What they print from now on, both masters' companions, is told by the new one, and by it alone.
    await_log(two, "[2.mail] [output] mail begins")
    one.gate("mail-1").open()
    await_log(two, "[1.mail] [output] mail ends")
    assert "2.mail] [output]" not in log_of(one) and "mail ends" not in log_of(one)
    wait_for(lambda: is_gone(theirs["pid"]), "its parent to have waited for it")
    # An exclusive one waits for as long as the old one lives, whose lock the new master has by now.
    assert companion(two, "2.cron")["state"] == "waiting" and one.alive
    assert has_open(two.pid, "companion-cron.lock") and not has_open(one.pid, "companion-cron.lock")
    one.gate("cron-1").open()
    assert one.await_exit() == 0
    assert parent_of(await_event(two, what="begins", name="cron")["pid"]) == two.pid
    assert Counter(e["name"] for e in events(one, what="signalled")) == {"mail": 1, "cron": 1}
    assert len(events(one, what="begins")) == 2, "none of them was started again"
    two.settle(2)
    assert two.cli("stop", "--now").exit == 0


def test_an_exclusive_companion_that_only_the_new_version_has_begins_as_its_masters_child(serve, second):  # noqa: F811
    one = serve().start()
    two = take_over(companies(one, second(one), cron=CRON))
    begun = await_event(two, what="begins", name="cron")
    assert parent_of(begun["pid"]) == two.pid
    assert await_state(two, "2.cron", "running")["pid"] == begun["pid"]
    assert has_open(two.pid, "companion-cron.lock")
    assert one.await_exit() == 0
    os.kill(begun["pid"], signal.SIGKILL)
    wait_for(lambda: len(events(two, what="begins")) == 2, "another one in its place")
    await_log(two, "companion 2.cron was killed by SIGKILL")


HANDED = "    master.lock = master.run_dir.own(master.ids)\n"
SLOWLY = "    import basic\n    basic.pass_gate('handed')\n" + HANDED


@pytest.fixture
def handed(second):  # noqa: F811
    """Makes a master that comes to the gate `handed` when everything is in its hands, and it has seen nothing yet."""

    def make(first: Server, **companions: str) -> Server:
        installed = Installed(lambda *options, **fields: second(first, *options, **fields))
        installed.install("0.2.0", master_entrance=(HANDED, SLOWLY))
        two = companies(first, installed.server, **companions)
        two.env["PYTHONPATH"] += f":{APPS}"
        two.launch()
        two.gate("handed").await_entered()
        return two

    return make


def test_the_lock_of_one_that_ends_while_it_is_handed_over_is_free(serve, handed):
    one = start(serve(), cron=CRON)
    two = handed(one, cron=CRON)
    (old,) = events(one, what="begins")
    one.gate("cron-1").open()
    wait_for(lambda: title_of(old["pid"]) == "", "its end, which nobody has noticed yet")
    two.gate("handed").open()
    await_owner(two, 2)
    await_state(two, "2.cron", "running")
    assert one.await_exit() == 0


def test_a_new_one_that_dies_while_it_is_handed_over_is_started_again(serve, handed):
    one = serve().start()
    two = handed(one, mail="")
    first = await_event(two, what="begins")
    os.kill(first["pid"], signal.SIGKILL)
    two.gate("handed").open()
    await_owner(two, 2)
    wait_for(lambda: len(events(two, what="begins")) == 2, "another one in its place")
    await_state(two, "2.mail", "running")
    assert one.await_exit() == 0
    before, since = processor_time(two.pid), time.monotonic()
    wait_for(lambda: time.monotonic() > since + 1, "a while")
    assert processor_time(two.pid) - before < 0.5, "it does not look at what has gone for ever"


@pytest.mark.parametrize(("restart", "again"), [("never", False), ("on-failure", False), ("always", True)])
def test_one_that_ends_while_it_is_handed_over_is_started_again_only_as_its_terms_say(serve, handed, restart, again):
    one = serve().start()
    two = handed(one, once=f"restart = '{restart}'")
    first = await_event(two, what="begins")
    two.gate("once-2").open()
    os.kill(first["pid"], signal.SIGTERM)
    wait_for(lambda: title_of(first["pid"]) == "", "its end, which nobody has noticed yet")
    two.gate("handed").open()
    await_owner(two, 2)
    assert one.await_exit() == 0
    await_state(two, "2.once", "running" if again else "ended")
    wait_for(lambda: len(events(two, what="begins")) == 1 + again, "as many beginnings")
    assert ("companion 2.once ended while no master looked" in log_of(two)) is not again


def test_a_companion_that_does_not_begin_fails_the_takeover_and_both_say_why(serve, second):  # noqa: F811
    one = serve().start()
    ends = "command = \"python -c 'raise SystemExit(str(40 + 2))'\"; ready_after = 30"
    none = "command = '/nowhere/at-all'; ready_after = 30"
    two = companies(one, second(one), mail=ends)
    error = fails(two, "[2.mail] 42")
    assert "companion 2.mail exited with status 1" in error
    await_log(one, "companion 2.mail exited with status 1")
    one.settle(1)
    wait_for(lambda: not list(one.run_dir.glob("companion-*.log")), "its output to be gone")
    fails(companies(one, second(one, version="three"), mail=none), "cannot execute")


def test_a_companion_that_may_end_ends_cleanly_and_its_parent_says_so(serve, second):  # noqa: F811
    """Nobody but its parent knows that, and it is the other master that must know."""
    one = serve().start()
    take = second(one)
    keys = "command = 'true'; restart = 'on-failure'; ready_after = 30"
    two = take_over(companies(one, take, once=keys), 2)
    assert companion(two, "2.once")["state"] == "ended"
    assert one.await_exit() == 0
    assert companion(two, "2.once")["state"] == "ended", "and stays so under its own master"


def test_companions_of_a_master_that_dies_before_it_is_one_are_told_to_end_by_the_other(serve, second):  # noqa: F811
    one = serve().start()
    two = companies(one, second(one), mail="", slow=FOR_LONG).launch()
    for name in ("mail", "slow"):
        await_event(two, what="begins", name=name)
    two.process.kill()
    two.process.wait()
    for name in ("mail", "slow"):
        await_event(two, what="signalled", name=name, signal="SIGTERM")
        two.gate(f"{name}-2").open()
    # Whoever follows its output by now has got all of it.
    await_log(one, "[2.mail] [output] mail ends")
    one.settle(1)
    assert Counter(e["name"] for e in events(two, what="signalled")) == {"mail": 1, "slow": 1}
    wait_for(lambda: not list(one.run_dir.glob("companion-*.log")), "their output to be gone")
    one.write("three")
    assert one.release().exit == 0


def test_a_master_that_gets_everything_back_goes_on_with_companions_and_metrics(serve, second):  # noqa: F811
    options = ("--metrics", ANYWHERE)
    one = start(serve(*options), mail="")
    two = companies(one, second(one, *options), mail="")
    with contextlib.closing(listener()) as stray:
        launch_with(two, [stray.fileno()], ["stray"])
        assert two.await_exit() == 1
    await_log(one, "this master goes on")
    one.wait(lambda s: s["master"]["pid"] == one.pid and s.serving == 2, "the new version under the old master")
    assert scrape(one)[("reuseport_releases_total", ("outcome", "serving"))] == 2
    one.gate("mail-1").open()
    await_log(one, "[1.mail] [output] mail ends")
    left = await_event(two, what="begins")
    os.kill(left["pid"], signal.SIGKILL)
    begun = await_event(one, what="begins", generation=2)
    assert parent_of(begun["pid"]) == one.pid
    await_log(one, "[2.mail] [output] mail begins")
    one.settle(2)
    lines = [json.loads(line) for line in (one.run_dir / "history.jsonl").read_text().splitlines()]
    assert lines[-1].items() <= one.question(do="history")["history"][-1].items()
    assert {"event": "drained", "number": 1}.items() <= lines[-1].items(), "it is written where it is read"


# --- numbers ----------------------------------------------------------------------------------------------------------


def torn(server: Server) -> list[str]:
    """Lines of the files in the state directory that are none."""
    found = []
    for path in server.run_dir.glob("*.jsonl"):
        for line in path.read_text().splitlines():
            try:
                json.loads(line)
            except ValueError:
                found.append(f"{path.name}: {line}")
    return found


@pytest.mark.parametrize("where", ["tcp", "unix"])
def test_no_scrape_fails_and_no_total_goes_back(serve, second, where, tmp_path):  # noqa: F811
    address = ANYWHERE if where == "tcp" else f"unix:{tmp_path}/metrics"
    one = serve("--metrics", address).start()
    bound = metrics_of(one)
    with Scraper(one) as scraper:
        with one.load(one_shot=1, keep_alive=2) as load:
            two = take_over(second(one, "--metrics", address), 2)
            assert one.await_exit() == 0
            load.more(50)
        assert load.failures == []
        assert metrics_of(two) == bound
        found = wait_for(lambda: load.answers == requests(found := scrape(two)) and found, f"{load.answers} requests")
        wait_for(lambda: scraper.scrapes > 10, "more scrapes")
    assert scraper.trouble == []
    assert found[("reuseport_releases_total", ("outcome", "serving"))] == 2
    assert torn(one) == []
    assert two.cli("stop").exit == 0
    assert where == "tcp" or not (tmp_path / "metrics").exists()


def test_an_address_for_metrics_that_is_not_to_be_had_is_told_of_before_anything_begins(serve, second):  # noqa: F811
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        one = serve("--metrics", ANYWHERE).start()
        fails(second(one, "--metrics", taken), f"--metrics: cannot listen on {taken}")
    one.settle(1)
    assert scrape(one)[("reuseport_up",)] == 1
    two = take_over(second(one, "--metrics", taken, version="three"))
    assert one.await_exit() == 0
    assert metrics_of(two) == taken and scrape(two)[("reuseport_up",)] == 1


def test_a_path_for_metrics_that_the_new_master_has_not_goes_with_the_old_one(serve, second, tmp_path):  # noqa: F811
    one = serve("--metrics", f"unix:{tmp_path}/metrics").start()
    two = take_over(second(one))
    assert one.await_exit() == 0
    assert metrics_of(two) is None
    assert not (tmp_path / "metrics").exists()


def test_a_statsd_is_told_of_every_request_once(serve, second):  # noqa: F811
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as statsd:
        statsd.bind(("127.0.0.1", 0))
        statsd.settimeout(20)
        options = ("--statsd-host", f"127.0.0.1:{statsd.getsockname()[1]}")
        one = serve(*options).start()
        with one.load(keep_alive=2) as load:
            two = take_over(second(one, *options))
            assert one.await_exit() == 0
            load.more(50)
        heard, deadline = 0, time.monotonic() + 20
        while heard < load.answers and time.monotonic() < deadline:
            for line in statsd.recv(65536).decode().split("\n"):
                name, _, value = line.partition(":")
                heard += int(value.partition("|")[0]) if name == "gunicorn.requests" else 0
        assert heard == load.answers
        assert two.status()["numbers"]["window"] > 0


# --- upgrades in place ------------------------------------------------------------------------------------------------


def test_a_master_that_has_taken_over_can_be_upgraded_in_place(serve, second):  # noqa: F811
    one = serve("--metrics", ANYWHERE).start()
    gate = one.gate("slow")
    slow = one.get_later("/gate?name=slow")
    gate.await_entered()
    made = []

    def another(*options: str, **fields) -> Server:
        made.append(second(one, *options, **fields))
        return made[0]

    installed = Installed(another, "--metrics", ANYWHERE)
    two = take_over(installed.server)
    companions = declare(two, mail="")
    assert companions is None
    assert two.release().exit == 0
    await_event(two, what="begins", generation=3)
    bound = metrics_of(two)
    installed.install("0.2.0")
    assert "to 0.2.0" in installed.upgrade()
    assert two.status()["master"]["earlier"] == [one.pid]
    assert metrics_of(two) == bound and scrape(two)[("reuseport_releases_total", ("outcome", "serving"))] == 3
    assert companion(two, "3.mail")["state"] == "running"
    # What still drains is known as the earlier master's: going back to it copies no zygote of it.
    assert two.cli("rollback", "1").exit == 0
    assert {parent_of(pid) for pid in two.status().pids()} == {two.pid}
    two.gate("mail-3").open()
    gate.open()
    assert slow.result().version == "one"
    assert one.await_exit() == 0
    wait_for(lambda: two.status()["master"]["earlier"] == [], "the old master's end to be seen")
    two.settle(4)


def test_one_that_is_being_taken_over_from_is_not_upgraded(server, second):  # noqa: F811
    two = second(server, code="basic.pass_gate('import')\n").launch()
    two.gate("import").await_entered()
    outcome = server.cli("upgrade")
    assert outcome.exit == 1 and "another master is taking over" in outcome.err
    two.gate("import").open()
    await_owner(two, 2)
    assert server.await_exit() == 0


def test_one_that_is_being_upgraded_is_not_taken_over_from(serve, second):  # noqa: F811
    installed = Installed(serve)
    one = installed.server.start()
    installed.install("0.2.0", version=('__version__ = "0.2.0"\n', HANGING))
    upgrade = one.begin("upgrade")
    await_log(one, "trying the new version out")
    fails(second(one), "it is being replaced in place by another version")
    (trial,) = [pid for pid in set(one.processes()) - accounted(one) if parent_of(pid) == one.pid]
    os.kill(trial, signal.SIGKILL)
    assert one.end(upgrade).exit == 1
    assert take_over(second(one, version="three"), 2).get().version == "three"


def accounted(server: Server) -> set[int]:
    status = server.status()
    return {server.pid, status.current["zygote"]["pid"], *status.pids()}


# --- stops, saves, and who waits --------------------------------------------------------------------------------------


def test_a_stop_that_is_announced_while_another_master_takes_over_ends_that(serve, second):  # noqa: F811
    one = serve("--stop-delay", "1h").start()
    two = second(one, code="basic.pass_gate('import')\n").launch()
    two.gate("import").await_entered()
    one.signal(signal.SIGTERM)
    await_log(one, "and accepting until then")
    two.gate("import").open()
    assert two.await_exit() == 1
    assert "the server is stopping" in log_of(two)
    fails(second(one, version="three"), "the server is stopping")
    assert one.get().status == 200
    one.signal(signal.SIGTERM)
    assert one.await_exit() == 0


def test_a_stop_of_the_new_master_is_announced_by_whoever_accepts(serve, second):  # noqa: F811
    options = ("--stop-delay", "1h", "--health-path", "/healthz")
    one = serve(*options).start()
    two = take_over(second(one, *options))
    assert one.await_exit() == 0
    address = two.address
    assert two.get("/healthz").status == 200
    two.signal(signal.SIGTERM)
    wait_for(lambda: two.get("/healthz", address).status == 503, "the stop to be announced")
    assert two.get(address=address).version == "two"
    two.signal(signal.SIGTERM)
    assert two.await_exit() == 0


def test_who_waits_for_a_drain_goes_on_to_wait_at_the_new_master(server, second):  # noqa: F811
    gate = server.gate("slow")
    slow = server.get_later("/gate?name=slow")
    gate.await_entered()
    server.write("two")
    waiting = server.begin("release", "--wait", "drained", "--json")
    server.wait(lambda s: s.serving == 2, "the first release")
    impatient = server.begin("release", "--wait", "ready")
    assert server.end(impatient).exit == 0
    server.wait(lambda s: 3 in s.numbers, "both releases")
    two = take_over(second(server, version="four"), 4)
    for _ in range(3):
        assert two.status().serving == 4
    assert waiting.poll() is None
    gate.open()
    assert slow.result().version == "one"
    outcome = server.end(waiting)
    assert outcome.exit == 0, outcome.err
    assert outcome.json["ok"] and "older one has drained" in outcome.json["text"]
    two.settle(4)


def test_a_saved_file_releases_under_the_new_master_only(serve, second):  # noqa: F811
    one = serve("--reload").start()
    gate = one.gate("slow")
    slow = one.get_later("/gate?name=slow")
    gate.await_entered()
    two = take_over(second(one, "--reload"))
    (one.current / "app.py").write_text((one.current / "app.py").read_text() + "\n")
    (two.current / "app.py").write_text((two.current / "app.py").read_text().replace("two", "three"))
    two.await_version("three")
    assert "has changed" not in log_of(one)
    gate.open()
    assert slow.result().version == "one"
    assert one.await_exit() == 0
    two.settle(3)
