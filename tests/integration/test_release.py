"""Releases: how they are asked for, what they bring, and what lives through them."""

from __future__ import annotations

import contextlib
import socket

from harness import wait_for

IMPORT_WAITS = "basic.pass_gate('import')\n"


def test_hup_brings_the_new_code(server):
    assert server.get().version == "one"
    server.write("two")
    server.hup()
    server.settle(2)
    assert server.get().version == "two"


def test_the_release_command_says_that_the_new_generation_serves(server):
    server.write("two")
    outcome = server.cli("release")
    assert (outcome.exit, outcome.err) == (0, "")
    assert "generation 2 serves" in outcome.out
    assert server.get().version == "two"
    outcome = server.cli("release", "--json")
    assert (outcome.exit, outcome.err) == (0, "")
    assert outcome.json["ok"] is True
    assert outcome.json["generation"] == 3


def test_a_release_command_without_a_master_exits_with_3(serve):
    outcome = serve().cli("release")
    assert outcome.exit == 3
    assert "no master" in outcome.err
    assert len(outcome.err.splitlines()) == 1


def test_no_request_fails_in_a_stream_of_releases(server):
    with server.load() as load:
        for number in range(2, 6):
            server.write(f"v{number}")
            server.renew()
            assert server.get().version == f"v{number}"
            load.more(20)
    assert load.failures == []
    assert load.versions[-1] == "v5"
    server.settle(5)


def test_a_running_request_lives_through_a_release(server):
    gate = server.gate("slow")
    slow = server.get_later("/gate?name=slow")
    gate.await_entered()
    server.write("two")
    assert server.release().exit == 0
    status = server.wait(lambda s: s.draining == [1])
    assert status.generation(1)["waits_for"]["requests"] == 1
    server.await_drain()
    assert server.get().version == "two"
    # Whoever had nothing to do has gone; who has not stays as long as it takes.
    status = server.wait(lambda s: s.draining == [1] and len(s.generation(1)["workers"]) == 1)
    assert status.generation(1)["workers"][0]["pid"] in gate.entered()
    assert not slow.done
    gate.open()
    assert slow.result().version == "one"
    server.settle(2)


def test_uploads_streams_and_unfinished_heads_live_through_a_release(server):
    host, _, port = server.address.rpartition(":")
    with contextlib.ExitStack() as stack:
        head, upload, stream = (stack.enter_context(socket.create_connection((host, int(port)), 20)) for _ in range(3))
        head.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnec")
        upload.sendall(b"POST /upload HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 200000\r\n\r\n")
        upload.sendall(bytes(100_000))
        stream.sendall(b"GET /stream?name=stream HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        server.gate("stream").await_entered()
        server.wait(lambda s: sum(w["connections"] for w in s.workers()) == 3)
        server.write("two")
        assert server.release().exit == 0
        server.await_drain()
        assert server.get().version == "two"
        head.sendall(b"tion: close\r\n\r\n")
        upload.sendall(bytes(100_000))
        server.gate("stream").open()
        answers = [stack.enter_context(sock.makefile("rb")).read() for sock in (head, upload, stream)]
    assert all(answer.startswith(b"HTTP/1.1 200 OK\r\n") for answer in answers)
    assert b'"length": 200000' in answers[1]
    assert b"one begins" in answers[2]
    assert b"one ends" in answers[2]
    server.settle(2)


def test_old_generations_drain_side_by_side(server):
    requests = []
    for number in range(1, 5):
        requests.append(server.get_later(f"/gate?name=g{number}"))
        server.gate(f"g{number}").await_entered()
        server.write(f"v{number + 1}")
        assert server.release().exit == 0
        server.await_drain()
    status = server.wait(lambda s: s.serving == 5 and s.draining == [1, 2, 3, 4])
    assert [g["waits_for"]["requests"] for g in status["generations"][:4]] == [1, 1, 1, 1]
    # They may end in any order.
    for number, left in ((3, [1, 2, 4]), (1, [2, 4]), (4, [2]), (2, [])):
        server.gate(f"g{number}").open()
        assert requests[number - 1].result().version == ("one" if number == 1 else f"v{number}")
        server.wait(lambda s, left=left: s.draining == left, f"generations {left} draining")


def test_wait_drained_returns_when_the_old_generations_have_gone(server):
    slow = server.get_later("/gate?name=slow")
    server.gate("slow").await_entered()
    server.write("two")
    release = server.begin("release", "--wait", "drained", "--json")
    server.wait(lambda s: s.serving == 2 and s.draining == [1])
    # The other way of asking has its answer by now; this one must not.
    assert server.release("--wait", "none").exit == 0
    server.wait(lambda s: s.serving == 3)
    assert release.poll() is None
    server.gate("slow").open()
    outcome = server.end(release)
    assert (outcome.exit, outcome.json["ok"], outcome.json["generation"]) == (0, True, 2)
    assert 1 not in server.status().numbers
    assert slow.result().version == "one"


def test_wait_none_returns_before_the_new_generation_serves(server):
    server.write("two", IMPORT_WAITS)
    assert server.release("--wait", "none").exit == 0
    server.gate("import").await_entered()
    assert server.status().serving == 1
    server.gate("import").open()
    server.settle(2)


def test_current_is_followed_afresh_at_each_release_and_recorded(server):
    first = server.status().current["directory"]
    assert first == str(server.releases / "one")
    two = server.write("two", flip=False)
    server.renew()
    assert server.get().version == "one", "the link had not been flipped"
    server.flip(two)
    assert server.get().version == "one", "a flip alone is no release"
    server.renew()
    assert server.get().version == "two"
    assert server.status().current["directory"] == str(two)
    assert server.get("/facts").json["facts"]["cwd"] == str(two)
    # Back is a release like any other: numbers only go up.
    server.flip(server.releases / "one")
    assert server.renew() == 4
    assert server.get().version == "one"


def test_a_release_replaces_one_that_still_boots(server):
    server.write("two", IMPORT_WAITS)
    first = server.begin("release", "--json")
    server.gate("import").await_entered()
    server.write("three")
    second = server.release("--json")
    assert (second.exit, second.json["generation"]) == (0, 3)
    outcome = server.end(first)
    assert (outcome.exit, outcome.json["generation"], outcome.json["outcome"]) == (4, 2, "superseded")
    assert "generation 2 was superseded by generation 3, asked for by reuseport release" in outcome.err
    status = server.settle(3)
    assert server.get().version == "three"
    ends = {release["number"]: release["outcome"] for release in status["releases"]}
    assert ends == {1: "serving", 2: "superseded", 3: "serving"}


def test_a_stream_of_hups_ends_in_releases_and_the_last_code_serves(server):
    with server.load() as load:
        for number in range(2, 22):
            server.write(f"v{number}", IMPORT_WAITS)
            server.hup()
            # Signals of one kind do not queue: the next comes when the master has heard this one.
            heard = f"v{number}"
            if number <= 4:
                server.wait(lambda s, heard=heard: s.booting and s.booting["directory"].endswith("/" + heard))
            else:
                for _ in range(2):
                    server.status()
        # At most two were replaced in a row: the third is left in peace while it boots, however many are asked for.
        assert server.status().booting["directory"].endswith("/v4")
        server.gate("import").open()
        status = server.wait(lambda s: s.is_settled() and s.current["directory"].endswith("/v21"))
        assert server.get().version == "v21"
        load.more(5)
    assert load.failures == []
    outcomes = [(r["number"], r["outcome"]) for r in status["releases"]]
    assert outcomes == [(1, "serving"), (2, "superseded"), (3, "superseded"), (4, "serving"), (5, "serving")]


def test_twenty_hups_in_one_breath(server):
    for number in range(2, 22):
        server.write(f"v{number}")
        server.hup()
    status = server.wait(lambda s: s.is_settled() and s.current["directory"].endswith("/v21"))
    assert server.get().version == "v21"
    assert status["releases"][-1]["outcome"] == "serving"


def test_requests_are_answered_while_the_new_code_is_being_imported(server):
    server.write("two", IMPORT_WAITS)
    with server.load() as load:
        release = server.begin("release")
        server.gate("import").await_entered()
        load.more(100)
        assert load.versions == ["one"]
        server.gate("import").open()
        assert server.end(release).exit == 0
        load.more(20)
    assert load.failures == []
    assert load.versions[-1] == "two"


def test_when_a_release_has_ended_no_new_connection_meets_the_old_code(server):
    for number in range(2, 6):
        server.write(f"v{number}")
        assert server.release().exit == 0
        assert [server.get().version for _ in range(10)] == [f"v{number}"] * 10


def test_the_workers_of_a_release_may_be_more_or_fewer(serve):
    server = serve("-c", "conf.toml", workers=None)
    config = server.root / "conf.toml"
    config.write_text("workers = 1\n")
    server.start()
    assert len(server.status().workers("serving")) == 1
    for count in (3, 2):
        config.write_text(f"workers = {count}\n")
        server.renew()
        status = server.settle()
        assert len(status.workers("serving")) == count
        owned = sorted(slot for worker in status.workers() for slot in worker["slots"])
        assert owned == [0, 1, 2], "every slot has one owner, the spare ones too"
        seen: set[int] = set()
        wait_for(lambda seen=seen, count=count: seen.add(server.get().pid) or len(seen) == count, "all workers answer")
