"""TERM, INT, QUIT and `stop`: what is waited for, and what is not."""

from __future__ import annotations

import http.client
import signal
import time

import pytest
from harness import NotReached, wait_for

LOST = (OSError, http.client.HTTPException)


def slow_request(server, name="slow"):
    request = server.get_later(f"/gate?name={name}")
    server.gate(name).await_entered()
    return request


def assert_clean(server):
    assert list(server.processes()) == []
    left = sorted(path.name for path in server.run_dir.iterdir())
    kept = {"history.jsonl", "samples.jsonl", "samples-by-minute.jsonl"}  # the state directory, where none is named
    assert set(left) <= {"master.lock", "work", *kept}, left


def is_refused(server, address) -> bool:
    try:
        server.get(address=address)
    except ConnectionError:
        return True
    return False


def test_term_waits_for_running_requests(server):
    slow = slow_request(server)
    address = server.address
    server.signal(signal.SIGTERM)
    server.wait(lambda s: s["master"]["state"] == "stopping")
    wait_for(lambda: is_refused(server, address), "every worker to let go of the slots")
    assert server.alive
    assert not slow.done
    server.gate("slow").open()
    assert slow.result().version == "one"
    assert server.await_exit() == 0
    assert_clean(server)


def test_term_waits_for_the_requests_of_every_generation(server):
    requests = [slow_request(server, "old")]
    server.write("two")
    assert server.release().exit == 0
    server.await_drain()
    requests.append(slow_request(server, "new"))
    server.signal(signal.SIGTERM)
    server.wait(lambda s: sorted(s.draining) == [1, 2])
    server.gate("new").open()
    assert requests[1].result().version == "two"
    server.wait(lambda s: s.draining == [1])
    server.gate("old").open()
    assert requests[0].result().version == "one"
    assert server.await_exit() == 0


def test_a_second_term_ends_what_runs(server):
    slow = slow_request(server)
    server.signal(signal.SIGTERM)
    server.wait(lambda s: s["master"]["state"] == "stopping")
    server.signal(signal.SIGTERM)
    assert server.await_exit() == 0
    with pytest.raises(LOST):
        slow.result()
    assert_clean(server)


def test_a_second_term_ends_a_blocked_worker_too(server):
    request = server.get_later("/burn?name=burn")
    server.gate("burn").await_entered()
    server.signal(signal.SIGTERM)
    server.wait(lambda s: s["master"]["state"] == "stopping")
    server.signal(signal.SIGTERM)
    assert server.await_exit() == 0
    with pytest.raises(LOST):
        request.result()
    assert_clean(server)


def test_the_graceful_timeout_ends_what_runs(serve):
    server = serve("--graceful-timeout", "500ms").start()
    slow = slow_request(server)
    server.signal(signal.SIGTERM)
    began = time.monotonic()
    assert server.await_exit() == 0
    assert time.monotonic() - began > 0.4
    with pytest.raises(LOST):
        slow.result()
    assert_clean(server)


@pytest.mark.parametrize("name", ["SIGINT", "SIGQUIT"])
def test_int_and_quit_end_what_runs_at_once(server, name):
    slow = slow_request(server)
    server.signal(getattr(signal, name))
    assert server.await_exit() == 0
    with pytest.raises(LOST):
        slow.result()
    assert_clean(server)


def test_the_stop_command_returns_when_the_master_has_gone(server):
    slow = slow_request(server)
    stop = server.begin("stop")
    server.wait(lambda s: s["master"]["state"] == "stopping")
    assert stop.poll() is None
    server.gate("slow").open()
    assert server.end(stop).exit == 0
    wait_for(lambda: not server.alive, "the master's end", within=1)
    assert slow.result().version == "one"
    assert server.cli("stop").exit == 3


def test_stop_now_follows_a_stop_that_waits(server):
    slow = slow_request(server)
    stop = server.begin("stop")
    server.wait(lambda s: s["master"]["state"] == "stopping")
    assert server.cli("stop", "--now").exit == 0
    assert server.end(stop).exit == 0
    assert server.await_exit() == 0
    with pytest.raises(LOST):
        slow.result()


def test_a_stop_ends_a_generation_that_still_boots_and_tells_its_asker(server):
    server.write("two", "basic.pass_gate('import')\n")
    release = server.begin("release")
    server.gate("import").await_entered()
    server.signal(signal.SIGTERM)
    outcome = server.end(release)
    assert outcome.exit == 1
    assert "stopped" in outcome.err
    assert server.await_exit() == 0
    assert_clean(server)


def test_a_release_asked_for_while_the_server_stops_is_refused(server):
    slow = slow_request(server)
    server.signal(signal.SIGTERM)
    server.wait(lambda s: s["master"]["state"] == "stopping")
    outcome = server.release()
    assert outcome.exit == 1
    assert "stopping" in outcome.err
    server.gate("slow").open()
    assert slow.result().status == 200
    assert server.await_exit() == 0


def test_an_idle_connection_does_not_hold_up_a_stop(server):
    connection = server.client()
    connection.connect()
    server.wait(lambda s: sum(w["connections"] for w in s.workers()) == 1)
    server.signal(signal.SIGTERM)
    assert server.await_exit() == 0
    connection.close()


def test_a_term_while_the_first_generation_boots_ends_the_server(serve):
    server = serve()
    server.write("one", "basic.pass_gate('import')\n")
    server.launch()
    server.gate("import").await_entered()
    server.signal(signal.SIGTERM)
    assert server.await_exit() == 0
    assert_clean(server)


def test_a_name_and_an_address_can_be_used_again_after_a_stop(server, serve):
    address = server.address
    server.signal(signal.SIGTERM)
    assert server.await_exit() == 0
    again = serve(bind=(address,), run_dir=server.run_dir)
    try:
        again.start()
    except NotReached as error:
        raise AssertionError(again.log_end()) from error
    assert again.get().version == "one"
