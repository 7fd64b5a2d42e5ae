"""Errors that come many times a second."""

from __future__ import annotations

from reuseport.worker.seldom import SECONDS, TEXTS, Seldom


def test_a_text_is_logged_once_in_a_while_and_hides_no_other():
    entries, times = [], iter([0.0, 1.0, 2.0, SECONDS - 0.1, SECONDS + 0.1])
    log = Seldom(lambda level, text: entries.append((level, text)), lambda: next(times))
    for text in ("no descriptors", "no descriptors", "no memory", "no descriptors", "no descriptors"):
        log("error", text)
    assert entries == [("error", text) for text in ("no descriptors", "no memory", "no descriptors")]


def test_it_remembers_a_bounded_number_of_texts():
    log = Seldom(lambda level, text: None, lambda: 0.0)
    for number in range(10 * TEXTS):
        log("error", str(number))
    assert len(log._last) <= TEXTS
