"""Whether anybody lives who was forked, asked of the kernel."""

from __future__ import annotations

import os

from reuseport.ipc.lifeline import Lifeline


def child(lifeline: Lifeline) -> tuple[int, int]:
    """A process that ends when the descriptor is closed; its own copy of the line is all that it says."""
    waits, ends = os.pipe()
    with lifeline.held():
        pid = os.fork()
        if not pid:
            os.close(ends)
            os.read(waits, 1)
            os._exit(0)
    os.close(waits)
    return pid, ends


def test_it_is_held_for_as_long_as_anybody_lives():
    lifeline = Lifeline()
    assert not lifeline.anybody()
    first, first_ends = child(lifeline)
    second, second_ends = child(lifeline)
    assert lifeline.anybody()
    os.close(second_ends)
    # The second has a copy of what ends the first, as anybody's fork would; so it goes first.
    os.waitpid(second, 0)
    assert lifeline.anybody()
    os.close(first_ends)
    os.waitpid(first, 0)
    assert not lifeline.anybody()
    third, third_ends = child(lifeline)
    assert lifeline.anybody()
    os.close(third_ends)
    os.waitpid(third, 0)
    assert not lifeline.anybody()
