"""The accounting: every request that was sent is answered, failed, or lost with the process that held it."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from proving.accounting import Account, Window, percentile


@pytest.fixture
def account():
    return Account(start=100.0)


def test_an_answer_counts_for_its_kind_version_and_generation(account):
    account.send(1, "one-shot", 5001, opened=100.0, at=100.0)
    account.answer(1, 100.25, version=3, generation=2)
    assert account.answered == 1 and account.clean
    assert account.by_version == {3: 1} and account.by_generation == {2: 1}
    assert account.latencies() == [0.25]


def test_a_request_cannot_be_sent_twice(account):
    account.send(1, "one-shot", 5001, 100.0, 100.0)
    with pytest.raises(ValueError, match="sent twice"):
        account.send(1, "one-shot", 5002, 100.0, 100.0)


def test_planned_work_is_no_latency(account):
    account.send(1, "slow", 5001, 100.0, 100.0, planned=20.0)
    account.answer(1, 120.01, 1, 1)
    assert account.latencies(["slow"]) == [pytest.approx(0.01)]


def test_a_failure_has_its_reason(account):
    account.send(1, "keep-alive", 5001, 100.0, 100.0)
    account.fail(1, 100.5, "truncated")
    assert account.failed == 1 and not account.clean
    assert account.reasons() == {"truncated": 1}


def test_a_request_in_a_killed_process_is_lost_not_failed(account):
    account.send(1, "slow", 5001, opened=100.0, at=100.0)
    account.kill(77, [5001], at=101.0)
    account.fail(1, 101.1, "reset before any answer")
    assert account.failed == 0 and len(account.lost) == 1
    assert account.clean


@pytest.mark.parametrize(
    ("port", "opened", "ended", "why"),
    [
        (5002, 100.0, 101.1, "another connection: it waited in a queue"),
        (5001, 101.5, 101.9, "the port was used again, after the kill"),
        (5001, 100.0, 100.9, "it broke before the kill"),
    ],
)
def test_a_kill_explains_only_what_the_process_held(account, port, opened, ended, why):
    account.kill(77, [5001], at=101.0)
    account.send(1, "one-shot", port, opened, at=opened)
    account.fail(1, ended, "closed before any answer")
    assert account.failed == 1, why


def test_what_never_ends_is_a_failure(account):
    account.send(1, "slow", 5001, 100.0, 100.0)
    assert not account.clean
    account.close(160.0)
    assert account.reasons() == {"never ended": 1}


def test_a_kept_connection_closed_while_idle_is_a_broken_promise(account):
    account.drop("idle", 5001, opened=100.0, at=103.0)
    assert len(account.dropped) == 1 and not account.clean


def test_an_idle_connection_of_a_killed_process_is_not(account):
    account.kill(77, [5001], at=101.0)
    account.drop("idle", 5001, opened=100.0, at=103.0)
    assert account.clean and account.dropped_by_kill == 1


def test_a_new_connection_answered_by_an_old_generation_is_stale(account):
    account.serve(1, 100.0)
    account.serve(2, 110.0)
    account.send(1, "one-shot", 5001, opened=112.0, at=112.0)
    account.answer(1, 112.1, version=1, generation=1)
    assert len(account.stale) == 1 and not account.clean


@pytest.mark.parametrize("opened", [105.0, 110.5])
def test_an_older_connection_may_still_be_answered_by_its_generation(account, opened):
    account.serve(1, 100.0)
    account.serve(2, 110.0)
    account.send(1, "keep-alive", 5001, opened, at=115.0)
    account.answer(1, 115.1, version=1, generation=1)
    assert account.clean


def test_a_connection_that_moves_to_a_newer_generation_is_counted(account):
    for number, (before, generation) in enumerate([(0, 1), (1, 1), (1, 2), (2, 2)]):
        account.send(number, "idle", 5001, 100.0, 101.0)
        account.answer(number, 101.1, generation, generation, before)
    assert account.moved == 1


def test_a_kept_connection_that_stays_behind_is_counted_and_no_failure(account):
    account.serve(2, 110.0)
    account.send(1, "idle", 5001, opened=100.0, at=112.0)
    account.answer(1, 112.1, 1, 1, before=1, closes=True)
    assert (account.behind, account.closed) == (1, 1) and account.clean


def test_windows_take_requests_by_when_they_were_sent(account):
    for number, (sent, ended) in enumerate([(100.0, 100.1), (109.9, 113.0), (115.0, 115.2)]):
        account.send(number, "one-shot", 5000 + number, sent, sent)
        account.answer(number, ended, 1, 1)
    assert account.latencies(windows=[Window(109.0, 113.0)]) == [pytest.approx(3.1)]
    assert account.latencies(windows=[]) == []


def test_a_stall_that_began_before_a_window_or_ends_after_it_is_seen_in_it(account):
    for number, ended in enumerate([100.0, 100.1, 103.1, 103.2]):
        account.send(number, "one-shot", 5000 + number, 100.0, 100.0)
        account.answer(number, ended, 1, 1)
    assert account.longest_silence() == pytest.approx(3.0)
    assert account.longest_silence([Window(101.0, 102.0)]) == pytest.approx(3.0)
    assert account.longest_silence([Window(103.15, 103.3)]) == pytest.approx(0.1)


def test_only_short_requests_break_a_silence(account):
    for number, (kind, ended) in enumerate([("one-shot", 100.0), ("slow", 102.0), ("one-shot", 104.0)]):
        account.send(number, kind, 5000 + number, 100.0, 100.0)
        account.answer(number, ended, 1, 1)
    assert account.longest_silence() == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([], 0.99, 0.0), ([7], 0.99, 7), (range(1, 101), 0.99, 99), (range(1, 101), 0.5, 50), ([3, 1, 2], 1.0, 3)],
)
def test_a_percentile_is_a_value_that_occurred(values, share, expected):
    assert percentile(values, share) == expected


def test_the_summary_adds_up(account):
    for number in range(4):
        account.send(number, "one-shot", 5000 + number, 100.0, 100.0)
    account.answer(0, 100.1, 1, 1)
    account.fail(1, 100.2, "refused")
    account.kill(77, [5002], 100.1)
    account.fail(2, 100.2, "reset before any answer")
    summary = account.summary()
    kind = summary["kinds"]["one-shot"]
    assert kind["sent"] == 4 == sum(kind[name] for name in ("answered", "failed", "lost", "open"))
    assert summary["sent"] == 4 and summary["open"] == 1
    assert [trouble["what"] for trouble in summary["troubles"]] == ["failed", "lost"]
