"""What the master does on the core's commands, where the machine lets it down."""

from __future__ import annotations

import errno
from types import SimpleNamespace

from reuseport.core import events as ev
from reuseport.core.model import Key
from reuseport.master import acts


def test_a_worker_whose_row_cannot_be_written_has_exited():
    """On a full disk, where the file system copies what is written."""
    sent: list = []
    lines: list[str] = []

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    master = SimpleNamespace(
        processes=SimpleNamespace(all=list, expect=lambda *them: sent.append(them)),
        shared=SimpleNamespace(restore=lambda: None),
        board=SimpleNamespace(clear=full),
        log=SimpleNamespace(write=lambda level, text: lines.append(text)),
        switchboard=SimpleNamespace(send=lambda *them, **more: sent.append(them)),
        events=[],
    )
    acts._fork(master, ev.Fork(Key(3, 1), 0))
    [event] = master.events
    assert event.key == Key(3, 1) and not event.clean and "No space left on device" in event.how
    assert sent == [] and len(lines) == 1
