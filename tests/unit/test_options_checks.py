"""What is found wrong before anything starts, and what the defaults read from the machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from reuseport.options import OptionError, check, load
from reuseport.options.checks import find_directory, find_interpreter, find_user
from reuseport.options.machine import name_of, usable_cores


@pytest.fixture
def cwd(tmp_path: Path) -> str:
    return str(tmp_path)


def problems(cwd: str, *argv: str) -> list[str]:
    return check(load(["--run-dir", "run", *argv], {}, cwd))


def test_nothing_wrong(cwd: str) -> None:
    user = str(os.geteuid())
    assert problems(cwd, "shop:app", "-p", "x.pid", "-u", user, "-b", "unix:x.sock", "--log-file", "/dev/stderr") == []


def test_each_mistake_is_one_line_that_begins_with_the_option(cwd: str) -> None:
    Path(cwd, "plain").touch()
    found = problems(
        cwd, "-p", "no/x.pid", "-u", "no-such-user", "-b", "unix:no/x.sock", "--log-file", "/", "--run-dir=plain"
    )
    assert found == [
        "which application? name it as MODULE:APP (see reuseport serve --help)",
        "-u: there is no user 'no-such-user'",
        f"-b: unix:{cwd}/no/x.sock: there is no directory {cwd}/no",
        f"-p: {cwd}/no/x.pid: there is no directory {cwd}/no",
        "--log-file: /: is a directory",
        f"--run-dir: the run directory {cwd}/plain is not a directory; --run-dir takes another",
    ]
    assert problems(cwd, "a:b", "-g", "no-such-group") == ["-g: there is no group 'no-such-group'"]
    [line] = problems(cwd, "a:b", "--run-dir", "/" + "x" * 90)
    assert "too long a path" in line


def test_a_run_directory_of_another_user(cwd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    Path(cwd, "run").mkdir()
    [line] = problems(cwd, "a:b")
    assert line == (
        f"--run-dir: the run directory {cwd}/run belongs to {name_of(mine)}, and this runs as {name_of(mine + 1)}"
    )


def test_only_root_may_become_another_user(cwd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    [line] = problems(cwd, "a:b", "-u", "12346")
    assert line == "-u: only a master that root started can become another user"


def test_the_directory_is_where_its_links_lead_now(cwd: str) -> None:
    Path(cwd, "1").mkdir()
    Path(cwd, "current").symlink_to("1")
    settings = load(["--chdir", "current"], {}, cwd)
    assert find_directory(settings) == f"{cwd}/1"
    Path(cwd, "1").rmdir()
    with pytest.raises(OptionError) as caught:
        find_directory(settings)
    assert str(caught.value) == f"--chdir: '{cwd}/current' is not a directory (it leads to {cwd}/1)"


def test_the_interpreters_own_link_is_kept_and_its_directorys_are_followed(cwd: str) -> None:
    Path(cwd, "1/venv/bin").mkdir(parents=True)
    Path(cwd, "1/venv/bin/python").symlink_to(sys.executable)
    Path(cwd, "current").symlink_to("1")
    assert find_interpreter(load(["--python", "venv/bin/python"], {}, cwd), f"{cwd}/1") == f"{cwd}/1/venv/bin/python"
    absolute = load(["--python", f"{cwd}/current/venv/bin/python"], {}, cwd)
    assert find_interpreter(absolute, "/") == f"{cwd}/1/venv/bin/python"
    assert find_interpreter(load([], {}, cwd), "/") == sys.executable
    assert find_interpreter(load(["--python", "sh"], {}, cwd), "/").endswith("/sh")


@pytest.mark.parametrize(
    ("python", "why"),
    [
        ("gone/python", "there is no interpreter"),
        ("no-such-python", "is not in PATH"),
        ("./plain", "is not executable"),
    ],
)
def test_an_interpreter_that_cannot_run(python: str, why: str, cwd: str) -> None:
    Path(cwd, "plain").touch(mode=0o600)
    settings = load(["--python", python], {}, cwd)
    with pytest.raises(OptionError, match=f"^--python: .*{why}"):
        find_interpreter(settings, cwd)


def test_users_and_groups_by_name_and_number(cwd: str) -> None:
    assert find_user(load([], {}, cwd)) is None
    assert find_user(load(["-u", "root"], {}, cwd)) == (0, 0)
    assert find_user(load(["-u", "0", "-g", "7"], {}, cwd)) == (0, 7)
    assert find_user(load(["-u", "3999999999"], {}, cwd)) == (3999999999, 3999999999)
    assert find_user(load(["-g", "root"], {}, cwd)) == (os.geteuid(), 0)
    for bad in ("4294967295", "99999999999999999999"):
        with pytest.raises(OptionError, match="is not the number of a user"):
            find_user(load(["-u", bad], {}, cwd))


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, None),
        ({"sys/fs/cgroup/cpu.max": "max 100000"}, None),
        ({"sys/fs/cgroup/cpu.max": "50000 100000"}, 1),
        ({"sys/fs/cgroup/cpu.max": "150000 100000"}, 2),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "100000 100000"}, 1),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, None),
        ({"sys/fs/cgroup/cpu.max": "rubbish"}, None),
    ],
)
def test_a_quota_limits_the_usable_cores(
    files: dict[str, str], cores: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert usable_cores(root=str(tmp_path)) == (cores or 64)


def test_certificates(cwd: str) -> None:
    import trustme

    authority = trustme.CA()
    mine, other = authority.issue_cert("localhost"), authority.issue_cert("localhost")
    both, certificate, key, wrong, locked, nonsense = (
        os.path.join(cwd, name)
        for name in ("both.pem", "cert.pem", "key.pem", "wrong.pem", "locked.pem", "nonsense.pem")
    )
    mine.private_key_and_cert_chain_pem.write_to_path(both)
    mine.cert_chain_pems[0].write_to_path(certificate)
    mine.private_key_pem.write_to_path(key)
    other.private_key_pem.write_to_path(wrong)
    Path(nonsense).write_text("nonsense")
    subprocess.run(
        ["openssl", "pkey", "-in", key, "-aes256", "-passout", "pass:x", "-out", locked],
        check=True,
        capture_output=True,
    )
    assert problems(cwd, "a:b", "--certfile", both) == []
    assert problems(cwd, "a:b", "--certfile", "cert.pem", "--keyfile", "key.pem", "--ca-certs", "cert.pem") == []
    for argv, says in (
        (["--keyfile", key], "--keyfile: means nothing without --certfile"),
        (["--cert-reqs", "2"], "--cert-reqs: means nothing without --certfile"),
        (["--certfile", both, "--cert-reqs", "2"], "--cert-reqs: asks for client certificates, which --ca-certs must"),
        (["--certfile", "no.pem"], f"--certfile: {cwd}/no.pem: no such file or directory"),
        (["--certfile", cwd], f"--certfile: {cwd}: is a directory"),
        (["--certfile", certificate], f"--certfile: {certificate}: holds no private key in PEM form; --keyfile names"),
        (["--certfile", nonsense], f"--certfile: {nonsense}: holds no certificate in PEM form"),
        (["--certfile", certificate, "--keyfile", nonsense], f"--keyfile: {nonsense}: holds no private key"),
        (
            ["--certfile", certificate, "--keyfile", wrong],
            f"--keyfile: {wrong}: the key is not that of the certificate",
        ),
        (["--certfile", certificate, "--keyfile", locked], f"--keyfile: {locked}: the key has a password"),
        (["--certfile", both, "--ca-certs", nonsense], f"--ca-certs: {nonsense}: holds no certificates in PEM form"),
    ):
        [line] = problems(cwd, "a:b", *argv)
        assert line.startswith(says), line
