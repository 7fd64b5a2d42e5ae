"""A stop that is announced: whoever asks for health hears of it while the server still accepts."""

from __future__ import annotations

import signal

import pytest
from harness import ask, wait_for


@pytest.fixture
def delayed(serve):
    """A server that accepts for longer than any test takes, after it was told to stop."""
    return serve("--health-path", "/healthz", "--stop-delay", "1h", "--access-log", "-").start()


def is_leaving(server) -> bool:
    return server.get("/healthz").status == 503


def test_health_before_and_after_a_stop_was_announced(delayed):
    assert delayed.get("/healthz").body == b"serving\n"
    assert delayed.cli("status", "--check").exit == 0
    kept = delayed.client()
    assert "connection" not in ask(kept, "/").headers

    delayed.signal(signal.SIGTERM)
    wait_for(lambda: is_leaving(delayed), "health is down")
    # Each worker says so for itself, and all of them go on as before.
    delayed.wait(lambda s: s["master"]["state"] == "stopping" and len(s.workers("serving")) == 2)
    wait_for(lambda: all(is_leaving(delayed) for _ in range(20)), "health is down in every worker")
    assert delayed.cli("status", "--check").exit == 1
    assert delayed.get().version == "one"
    assert ask(kept, "/").headers["connection"] == "close", "a client that keeps its connection would never leave"
    refused = delayed.release()
    assert refused.exit == 1
    assert "the server is stopping" in refused.err

    delayed.signal(signal.SIGTERM)
    assert delayed.await_exit() == 0


def test_a_worker_that_comes_after_the_announcement_says_so_too(delayed):
    delayed.signal(signal.SIGTERM)
    wait_for(lambda: is_leaving(delayed), "health is down")
    old = delayed.status().pids()
    delayed.signal(signal.SIGTTIN)
    delayed.wait(lambda s: len(s.pids() - old) == 1)
    assert all(is_leaving(delayed) for _ in range(30))


def test_the_stop_begins_when_the_delay_is_over(serve):
    server = serve("--health-path", "/healthz", "--stop-delay", "0.3").start()
    slow = server.get_later("/gate?name=slow")
    server.gate("slow").await_entered()
    server.signal(signal.SIGTERM)
    server.wait(lambda s: s.draining == [1], "the drain")
    server.gate("slow").open()
    assert slow.result().version == "one"
    assert server.await_exit() == 0
    log = server.log.read_text()
    assert log.index("stopping in 0.3 s, and accepting until then") < log.index("stopping: accepting nothing new")


def test_a_release_is_no_reason_to_leave(serve):
    server = serve("--health-path", "/healthz").start()
    with server.load() as load:
        server.write("two")
        assert server.release().exit == 0
        assert server.get("/healthz").status == 200
        load.more(5)
    assert load.failures == []


def test_a_next_master_knows_of_no_stop(delayed):
    delayed.signal(signal.SIGTERM)
    wait_for(lambda: all(is_leaving(delayed) for _ in range(20)), "health is down")
    delayed.process.kill()
    delayed.process.wait()
    delayed.start()
    wait_for(lambda: not any(is_leaving(delayed) for _ in range(20)), "the workers take it back")
    assert "connection" not in ask(delayed.client(), "/").headers
