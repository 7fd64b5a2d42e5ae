"""What the scripts stand on, without a process: reading answers, making releases, finding an environment."""

import io
import json
import sys
from collections import Counter
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from proving import bootstrap, clients, releases, story
from proving.display import stacked, waits_for
from proving.round import Release, Round, version_serving
from proving.scenarios import SCENARIOS
from proving.server import Outcome
from proving.wire import Malformed, Response

# --- reading answers

WHOLE = {
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\nA: b\r\n\r\n",
    "after 100": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
}


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("step", [1, 7, 1000])
def test_an_answer_is_complete_with_its_last_byte_and_not_before(name, step):
    data, response = WHOLE[name], Response()
    for start in range(0, len(data), step):
        assert not response.complete
        response.feed(data[start : start + step])
    assert response.complete and response.body == b"hello" and not response.closes and response.rest == b""


def test_an_answer_without_a_length_ends_with_its_connection():
    response = Response()
    response.feed(b"HTTP/1.1 200 OK\r\n\r\nhello")
    assert not response.complete
    response.end()
    assert response.complete and response.closes and response.body == b"hello"


@pytest.mark.parametrize(
    ("data", "broken"),
    [
        (b"", "closed before any answer"),
        (b"HTTP/1.1 200 OK\r\nConte", "closed within the head"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell", "truncated"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "truncated"),
    ],
)
def test_an_answer_that_breaks_off_says_where(data, broken):
    response = Response()
    response.feed(data)
    response.end()
    assert not response.complete and response.broken == broken


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    ],
)
def test_what_is_not_http_is_said_to_be_malformed(data):
    with pytest.raises(Malformed):
        Response().feed(data)


def test_what_follows_an_answer_is_not_part_of_it():
    response = Response()
    response.feed(WHOLE["length"] + b"HTTP/1.1 400")
    assert response.complete and response.rest == b"HTTP/1.1 400"


# --- releases, and the clients' idea of them


@pytest.fixture
def made(tmp_path):
    return releases.Releases(tmp_path)


def ask(made, version, target, body=b"", number=7):
    """Ask a release's application, imported from its own directory; the response as the clients see it."""
    directory = made.directory(version)
    spec = spec_from_file_location(f"monolith_{version}", directory / "monolith.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.insert(0, str(directory))
    path, _, query = target.partition("?")
    environ = {"PATH_INFO": path, "QUERY_STRING": f"{query}&id={number}", "reuseport.generation": 4}
    environ["wsgi.input"] = io.BytesIO(body)
    response = Response()

    def start_response(status, headers):
        response.status = int(status.split()[0])
        response.headers = {name.lower(): value for name, value in headers}

    try:
        for piece in module.application(environ, start_response):
            response.body += piece
    finally:
        sys.path.remove(str(directory))
        sys.modules.pop("pricing", None)
    return response


PAGES = [
    "/",
    "/bare",
    "/slow?seconds=0",
    "/burn?seconds=0",
    "/work?ms=1",
    "/job?seconds=0",
    "/stream?pieces=3&seconds=0",
]


@pytest.mark.parametrize("target", PAGES)
def test_the_clients_accept_what_a_release_answers(made, target):
    made.next()
    version = made.next()
    response = ask(made, version, target)
    assert clients.misfit(7, clients.Ask("x", target), response) == ""
    assert (response.number("x-version"), response.number("x-generation")) == (version, 4)


def test_an_upload_is_counted_and_hashed(made):
    version = made.next()
    body = bytes(range(256)) * 200
    assert clients.misfit(7, clients.Ask("upload", "/upload", body=body), ask(made, version, "/upload", body)) == ""
    response = ask(made, version, "/upload", body[:-1])
    assert "51199 of 51200" in clients.misfit(7, clients.Ask("upload", "/upload", body=body), response)


def test_the_clients_notice_another_releases_price_banner_or_number(made):
    version = made.next()
    good = ask(made, version, "/")
    for key, value in (("price", 1), ("banner", "release 9"), ("id", 8), ("version", 9)):
        response = Response()
        response.status, response.headers = 200, dict(good.headers)
        response.body += json.dumps({**json.loads(good.body), key: value}).encode()
        assert clients.misfit(7, clients.Ask("x", "/"), response).startswith("wrong body")


def test_the_clients_notice_a_stream_that_lacks_a_piece(made):
    response = ask(made, made.next(), "/stream?pieces=3&seconds=0")
    lines = bytes(response.body).split(b"\n")
    response.body = bytearray(b"\n".join(lines[:2] + lines[3:]))
    assert clients.misfit(7, clients.Ask("stream", "/stream"), response).startswith("wrong body")


@pytest.mark.parametrize("target", ["/", "/stream?pieces=1&seconds=0", "/bare"])
@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"\xff\n\n\n"])
def test_the_clients_notice_any_other_body(target, body):
    response = Response()
    response.status, response.headers = 200, {"x-version": "1"}
    response.body += body
    assert clients.misfit(7, clients.Ask("x", target), response).startswith("wrong body")


def test_each_release_has_really_changed_code(made):
    first, second = made.next(), made.next()
    assert json.loads(ask(made, first, "/").body)["price"] != json.loads(ask(made, second, "/").body)["price"]


def test_current_always_points_somewhere(made):
    first = made.next()
    assert made.current.resolve() == made.directory(first)
    second = made.write()
    assert made.current.resolve() == made.directory(first)
    made.point(second)
    assert made.current.resolve() == made.directory(second)


@pytest.mark.parametrize("variant", sorted(releases.VARIANTS))
def test_only_the_syntax_error_does_not_compile(made, variant):
    code = (made.directory(made.next(variant)) / "monolith.py").read_text()
    if variant == "syntax error":
        with pytest.raises(SyntaxError):
            compile(code, "monolith.py", "exec")
    else:
        compile(code, "monolith.py", "exec")


def test_a_heap_is_of_rows_that_a_request_looks_at(made):
    version = made.next(heap_mb=1)
    response = ask(made, version, "/rows")
    assert clients.misfit(7, clients.Ask("x", "/rows"), response) == ""
    assert len(json.loads(response.body)["names"]) == 20


# --- the environment


def test_what_an_environment_lacks_is_told():
    assert bootstrap.missing(["test"]) == []


def test_a_version_that_is_too_old_is_lacking(monkeypatch):
    monkeypatch.setattr(bootstrap, "requirements", lambda extras: ["pytest>=999", "no-such-package>=1", "pytest"])
    assert bootstrap.missing([]) == ["pytest>=999", "no-such-package>=1"]


def test_a_requirement_of_newer_pythons_is_asked_for_there_only(monkeypatch):
    minor = sys.version_info.minor
    wanted = [f'no-such-package>={n}; python_version >= "3.{minor + n}"' for n in (-1, 0, 1)]
    monkeypatch.setattr(bootstrap, "requirements", lambda extras: wanted)
    assert bootstrap.missing([]) == ["no-such-package>=-1", "no-such-package>=0"]


def test_the_stamp_changes_with_the_extras_and_the_constraints(monkeypatch, tmp_path):
    assert bootstrap.stamp(["cli"]) != bootstrap.stamp(["cli", "test"])
    without = bootstrap.stamp(["cli"])
    constraints = tmp_path / "oldest.txt"
    monkeypatch.setattr(bootstrap, "CONSTRAINTS", constraints)
    constraints.write_text("gevent==1\n")
    first = bootstrap.stamp(["cli"])
    constraints.write_text("gevent==2\n")
    assert without != first != bootstrap.stamp(["cli"])


def test_a_failing_command_is_told_in_one_line():
    command = [sys.executable, "-c", "print('working'); print('ERROR: no index'); raise SystemExit(1)"]
    with pytest.raises(bootstrap.Unusable, match=r"^could not install: ERROR: no index$"):
        bootstrap.call(command, "could not install")
    command[-1] = "print('WARNING: Retrying after connection broken by X');" + command[-1]
    with pytest.raises(bootstrap.Unusable, match=r"ERROR: no index; no connection: .* PIP_INDEX_URL"):
        bootstrap.call(command, "could not install")


def test_without_a_newer_python_the_error_says_which_is_needed(monkeypatch):
    monkeypatch.setattr(bootstrap.shutil, "which", lambda name: None)
    with pytest.raises(bootstrap.Unusable, match=r"needs Python 3\.11 or newer"):
        bootstrap.newer_python()


# --- judging a release

SHOWN = "LookupError: release 2: the table customers has no column currency"


@pytest.mark.parametrize(
    ("variant", "outcome", "serving", "error", "trouble"),
    [
        ("good", "served", 2, "", ""),
        ("good", "failed", 1, "why", "a good release failed: why"),
        ("good", "served", 1, "", "generation 1 serves as before"),
        ("raises", "failed", 1, SHOWN, ""),
        ("raises", "failed", 1, "it failed", "was not shown"),
        ("raises", "served", 2, "", "code that raises serves"),
        ("raises", "failed", 2, SHOWN, "yet generation 2 serves"),
    ],
)
def test_a_release_is_judged_by_what_it_should_have_come_to(variant, outcome, serving, error, trouble):
    judged = Release(2, variant, "release", asked=100.0, ended=101.0, outcome=outcome, error=error, generation=serving)
    Round(load=False).settle(judged, before=1, variant=variant)
    assert trouble in judged.trouble and bool(trouble) == bool(judged.trouble)


# --- the display


def test_a_column_of_the_timeline_is_as_high_as_its_share_and_stacks_the_oldest_below():
    cells = stacked(Counter({2: 50, 1: 50}), highest=100, height=4)
    assert cells == [("█", 1), ("█", 1), ("█", 2), ("█", 2)]
    assert [character for character, _ in stacked(Counter({1: 25}), highest=100, height=4)] == ["█", " ", " ", " "]


def test_a_version_that_answered_at_all_is_seen():
    cells = stacked(Counter({1: 1, 2: 3}), highest=10_000, height=2)
    assert cells[0][0] == "▂" and cells[0][1] in (1, 2)


@pytest.mark.parametrize(
    ("waits", "said"),
    [
        ({"requests": 1, "connections": 3, "jobs": []}, "1 request, 3 connections"),
        ({"requests": 0, "connections": 0, "jobs": []}, "its processes to end"),
        ({"requests": 0, "connections": 0, "jobs": [{"name": "export", "tenant": "acme"}]}, "job export of acme"),
        (None, "its processes to end"),
    ],
)
def test_what_a_drain_waits_for_in_words(waits, said):
    assert waits_for({"waits_for": waits}) == said


def test_every_scenario_says_what_it_measures():
    for name, scenario in SCENARIOS.items():
        assert (scenario.__doc__ or "").strip(), name


# --- going back, and who works


def status_of(*generations, serving, releases=()):
    return {"generations": list(generations), "serving": serving, "releases": list(releases)}


def test_a_generation_that_stands_by_does_not_work():
    stands_by = {"number": 1, "directory": "/x/releases/4", "workers": []}
    serves = {"number": 2, "directory": "/x/releases/5", "workers": [{"connections": 3, "requests": {"active": 1}}]}
    status = status_of(stands_by, serves, serving=2)
    assert story.one_left(status) and version_serving(status) == 5
    drains = {**serves, "number": 1}
    assert not story.one_left(status_of(drains, serves, serving=2))
    assert not story.idle_is_handed_over(status_of(drains, serves, serving=2))
    drains = {**drains, "workers": [{"connections": 1, "requests": {"active": 1}}]}
    assert story.idle_is_handed_over(status_of(drains, serves, serving=2))


@pytest.mark.parametrize(("comes", "trouble"), [(4, ""), (5, "version 5 serves instead")])
def test_a_rollback_has_to_bring_the_version_before(comes, trouble):
    generation = {"number": 2, "directory": "/x/releases/5", "workers": []}
    back = {"number": 3, "directory": f"/x/releases/{comes}", "workers": []}
    brought = [{"directory": f"/x/releases/{version}", "outcome": "serving"} for version in (3, 4, 5)]
    told = [status_of(generation, serving=2, releases=brought)]

    class Server:
        def status(self):
            return told[0]

        def release(self, do):
            told[0] = status_of(back, serving=3, releases=brought)
            return Outcome(0, 0.1, "", "")

    rounds = Round(load=False)
    rounds.server = Server()
    release = rounds.rollback()
    assert (release.version, release.trouble) == (4, trouble)


def test_there_is_nothing_to_go_back_to_from_the_first_version():
    first = {"directory": "/x/releases/1", "outcome": "serving"}
    rounds = Round(load=False)
    rounds.server = type(
        "Server", (), {"status": lambda self: status_of({"number": 1, **first}, serving=1, releases=[first])}
    )()
    assert rounds.rollback() is None


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 3 10", "it is Python 3.10, and 3.11 is needed"),
        ("echo hello; exit 0", "not a Python: hello"),
        ("exit 7", "not a Python: it printed nothing"),
        (None, "No such file or directory"),
    ],
)
def test_an_interpreter_that_does_not_fit_is_refused(tmp_path, script, said):
    path = tmp_path / "python"
    if script is not None:
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    with pytest.raises(bootstrap.Unusable) as refused:
        bootstrap.version_of(str(path))
    assert str(refused.value) == f"--python {path}: {said}"


def test_an_interpreters_environment_is_named_after_its_version(tmp_path, monkeypatch):
    for name in ("VENV", "PYTHON", "STAMP", "BASE", "CONSTRAINTS"):
        monkeypatch.setattr(bootstrap, name, getattr(bootstrap, name))
    path = tmp_path / "python"
    path.write_text("#!/bin/sh\necho 9 99\n")
    path.chmod(0o755)
    made: list[dict] = []
    became: list[Path] = []
    monkeypatch.setattr(bootstrap, "make", made.append)
    monkeypatch.setattr(bootstrap, "become", became.append)
    bootstrap.use_python(str(path))
    bootstrap.ensure([])
    assert became == [bootstrap.CHECKOUT / ".venv-9.99" / "bin" / "python"]
    assert [stamp["python"] for stamp in made] == [str(path)]
