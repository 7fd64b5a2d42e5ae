"""The run directory under a running server: exchanged, full, damaged; and who is found in it."""

from __future__ import annotations

import os
import signal

from harness import is_gone, wait_for

from reuseport.ipc import channel as channels


def lose_master(server) -> None:
    server.process.kill()
    server.process.wait()


def test_zygotes_and_workers_follow_no_exchange_of_their_directory(server, serve):
    """Who can write to a parent could do this: another directory, with a listener, at the old path."""
    assert server.address
    old = server.run_dir.with_name("old")
    server.run_dir.rename(old)
    server.run_dir.mkdir()
    theirs = channels.listen(str(server.run_dir / "hello.sock"))
    server.write("two")
    server.hup()
    wait_for(lambda: server.get().version == "two", "the release")
    pids = {answer.pid for _ in range(20) if (answer := server.get()).version == "two"}
    lose_master(server)
    second = serve(run_dir=old)
    second.name = server.name
    second.current.symlink_to(server.current.resolve())
    status = second.start().settle(2)  # everybody has said hello here
    assert pids <= status.pids()
    assert channels.accept(theirs) is None
    theirs.close()


def test_a_start_in_a_directory_that_others_can_exchange_is_refused(serve, tmp_path):
    above = tmp_path / "shared"
    above.mkdir()
    above.chmod(0o777)
    server = serve(run_dir=above / "run")
    outcome = server.run()
    assert outcome.exit == 1
    assert f"--run-dir: {above} has the mode 0777" in outcome.err and "chmod go-w" in outcome.err
    assert not (above / "run").exists()
    above.chmod(0o1777)
    assert server.start().status().serving == 1
    assert os.stat(above / "run").st_mode & 0o777 == 0o700
    server.write("evil", "raise RuntimeError('\\x1b[2J evil')")
    outcome = server.release()
    assert outcome.exit == 1 and "\x1b" not in outcome.err + outcome.out
    assert outcome.err.count(r"RuntimeError: \x1b[2J evil") == 2  # the traceback, and the line of why


def fill_disk(server) -> None:
    """The roster cannot be written: as on a full disk, and without root. A limit of the file size (RLIMIT_FSIZE) would
    also keep the master from writing to shared memory, whose blocks are there."""
    (server.run_dir / "roster.json.new").mkdir()


def successor(server, serve, *options: str):
    """A next master of the same run directory, with a log of its own."""
    another = serve(*options, run_dir=server.run_dir)
    another.name = server.name
    another.current.symlink_to(server.current.resolve())
    return another


def test_what_a_master_could_not_write_down_is_adopted_by_asking(serve):
    """Its disk was full, so the roster tells of workers that are gone, and of nothing that lives."""
    server = serve().start()
    old = server.status().pids()
    history = server.run_dir / "history.jsonl"
    written = history.read_bytes()
    fill_disk(server)
    gate = server.gate("held")
    server.write("two")
    server.hup()
    server.await_version("two")
    wait_for(lambda: all(map(is_gone, old)), "the end of the first generation")
    held = server.get_later("/gate?name=held")
    gate.await_entered()
    address, serving = server.address, server.status().pids()
    lose_master(server)
    history.write_bytes(written)  # as if it could not be written either
    server.write("three")
    second = successor(server, serve).launch()
    status = second.wait(lambda s: s.serving == 3 and s.draining == [2], "the release of the configured version")
    assert {w["pid"] for w in status.generation(2)["workers"]} <= serving
    assert second.address == address
    second.await_version("three")
    gate.open()
    assert held.result().version == "two"
    second.settle(3)
    assert server.get("/", address).version == "three"


def test_orphans_are_ended_and_nobody_else(serve):
    server = serve().start()
    workers = sorted(server.status().pids())
    fill_disk(server)
    server.write("two")
    server.hup()
    server.await_version("two")
    wait_for(lambda: all(map(is_gone, workers)), "the end of the first generation")
    status = server.status()
    zygote, pids = status.current["zygote"]["pid"], status.pids()
    assert server.cli("stop", "--orphans").out.endswith("there are no orphans\n")
    assert server.status().pids() == pids
    lose_master(server)
    stuck = min(pids)
    os.kill(stuck, signal.SIGSTOP)
    command = server.begin("stop", "--orphans")
    wait_for(lambda: is_gone(max(pids)), "the end of the worker that can")
    assert command.poll() is None and not is_gone(zygote)
    refused = successor(server, serve).run()
    assert refused.exit == 1 and "belongs to a running master" in refused.err
    command.send_signal(signal.SIGINT)
    assert server.end(command).exit == 130
    killed = server.cli("stop", "--orphans", "--now", "--json")
    assert killed.exit == 0 and {one["pid"] for one in killed.json["ended"]} >= {stuck, zygote}
    wait_for(lambda: is_gone(stuck) and is_gone(zygote), "their ends")
    assert successor(server, serve).start().settle()
