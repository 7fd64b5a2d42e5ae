"""The run directory under a running server: exchanged, full, damaged; and who is found in it."""

from __future__ import annotations

import os

from harness import wait_for

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
    pids = {server.get().pid for _ in range(20)}
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
