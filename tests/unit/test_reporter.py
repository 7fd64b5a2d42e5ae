"""The reports of jobs: the master knows the state in the end, and the ledger never fills the channel."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from reuseport import jobs
from reuseport.worker.reporter import Ledger


class Reporting(RuleBasedStateMachine):
    """Jobs come and go while the master reads now and then, and a new hello comes in between."""

    @initialize()
    def begin(self) -> None:
        self.room = 0
        self.sent: list[tuple[str, dict]] = []
        self.known: dict[int, dict] = {}
        self.unconfirmed: set[int] = set()
        self.running: list[jobs.Job] = []
        jobs.active.clear()
        self.ledger = Ledger(self.say, lambda: self.room > 0)

    def say(self, kind: str, **fields) -> None:
        """The master's side, as `Switchboard._on_message` has it."""
        assert self.room > 0, "it speaks although there is no room"
        self.room -= 1
        if kind == "job":
            self.known[fields["number"]] = fields
            self.unconfirmed.discard(fields["number"])
        elif kind == "job-ended":
            self.known.pop(fields["number"], None)
        else:
            assert kind == "jobs-repeated"
            for number in self.unconfirmed:
                self.known.pop(number, None)
            self.unconfirmed = set()

    @rule()
    def job_begins(self) -> None:
        one = jobs.Job("export")
        one.begin()
        self.running.append(one)

    @rule(data=st.data())
    def job_ends(self, data) -> None:
        if self.running:
            self.running.pop(data.draw(st.integers(0, len(self.running) - 1))).end()

    @rule(data=st.data(), fraction=st.floats(0, 1))
    def job_gets_on(self, data, fraction) -> None:
        if self.running:
            self.running[data.draw(st.integers(0, len(self.running) - 1))].progress(fraction)

    @rule(room=st.integers(0, 5))
    def there_is_room(self, room) -> None:
        self.room = room
        told = self.ledger.tell()
        assert told or self.room == 0

    @rule()
    def hello_to_the_same_master(self) -> None:
        """It knows what it was told, of which the end may not have been sent."""
        self.unconfirmed = set(self.known)
        self.ledger.forget()

    @rule()
    def hello_to_another_master(self) -> None:
        self.known, self.unconfirmed = {}, set()
        self.ledger.forget()

    @invariant()
    def nothing_waits(self) -> None:
        """A change that cannot be sent is not kept. The state is told when there is room."""
        assert len(self.ledger._told) <= len(self.running) + len(self.known)

    def teardown(self) -> None:
        if hasattr(self, "ledger"):
            self.room = 10_000
            assert self.ledger.tell()
            assert self.known.keys() == jobs.active.keys()
            for number, one in jobs.active.items():
                assert self.known[number]["fraction"] == one.fraction
            for one in self.running:
                one.end()


Reporting.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
test_reporting = Reporting.TestCase


@pytest.fixture(autouse=True)
def _no_jobs():
    yield
    jobs.active.clear()
