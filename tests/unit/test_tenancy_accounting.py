"""What tenants were promised, judged from the clients' answers, the application's journal and the server's log."""

import sys
from math import inf
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from proving import tenancy
from proving.accounting import Account, Served
from proving.tenancy import Work


def answer(tenant, at, generation, took=0.1):
    return Served(tenant, at, at + took, generation, generation)


def work(kind, number, begun, ended, generation=1, tenant="acme", pid=7, killed=False, version=None):
    return Work(kind, number, tenant, generation, version or generation, pid, begun, ended, killed)


def line(event, kind, number, at, generation=1, pid=7):
    return f"{event} {kind} {number} acme {generation} {generation} {pid} {at}\n"


def test_the_journal_pairs_beginnings_with_ends():
    request, job = tenancy.read(
        [line("begins", "request", 4, 1.0), line("begins", "job", 4, 1.5), line("ends", "request", 4, 2.0)], {}
    )
    assert (request.kind, request.begun, request.ended) == ("request", 1.0, 2.0)
    assert (job.kind, job.ended, job.killed) == ("job", inf, False)


def test_work_of_a_killed_process_ends_with_the_kill():
    lines = [line("begins", "job", 1, 1.0, pid=7), line("begins", "job", 2, 1.0, pid=8)]
    killed, other = tenancy.read(lines, {7: 3.0})
    assert (killed.ended, killed.killed) == (3.0, True)
    assert (other.ended, other.killed) == (inf, False)


def test_a_torn_line_is_passed_over():
    assert len(tenancy.read([line("begins", "job", 1, 1.0), "begins job 2 acme 1 1 7 1."], {})) == 1


def test_an_answer_by_an_older_generation_than_an_earlier_one_went_back():
    good = [answer("acme", 1.0, 1), answer("acme", 2.0, 2), answer("globex", 3.0, 1)]
    assert tenancy.went_back(good) == []
    assert "generation 1 answered after 2" in tenancy.went_back([*good, answer("acme", 3.0, 1)])[0]


def test_a_request_that_was_on_its_way_already_may_end_where_it_began():
    assert tenancy.went_back([answer("acme", 1.0, 1, took=5.0), answer("acme", 2.0, 2)]) == []


@pytest.mark.parametrize(
    ("second", "found"),
    [
        (work("request", 2, 1.5, 3.0, generation=2), 1),
        (work("job", 2, 1.5, 3.0, generation=2), 1),
        (work("request", 2, 2.5, 3.0, generation=2), 0),
        (work("request", 2, 1.5, 3.0, generation=1), 0),
        (work("request", 2, 1.5, 3.0, generation=2, tenant="globex"), 0),
        (work("burn", 2, 1.5, 3.0, generation=2), 0),
    ],
)
def test_two_generations_at_work_for_one_tenant_are_seen(second, found):
    both = [work("job", 1, 1.0, 2.0), second]
    assert len(tenancy.at_once(both)) == found
    assert tenancy.most_at_once(both) == 1 + found


def test_work_is_compared_with_a_long_job_and_not_with_what_came_between():
    between = [work("job", 1, 1.0, 9.0), work("request", 2, 2.0, 3.0), work("request", 3, 4.0, 5.0, generation=2)]
    assert len(tenancy.at_once(between)) == 1


def test_a_tenant_may_be_behind_only_for_a_job_of_its_own_there():
    served = [(0.0, 1), (10.0, 2)]
    late, soon = answer("acme", 12.0, 1), answer("acme", 10.5, 1)
    assert tenancy.kept_without_reason([soon], [], served) == []
    assert len(tenancy.kept_without_reason([late], [], served)) == 1
    assert tenancy.kept_without_reason([late], [work("job", 1, 5.0, 13.0)], served) == []
    for other in (
        work("job", 1, 5.0, 10.9),
        work("job", 1, 5.0, 13.0, generation=2),
        work("job", 1, 5.0, 13.0, tenant="globex"),
        work("request", 1, 5.0, 13.0),
    ):
        assert len(tenancy.kept_without_reason([late], [other], served)) == 1, other


def test_a_job_that_died_with_a_killed_process_is_reported():
    told = tenancy.reported(["... [error] job 'invoices 12' of acme is lost, 3 s old: worker 1.2 was killed", "else"])
    assert told == {12}
    lost = [work("job", 12, 1.0, 4.0, killed=True), work("job", 13, 1.0, 4.0, killed=True)]
    (trouble,) = tenancy.lost_in_silence(lost, told)
    assert "job 13" in trouble
    assert tenancy.lost_by_mistake(lost, told, {7: 4.0}) == []


@pytest.mark.parametrize(
    ("burn", "found"),
    [
        (None, 1),
        (work("burn", 99, 1.2, 4.0, killed=True), 0),  # its loop stood still from then on
        (work("burn", 99, 1.2, 3.0), 1),  # it had a second to tell
        (work("burn", 99, 2.5, 4.0, killed=True), 1),  # it had told before
        (work("burn", 99, 1.2, 4.0, pid=8), 1),
    ],
)
def test_a_worker_can_tell_nothing_while_its_loop_stands_still(burn, found):
    lost = [work("job", 13, 1.0, 4.0, killed=True), *([burn] if burn else [])]
    assert len(tenancy.lost_in_silence(lost, set())) == found


def test_a_job_that_began_just_before_the_kill_need_not_have_been_told():
    assert tenancy.lost_in_silence([work("job", 13, 3.9, 4.0, killed=True)], set()) == []


def test_a_job_that_had_ended_is_not_lost():
    ended = [work("job", 12, 1.0, 4.0)]
    assert "had ended" in tenancy.lost_by_mistake(ended, {12}, {})[0]
    assert "had ended" in tenancy.lost_by_mistake(ended, {12}, {7: 9.0})[0]
    assert tenancy.lost_by_mistake(ended, {12}, {7: 4.01}) == []  # the kill came before it could say so
    assert "never began" in tenancy.lost_by_mistake([], {12}, {})[0]


def test_a_job_that_nobody_killed_and_that_never_ended_has_vanished():
    jobs = [work("job", 1, 1.0, inf), work("request", 2, 1.0, inf), work("job", 3, 1.0, 2.0)]
    assert len(tenancy.vanished(jobs)) == 1


def test_a_request_that_reached_two_workers_and_a_generation_of_two_versions_are_seen():
    twice = [work("request", 1, 1.0, 2.0), work("request", 1, 3.0, 4.0, pid=8, version=2)]
    assert len(tenancy.done_twice(twice)) == 1
    assert len(tenancy.mixed(twice)) == 1
    assert tenancy.done_twice([twice[0], work("job", 1, 1.0, 2.0)]) == []


def test_moves_are_counted():
    answers = [answer("acme", 1.0, 1), answer("acme", 2.0, 3), answer("acme", 3.0, 3), answer("globex", 3.0, 1)]
    assert tenancy.moves(answers) == 1


def test_a_tenants_answers_are_not_stale_but_kept_for_the_judgement():
    account = Account(start=0.0)
    account.serve(1, 0.0)
    account.serve(2, 10.0)
    for number, tenant in ((1, "acme"), (2, "")):
        account.send(number, "one-shot", 5000 + number, opened=15.0, at=15.0, tenant=tenant)
        account.answer(number, 15.1, version=1, generation=1)
    assert len(account.stale) == 1
    assert account.tenants == [Served("acme", 15.0, 15.1, 1, 1)]
