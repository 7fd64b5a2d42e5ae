"""What a client or an application says reaches a log, a terminal or a scraper only as printable text."""

from __future__ import annotations

import json

import pytest

from reuseport.cli import doctor
from reuseport.cli.doctor.findings import problem
from reuseport.ipc import logline
from reuseport.master.exposition import render
from reuseport.master.metrics import GAUGE, Metric
from reuseport.options import load, logplace
from reuseport.worker.application import print_traceback

# A cursor that moves, a title, a bell, a C1 sequence, a carriage return, a line separator, a right-to-left mark.
EVIL = "\x1b[2J\x1b]0;x\x07\x9b31m\r[master]\u2028\u202eevil\ud800\0"


def is_printable(text: str) -> bool:
    return all(c in "\n\t" or (c.isprintable() and not "\ud800" <= c <= "\udfff") for c in text)


@pytest.mark.parametrize("flags", [(), ("--log-json",)])
@pytest.mark.parametrize("place", ["-", "/tmp/x.log", "syslog", "syslog://127.0.0.1:514", "journald"])
def test_no_log_gets_a_control_character(place, flags):
    settings = load(["app:app", "--bind", "127.0.0.1:0", *flags], {}, "/")
    try:
        form = logline.form_of(logplace.parse(place), settings)
    except ValueError:
        pytest.skip(f"no such place: {place}")
    for level in ("error", "output"):
        for entry in form("master", level, f"job {EVIL} is lost\nTraceback\tof {EVIL}\n"):
            # The journal's fields have their length in bytes in front of a text of several lines.
            text = entry.partition(b"Traceback")[2] if place == "journald" else entry
            assert is_printable(text.decode().removesuffix("\n"))
            assert b"evil" in text and b"\x1b" not in entry


def test_a_text_stays_in_its_line_and_lines_stay(capsys):
    first, second = logline.plain("7.2", "error", f"{EVIL}\n\tsecond")
    assert b"[7.2] [error] \\x1b[2J" in first and second.endswith(b"[7.2] [error] \tsecond\n")
    assert json.loads(logline.as_json("7", "output", EVIL)[0])["message"] == EVIL  # JSON escapes by itself


def test_a_traceback_of_the_application_moves_no_cursor(capsys):
    try:
        raise ValueError(EVIL)
    except ValueError as error:
        print_traceback(error)
    err = capsys.readouterr().err
    assert is_printable(err) and "ValueError" in err and "\\x1b" in err and "\n  File" in err


def test_findings_of_the_doctor_move_no_cursor():
    found = [("Part", [problem(f"a module {EVIL}", f"remove {EVIL}", detail=f"one\n{EVIL}")])]
    assert is_printable(doctor.render(found, 80)) and "evil" in doctor.render(found, 80)


def test_a_label_that_is_no_utf_8_spoils_no_scrape():
    metric = Metric("x_info", GAUGE, ("label",), "A label.", lambda facts: [((EVIL,), 1)])
    text = render([metric], None).decode()
    assert is_printable(text) and len(text.splitlines()) == 3
