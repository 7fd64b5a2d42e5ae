"""What companions say by sd_notify(3), as it is read; and who is believed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from reuseport.master.readiness import EXTENSION, STATUS, Notification, _belongs, parse


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("READY=1", Notification(ready=True)),
        ("READY=1\n", Notification(ready=True)),
        ("STATUS=loading\nREADY=1\nMAINPID=4", Notification(ready=True, status="loading")),
        ("READY=0", Notification()),
        ("READY=1 ", Notification()),
        ("XREADY=1", Notification()),
        ("READY", Notification()),
        ("WATCHDOG=1", Notification()),
        ("BARRIER=1", Notification()),
        ("", Notification()),
        ("STATUS=", Notification(status="")),
        ("STATUS=a=b", Notification(status="a=b")),
        ("STATUS=\x1b[2Jgone", Notification(status="\\x1b[2Jgone")),
        ("STATUS=one\nSTATUS=two", Notification(status="one")),
        ("EXTEND_TIMEOUT_USEC=2500000", Notification(extend=2.5)),
        ("EXTEND_TIMEOUT_USEC=-1", Notification()),
        ("EXTEND_TIMEOUT_USEC=²", Notification()),
        ("EXTEND_TIMEOUT_USEC=" + "9" * 18, Notification(extend=EXTENSION)),
        ("EXTEND_TIMEOUT_USEC=" + "9" * 5000, Notification()),
    ],
)
def test_a_notification_is_read_as_systemd_reads_it(text: str, said: Notification) -> None:
    assert parse(text) == said


def test_a_long_status_is_cut_between_two_characters() -> None:
    status = parse("STATUS=" + "é" * 1000).status
    assert status == "é" * (STATUS // 2)


def test_processes_of_its_session_and_its_descendants_are_believed() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    detached = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True)
    try:
        session = os.getsid(0)
        assert _belongs(os.getpid(), os.getpid()) and _belongs(child.pid, session)
        assert _belongs(detached.pid, os.getpid()), "it leads a session of its own, and is a descendant all the same"
        assert not _belongs(os.getpid(), child.pid) and not _belongs(detached.pid, child.pid)
        assert not _belongs(0, os.getpid()), "what another pid namespace hides"
    finally:
        for one in (child, detached):
            one.communicate()
    assert _belongs(child.pid, os.getpid()), "one that has gone could be of anybody whom the socket lets in"
