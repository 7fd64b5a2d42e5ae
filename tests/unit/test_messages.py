"""The message catalogue: everything that is said is declared, and what comes in is as declared or refused."""

from __future__ import annotations

import ast
import json
import math
from pathlib import Path

import pytest
from catalogue_strategies import GROUPS, KINDS, WILD, mutated, valid
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

import reuseport
from reuseport import names
from reuseport.ipc import fields, messages
from reuseport.ipc.messages import Heard, Malformed

SOURCE = Path(reuseport.__file__).parent
SENDERS = {"send", "say", "_say"}
ANY = st.sampled_from(KINDS)


def as_declared(field: fields.Field, value: object) -> bool:
    if value is field.default:
        return True
    if isinstance(field, fields.Maybe):
        return value is None or as_declared(field.of, value)
    if isinstance(field, fields.Several):
        return type(value) is tuple and len(value) <= field.most and all(as_declared(field.of, one) for one in value)
    if isinstance(field, fields.Row):
        return type(value) is tuple and all(map(as_declared, field.of, value))
    if isinstance(field, fields.Flag):
        return type(value) is bool
    if isinstance(field, fields.Whole):
        return type(value) is int and field.least <= value <= field.most
    if isinstance(field, fields.Real):
        return type(value) is float and math.isfinite(value) and field.least <= value <= field.most
    if isinstance(field, fields.Name):
        return type(value) is str and names.name(value) == value
    if isinstance(field, fields.Shown):
        return type(value) is str and len(value) <= field.longest and names.lines(value, field.longest) == value
    if isinstance(field, fields.Text):
        return type(value) is str and len(value) <= field.longest
    return type(value) is not str


@given(ANY.flatmap(lambda kind: st.tuples(st.just(kind), valid(kind))))
@settings(deadline=None)
def test_a_valid_message_of_every_kind_becomes_a_typed_value(drawn):
    kind, (said, brought) = drawn
    message = kind.parse(json.loads(json.dumps(said)), brought)
    assert type(message) is kind
    for attribute, _, field in kind.fields:
        assert as_declared(field, getattr(message, attribute)), attribute


@given(ANY.flatmap(lambda kind: st.tuples(st.just(kind), mutated(kind))))
@settings(max_examples=examples(300), deadline=None)
def test_another_message_is_taken_as_declared_or_refused(drawn):
    kind, (said, brought) = drawn
    try:
        message = kind.parse(json.loads(json.dumps(said)), brought)
    except Malformed as error:
        text = str(error)
        assert kind.kind in text and len(text) <= 500
        assert names.line(text, 500) == text
    else:
        for attribute, _, field in kind.fields:
            assert as_declared(field, getattr(message, attribute)), attribute


@given(st.sampled_from(sorted(GROUPS)), st.binary() | WILD.map(lambda value: json.dumps(value).encode()))
@settings(deadline=None)
def test_any_bytes_are_a_message_or_refused(group, data):
    for take in (lambda: Heard.of(data, [], GROUPS[group]), lambda: messages.asked(data)):
        try:
            assert take()
        except Malformed as error:
            assert len(str(error)) <= 500


@pytest.mark.parametrize("bad", [True, 1.5, "7", None, [], {}, -1, 1 << 70, float("nan"), float("inf")])
def test_what_is_no_whole_number_is_refused(bad):
    with pytest.raises(Malformed, match="'job-ended': number"):
        messages.JobEnded.parse({"number": bad})


@pytest.mark.parametrize("bad", [True, "1", None, [], -1.0, 1e13, float("nan"), float("inf"), 10**400])
def test_what_is_no_time_is_refused(bad):
    said = {"number": 1, "name": "export", "tenant": None, "started": bad}
    with pytest.raises(Malformed, match="'job': started"):
        messages.Job.parse(said)


def test_a_name_that_an_earlier_version_sends_raw_is_made_printable():
    said = {"number": 1, "name": "a\x00b", "tenant": "x" * 50_000, "started": 1, "text": "\x1b[2J" * 500}
    job = messages.Job.parse(said)
    assert job.name == names.name("a\x00b") and job.tenant == names.name("x" * 50_000)
    assert len(job.text) <= names.LONGEST and job.text.isprintable()
    assert (job.deadline, job.fraction, job.where, job.overdue) == (None, None, "", False)


def test_a_job_as_earlier_versions_told_it_is_understood():
    """A tenant was whatever the application gave, and a fraction could be true."""
    said = {"number": 3, "name": "", "tenant": 17, "started": 1, "fraction": True, "deadline": 1e300}
    job = messages.Job.parse(said)
    assert (job.tenant, job.fraction, job.deadline) == ("17", 1.0, 1e300)


def test_a_question_of_tomorrow_is_known_to_be_none_of_today():
    assert messages.asked(b'{"v": 1, "do": "dance", "with": "me"}').named == "dance"


@pytest.mark.parametrize(
    "line",
    [
        b'{"do": "rollback", "generation": "7"}',
        b'{"do": "rollback", "from": true}',
        b'{"do": "release", "canary": {"tenants": "acme"}}',
        b'{"do": "release", "canary": {"percent": NaN}}',
        b'{"do": "release", "wait": 3}',
        b'{"do": "stop", "now": "yes"}',
        b'{"do": "hold", "tenant": null}',
        b'{"do": "hold"}',
        b'{"do": "status", "started": Infinity}',
        b'{"do": ["status"]}',
    ],
)
def test_a_question_of_wrong_types_is_refused(line):
    with pytest.raises(Malformed):
        messages.asked(line)


# --- what the processes say -------------------------------------------------------------------------------------------


def sent() -> list[tuple[str, str, set[str], bool]]:
    """Where each kind is sent: place, kind, the fields that are named there, and whether there are others."""
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            words = node.args[:2]
            if node.func.attr == "send" and ast.unparse(node.func.value) == "self.switchboard":
                words = node.args[1:]
            kind = next((one.value for one in words if isinstance(one, ast.Constant) and type(one.value) is str), None)
            if node.func.attr in SENDERS and kind is not None and path.parent.name != "cli" and path.name != "log.py":
                named = {word.arg for word in node.keywords}
                found.append((f"{path.name}:{node.lineno}", kind, named - {None}, None in named))
    return found


def test_every_kind_that_is_sent_is_declared_with_these_fields():
    declared = {kind.kind: {name for _, name, _ in kind.fields} for kind in KINDS}
    required = {
        kind.kind: {name for _, name, field in kind.fields if field.default is fields.REQUIRED} - {"v"}
        for kind in KINDS
        if kind.kind not in messages.QUESTIONS
    }
    places = sent()
    assert len(places) > 40, "the walk finds them"
    for place, kind, named, more in places:
        if kind not in required:
            continue  # a probe's or a companion's words for the log
        assert named <= declared[kind], f"{place} sends {kind} with {named - declared[kind]}"
        assert more or required[kind] <= named, f"{place} sends {kind} without {required[kind] - named}"
    assert required.keys() <= {kind for _, kind, _, _ in places}, required.keys() - {kind for _, kind, _, _ in places}
