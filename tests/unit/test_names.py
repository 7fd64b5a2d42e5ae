"""Names of tenants and jobs are printable, and two of them never become one."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reuseport import names

WILD = st.text(st.characters(codec=None), max_size=300) | st.text(st.sampled_from("a\\\n\x00\x1b\x9b\ud800\u202e~"))
SAFE = ("acme", "Übersee & Söhne", "домен", "株式会社", "CORP\\alice", "a b", "👩‍💻", "می‌خواهم", "")


def is_safe(text: str) -> bool:
    text.encode()  # UnicodeEncodeError for a surrogate
    return not any(unicodedata.category(one) in ("Cc", "Cs", "Zl", "Zp") or one in "\u202e\u2066\ufeff" for one in text)


@pytest.mark.parametrize("text", SAFE)
def test_what_can_be_printed_stays_as_it_is(text):
    assert names.name(text) == names.line(text) == names.lines(text, 200) == text


@given(WILD)
def test_a_name_is_short_and_safe_and_passes_twice(text):
    name = names.name(text)
    assert is_safe(name) and len(name) <= names.LONGEST
    assert names.name(name) == name


@given(WILD, WILD)
def test_two_names_never_become_one(one, other):
    assert one == other or names.name(one) != names.name(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a\nb", "a\\nb"),
        ("a\n\\n", "a\\n\n"),
        ("a\x00", "a"),
        ("a\ud800", "a\ufffd"),
        ("x" * 70_000, "x" * 70_001),
        ("x" * 201, "x" * 200),
        ("\x00" * 70_000 + "a", "\x00" * 70_000 + "b"),
    ],
)
def test_names_that_look_alike_stay_apart(one, other):
    assert names.name(one) != names.name(other)


def test_what_is_shown_of_a_name_that_cannot_be_printed():
    shown, tilde, digest = names.name("a\x00b\n\x1b[31m").partition("~")
    assert (shown, tilde, len(digest)) == ("a\\x00b\\n\\x1b[31m", "~", names.DIGEST)


@given(WILD, st.integers(10, 250))
def test_a_line_is_safe_and_no_longer_than_was_asked(text, longest):
    line, lines = names.line(text, longest), names.lines(text, longest)
    assert is_safe(line) and len(line) <= longest
    assert is_safe(lines.replace("\n", "").replace("\t", "")) and len(lines) <= longest


def test_lines_keep_their_ends():
    assert names.lines("one\n\ttwo\x1b", 100) == "one\n\ttwo\\x1b"
    assert names.line("one\n\ttwo\x1b") == "one\\n\\ttwo\\x1b"
    assert names.line("x" * 500) == "x" * 197 + "..."
