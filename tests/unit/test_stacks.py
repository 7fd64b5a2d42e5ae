"""What `reuseport stacks` shows a person of an answer, and whom it asks."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from reuseport.cli import stacks
from reuseport.cli.failure import Failure
from reuseport.cli.stacks import Asked, render

APP = [["/srv/shop/views.py", 12, "checkout"], ["/venv/lib/python3.11/site-packages/gevent/hub.py", 166, "sleep"]]
OURS = [["<frozen runpy>", 1, "x"], [f"{stacks.HERE}worker/wsgi.py", 92, "Caller.serve"]]


def answer(*running: dict[str, Any], **more: Any) -> list[str]:
    told = {"pid": 7, "running": [{"kind": "greenlet", "name": "", "now": False, **one} for one in running], **more}
    return render(Asked("7.2", 7, told=told))


def test_what_waits_at_the_same_place_is_shown_once() -> None:
    some = [{"request": f"GET /{n}", "age": n, "client": "::1", "stack": OURS + APP} for n in range(8)]
    lines = answer(*some, idle=3)
    assert lines[0] == "worker 7.2 (pid 7): 8 requests, 0 jobs, 3 idle in the pool"
    assert lines[2:8] == [
        *(f"  GET /{n} from ::1, {n}s" for n in (7, 6, 5, 4, 3)),
        "  and 3 more at the same place",
    ]
    assert lines[8:] == [
        "    /srv/shop/views.py:12 in checkout",
        "    /venv/lib/python3.11/site-packages/gevent/hub.py:166 in sleep",
    ], "from the application's first frame on"


def test_a_request_whose_body_is_still_coming_is_told_as_such() -> None:
    one = {"request": "POST /up", "age": 90, "client": "::1", "tenant": "acme", "stack": []}
    lines = answer({**one, "kind": "body"}, {**one, "request": "POST /other", "age": 1})
    assert lines[0] == "worker 7.2 (pid 7): 2 requests, 0 jobs"
    assert lines[2:] == [
        "  POST /up of acme from ::1, 1m",
        "    the client still sends its chunked body (--buffer-chunked)",
        "",
        "  POST /other of acme from ::1, 1s",
        "    it has not begun yet",
    ]


def test_what_is_at_work_comes_first_then_requests_and_jobs_by_age() -> None:
    job = {"name": "export", "tenant": "acme", "age": 4000, "progress": 0.5}
    lines = answer(
        {"name": "sleep", "stack": APP[:1]},
        {"job": {**job, "name": "young", "age": 1}, "stack": APP},
        {"job": job, "stack": APP[:1], "kind": "thread"},
        {"request": "GET /new", "age": 1, "client": "a unix socket", "tenant": "acme", "stack": APP},
        {"request": "GET /old", "age": 90, "client": "::1", "stack": OURS},
        {"request": "GET /now", "age": 2, "client": "::1", "stack": APP, "now": True},
    )
    assert [line.strip() for line in lines if line.startswith("  ") and line[2] != " "] == [
        "GET /now from ::1, 2s, at work now",
        "GET /old from ::1, 1m",
        "GET /new of acme from a unix socket, 1s",
        "job export of acme, 1h 6m, 50%, thread",
        "job young of acme, 1s, 50%",
        "greenlet sleep",
    ]


def test_what_the_server_runs_for_itself_is_only_counted() -> None:
    lines = answer({"stack": OURS}, {"kind": "loop", "stack": [["src/gevent/loop.pyx", 1, "run"]], "now": True})
    assert lines == ["worker 7.2 (pid 7): 0 requests, 0 jobs, 2 of the server's own"]
    assert "40 not shown" in answer(more=40)[0]
    assert answer(stands=12.34)[0].endswith("; its loop stands still for 12.3 s")
    lost = answer(jobs=[{"name": "mail", "age": 5}])
    assert lost[-1] == "  job mail, 5s: in no greenlet or thread that can be told apart"


def test_what_an_application_says_cannot_move_the_cursor() -> None:
    lines = answer({"request": "GET /\x1b[2J", "age": 1, "client": "\r", "stack": [["/x\x1b", 1, "f"]]})
    assert all(line.isprintable() for line in lines)


def test_one_that_cannot_answer() -> None:
    one = Asked("7.j3", 3, lines="Current thread:\n  File x\x1b", why="it waits in C")
    assert render(one) == ["job's process 7.j3 (pid 3): it waits in C", "  Current thread:", "    File x\\x1b"]
    assert one.as_json() == {"id": "7.j3", "pid": 3, "error": "it waits in C", "lines": one.lines}


def test_whom_it_asks() -> None:
    everybody = [Asked("7.1", 11), Asked("7.2", 12), Asked("6.1", 7)]
    chosen = {who: [one.pid for one in stacks._chosen(everybody, who)] for who in ("", "7.2", "12", "6")}
    assert chosen == {"": [11, 12, 7], "7.2": [12], "12": [12], "6": [7]}
    with pytest.raises(Failure, match=r"no worker '8'; these there are: 7\.1 \(pid 11\)"):
        stacks._chosen(everybody, "8")


def test_a_process_that_does_not_catch_the_signal_never_gets_it() -> None:
    assert not stacks._catches(os.getpid(), stacks.SNAPSHOT_SIGNAL)
    one = Asked("7.1", os.getpid())
    assert not stacks._send(one, stacks.SNAPSHOT_SIGNAL), "this process lives to tell"
    assert "not ready yet" in one.why
    before = signal.signal(stacks.SNAPSHOT_SIGNAL, lambda *_: None)
    try:
        assert stacks._catches(os.getpid(), stacks.SNAPSHOT_SIGNAL)
    finally:
        signal.signal(stacks.SNAPSHOT_SIGNAL, before)


def test_an_answer_of_another_user_leads_only_to_what_that_user_may_read(tmp_path: Path) -> None:
    """It may name any path, and root may ask."""
    (tmp_path / "app.py").write_text("one\ntwo\n")
    me, group = os.getuid(), os.getgid()
    for mode, author, readable in (
        (0o600, None, True),
        (0o600, (me, group), True),
        (0o604, (me + 1, group + 1), True),
        (0o640, (me + 1, group), True),
        (0o604, (me + 1, group), False),
        (0o600, (me + 1, group), False),
    ):
        (tmp_path / "app.py").chmod(mode)
        stacks._source.cache_clear()
        found = stacks._source(str(tmp_path / "app.py"), author)
        assert found == (["one", "two"] if readable else []), (oct(mode), author)
    os.mkfifo(tmp_path / "pipe.py")
    assert stacks._source(str(tmp_path / "pipe.py"), None) == []
    assert stacks._source(f"{tmp_path}/a\0.py", None) == []


def test_an_answer_that_is_old_broken_or_a_link_is_none(tmp_path: Path) -> None:
    path, one = tmp_path / "snapshot", Asked("7.1", 7, since=100)
    assert stacks._answer(str(path), one) is None
    for data in ("", "{", "[]", '{"pid": 7, "taken": 99}', '{"pid": 8, "taken": 101}'):
        path.write_text(data)
        assert stacks._answer(str(path), one) is None, data
    path.write_text(json.dumps({"pid": 7, "taken": 100}))
    assert stacks._answer(str(path), one) == {"pid": 7, "taken": 100}
    (tmp_path / "link").symlink_to(path)
    assert stacks._answer(str(tmp_path / "link"), one) is None
