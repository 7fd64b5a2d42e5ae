"""Files of variables: what systemd and dotenv read alike is taken, and everything else names its line."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from reuseport.master import envfiles
from reuseport.options import OptionError, load, overlooked

GOOD = {
    "A=b": {"A": "b"},
    "A=": {"A": ""},
    "A=''\nB=\"\"": {"A": "", "B": ""},
    "  A = b c  \r\n\n\t# comment = 1\nexport _b2=c": {"A": "b c", "_b2": "c"},
    "A=1\nA=2": {"A": "2"},
    "URL=postgres://u:p=@h/db?x=1#part": {"URL": "postgres://u:p=@h/db?x=1#part"},
    "A=$HOME `x` $$": {"A": "$HOME `x` $$"},
    'A={"x": [1, \'y\']}': {"A": '{"x": [1, \'y\']}'},
    "A=b\"c\" 'd'": {"A": "b\"c\" 'd'"},
    "A=' b # ${c} \\n \" '  ": {"A": ' b # ${c} \\n " '},
    'A=" b # \' \\" \\\\ $c "': {"A": " b # ' \" \\ $c "},
    "KEY='-----BEGIN\nx=y\n# z\n-----END'\nB=1": {"KEY": "-----BEGIN\nx=y\n# z\n-----END", "B": "1"},
    'A="one\n\ntwo"': {"A": "one\n\ntwo"},
    "A=é✓": {"A": "é✓"},
}


@pytest.mark.parametrize("text", GOOD)
def test_what_both_read_alike_is_taken(text):
    assert envfiles.parse(text) == GOOD[text]


BAD = {
    "A=1\nsecret": (2, "there is no ="),
    "\n\n1A=secret": (3, "no name"),
    "A-B=secret": (1, "no name"),
    "export =secret": (1, "missing"),
    "; A=secret": (1, "no name"),
    "A=secret # comment": (1, "A: dotenv takes # for a comment"),
    "A=# secret": (1, "A: dotenv takes # for a comment"),
    "A=sec\\ret": (1, "A: systemd drops a backslash"),
    "A=${secret}": (1, "A: dotenv replaces"),
    'A="${secret}"': (1, "A: dotenv replaces"),
    'X=1\nA="secret\nmore': (2, "A: the quote is not closed"),
    "A='secret": (1, "A: the quote is not closed"),
    "A='secret' # comment": (1, "A: text follows"),
    'A="secret"more': (1, "A: text follows"),
    'A="sec\\nret"': (1, "A: in double quotes"),
    "A='sec\\\\ret'": (1, "A: dotenv takes"),
    "A=sec\rret": (1, "carriage return"),
    "A='sec\r\nret'": (1, "carriage return"),
    "A=sec\0ret": (1, "NUL"),
    "A=secret\u00a0": (1, "A: dotenv removes"),
    "\ufeffA=secret": (1, "byte order mark"),
    "# comment \\\nA=secret": (1, "backslash"),
    "A='x\ny'\nB='z\n'\nsecret": (5, "there is no ="),
}


@pytest.mark.parametrize("text", BAD)
def test_what_they_read_differently_names_the_line_and_no_value(text):
    line, why = BAD[text]
    with pytest.raises(envfiles._Refused) as refused:
        envfiles.parse(text)
    assert refused.value.line == line
    assert why in str(refused.value)
    assert "sec" not in str(refused.value)


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A directory that other users can search: those above `tmp_path` are root's alone."""
    with tempfile.TemporaryDirectory(prefix="ru-", dir="/tmp") as name:
        yield Path(name)


def settings(*files: str, cwd: str = "/"):
    return load(["app:app", *(f"--env-file={file}" for file in files)], {}, cwd)


def test_a_later_file_wins_and_relative_paths_lie_in_the_release(tmp_path):
    (tmp_path / ".env").write_text("A=1\nB=1\n")
    (tmp_path / "more").write_text("B=2\n")
    found = envfiles.read(settings(".env", str(tmp_path / "more"), "-missing"), str(tmp_path), None)
    assert found == {"A": "1", "B": "2"}


def test_an_application_that_reads_its_file_itself_has_no_remark_about_it(tmp_path):
    (tmp_path / ".env").write_text("A=1\n")
    [remark] = overlooked(load(["app:app"], {}, str(tmp_path)))
    assert f"{tmp_path}/.env is not read" in remark and "--env-file /dev/null" in remark
    for said in ("/dev/null", "-/dev/null"):
        silent = settings(said, cwd=str(tmp_path))
        assert (overlooked(silent), envfiles.read(silent, str(tmp_path), None)) == ([], {})


def test_an_error_names_the_option_the_file_and_the_line(tmp_path):
    directory = str(tmp_path)
    (tmp_path / ".env").write_bytes(b"A=1\nB=secret\xff\n")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_text("# " + "x" * envfiles.LARGEST)
    for said, told in {
        ".env": ".env:2: it is not UTF-8",
        "missing": "missing: no such file or directory",
        "pipe": "pipe: it is no regular file",
        "-pipe": "pipe: it is no regular file",
        "large": "large: it is larger than",
        ".": ".: it is no regular file",
    }.items():
        with pytest.raises(OptionError) as error:
            envfiles.read(settings(said), directory, None)
        assert str(error.value).startswith(f"--env-file: {directory}/{told}"), str(error.value)
        assert "secret" not in str(error.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_root_reads_no_secret_through_a_path_that_the_application_could_change(open_path):
    nobody = (65534, 65534)
    owned, mine = open_path / "owned", open_path / "mine"
    owned.mkdir()
    mine.mkdir()
    os.chown(owned, *nobody)
    (mine / "secret").write_text("A=1\n")
    (mine / "secret").chmod(0o600)
    (owned / "env").symlink_to(mine / "secret")
    with pytest.raises(OptionError, match="could exchange"):
        envfiles.read(settings(str(owned / "env")), "/", nobody)
    (mine / "secret").chmod(0o644)
    for directory, mode, refused in ((mine, 0o700, True), (open_path, 0o700, True), (open_path, 0o711, False)):
        open_path.chmod(0o711)
        mine.chmod(0o711)
        directory.chmod(mode)
        if refused:
            with pytest.raises(OptionError, match="could exchange"):
                envfiles.read(settings(str(owned / "env")), "/", nobody)
        else:
            assert envfiles.read(settings(str(owned / "env")), "/", nobody) == {"A": "1"}
    (mine / "deep").mkdir()
    (open_path / "link").symlink_to(mine / "deep")
    assert envfiles.read(settings(f"{open_path}/link/../secret"), "/", nobody) == {"A": "1"}
    mine.chmod(0o700)
    assert envfiles.read(settings(str(mine / "secret")), "/", nobody) == {"A": "1"}, "a path of root's alone"
