"""Every case of the corpus, however its bytes arrive."""

from __future__ import annotations

import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
from examples import examples
from http_harness import Harness, echo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tls_harness import TlsHarness

CORPUS = Path(__file__).parent.parent / "corpus" / "http"
CASES = [
    pytest.param(case, id=f"{path.stem}: {case['name']}")
    for path in sorted(CORPUS.glob("*.toml"))
    for case in tomllib.loads(path.read_text(encoding="utf-8"))["case"]
]
NEXT = b"GET /next HTTP/1.1\r\nHost: next\r\nConnection: close\r\n\r\n"


# How the clients come, the number of threads, and whether chunked bodies are buffered.
WAYS = {
    "greenlets": (Harness, 0, False),
    "threads": (Harness, 2, False),
    "TLS": (TlsHarness, 0, False),
    "TLS, threads": (TlsHarness, 2, False),
    "buffered": (Harness, 0, True),
}


@pytest.fixture(scope="module", params=WAYS)
def harness(request):
    kind, threads, buffered = WAYS[request.param]
    harness = kind(echo, threads=threads, buffer_chunked=buffered)
    yield harness
    harness.close()


def stream(case) -> bytes:
    return case["send"].encode("latin-1") + NEXT


def check(case, answers, harness) -> None:
    """The outcome that the case demands, and no other."""
    first, *others = answers
    assert first.status == case["status"]
    assert first.whole
    assert not harness.errors()
    ends = case.get("last", False) or first.status >= 400
    assert ("close" in first.headers.get("connection", "")) == ends
    assert [answer.echo["environ"]["PATH_INFO"] for answer in others] == ([] if ends else ["/next"])
    if first.status == 200:
        environ = first.echo["environ"]
        wanted = case.get("environ", {})
        assert {key: environ.get(key) for key in wanted} == wanted
        assert not environ.keys() & set(case.get("absent", ()))
        if "body" in case:
            assert first.echo["body"] == case["body"]


@pytest.mark.parametrize("case", CASES)
def test_whole(case, harness):
    check(case, harness.talk(stream(case)), harness)


@pytest.mark.parametrize("case", CASES)
def test_byte_by_byte(case, harness):
    data = stream(case)
    check(case, harness.talk(*(data[i : i + 1] for i in range(len(data)))), harness)


@pytest.mark.parametrize("harness", ["greenlets", "threads"], indirect=True)
@pytest.mark.parametrize("case", CASES)
def test_split_at_every_byte(case, harness):
    data = stream(case)
    for at in range(1, len(case["send"]) + 2):
        check(case, harness.talk(data[:at], data[at:]), harness)


@given(
    case=st.sampled_from([parameter.values[0] for parameter in CASES]),
    cuts=st.sets(st.integers(1, 400), max_size=8),
)
@settings(max_examples=examples(50), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_pieces(case, cuts, harness):
    data = stream(case)
    edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    check(case, harness.talk(*(data[a:b] for a, b in pairwise(edges))), harness)


@st.composite
def mutants(draw) -> bytes:
    """A case of the corpus with some bytes changed, dropped or doubled."""
    data = bytearray(stream(draw(st.sampled_from([parameter.values[0] for parameter in CASES]))))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data) - 1))
        data[at : at + draw(st.integers(0, 2))] = draw(
            st.sampled_from(
                [b"", b"\r", b"\n", b"\r\n", b" ", b"\t", b"\0", b":", b";", b",", b"0", b"5", b"a", b"\xff"]
            )
        )
    return bytes(data)


@given(data=mutants(), cuts=st.sets(st.integers(1, 300), max_size=4))
@settings(max_examples=examples(150), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_mutants_mean_the_same_however_they_arrive(data, cuts, harness):
    def outcome(answers):
        # Only whether the client is asked for its body (100) depends on whether some of it has come.
        final = [answer for answer in answers if answer.status >= 200]
        return [(answer.status, answer.body if answer.status == 200 else b"", answer.whole) for answer in final]

    whole = outcome(harness.talk(data))
    edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    assert outcome(harness.talk(*(data[a:b] for a, b in pairwise(edges)))) == whole
    assert outcome(harness.talk(*(data[i : i + 1] for i in range(len(data))))) == whole
    assert not harness.errors()
