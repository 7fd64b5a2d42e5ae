"""The doctor's judgement on facts that are made up here; no machine is looked at, but for what reads a text."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from reuseport.cli import doctor
from reuseport.cli.doctor import facts as gathering
from reuseport.cli.doctor import machine, nginx, serving, surroundings
from reuseport.cli.doctor.checks import CHECKS
from reuseport.cli.doctor.drivers import DRIVERS
from reuseport.cli.doctor.findings import Facts, Finding, Place
from reuseport.cli.ink import Ink
from reuseport.cli.main import main
from reuseport.options import Settings, load
from reuseport.options.companions import COMPANION


def settings(*argv: str) -> Settings:
    return load(["shop:app", "-w", "2", "--run-dir", "/run/reuseport/shop", *argv], {}, "/srv")


def facts(*argv: str, **known: Any) -> Facts:
    return Facts(settings(*argv), version="1", **known)


LOADED: dict[str, Any] = {
    "version": "1",
    "python": "3.11.7",
    "error": "",
    "output": "",
    "seconds": 1.0,
    "rss": 100 << 20,
    "left_behind": [],
    "modules": {},
    "early": [],
}
PACKAGES = {
    "python": "3.11.7",
    "reuseport": {"version": "0.1.0", "from": "server"},
    "gevent": {"version": "23.7.0", "from": "application"},
    "greenlet": {"version": "2.0.2", "from": "application"},
}
STATUS = {"master": {"pid": 7, "version": "1"}, "serving": 3, "generations": [{"number": 3, "memory": 1 << 30}]}
UNIT = {
    "Id": "shop.service",
    "Type": "notify",
    "KillMode": "process",
    "OOMPolicy": "continue",
    "TimeoutStopUSec": "infinity",
    "Restart": "on-failure",
    "ExecReload": "{ path=/venv/bin/reuseport ; }",
    "RuntimeDirectory": "reuseport/shop",
    "RuntimeDirectoryPreserve": "restart",
    "PrivateTmp": "no",
}
NGINX = {
    "where": "app.conf:3",
    "proxy_read_timeout": "1h",
    "proxy_send_timeout": "5m",
    "proxy_next_upstream": "off",
    "proxy_http_version": "1.1",
    "connection": "",
    "keepalive": "32",
    "keepalive_timeout": "60s",
}
HERE = Place("/run/reuseport/shop", "tmpfs")


def loaded(**other: Any) -> dict[str, Any]:
    return {**LOADED, **other}


# Each row: a check, facts that it finds fine, facts that it does not, the grade of that, and a word of its text.
ROWS = [
    (machine.configuration, facts(), facts(refused=["-w: no"]), "problem", "-w: no"),
    (machine.configuration, facts(), facts(remarks=["-k means nothing"]), "warning", "-k"),
    (
        machine.logs,
        facts("--user", "www", "--log-file", "/var/log/shop.log", logs={"log_file": ""}),
        facts("--log-file", "/srv/logs/log", logs={"log_file": "'log' is a symbolic link"}),
        "problem",
        "/srv/logs/log: 'log' is a symbolic link: a start is refused",
    ),
    (
        machine.logs,
        facts("--log-file", "syslog", log_daemons={"log_file": ""}),
        facts("--access-log", "journald", log_daemons={"access_log": "as the user of the workers (www): Denied"}),
        "problem",
        "--access-log: journald: as the user of the workers (www): Denied: the daemon gets nothing",
    ),
    (
        machine.programs,
        facts(),
        facts(unreached={"mail": "there is no such program in its PATH"}),
        "problem",
        "companion mail: there is no such program in its PATH",
    ),
    (
        machine.addresses,
        facts(),
        facts(refused_addresses={"127.0.0.1:80": "Address already in use (pid 7, nginx)"}),
        "problem",
        "--bind 127.0.0.1:80: Address already in use (pid 7, nginx)",
    ),
    (
        surroundings.early_hints,
        facts("--early-hints", "on", proxies=[NGINX], nginx_version=(1, 29)),
        facts("--early-hints", "on", proxies=[NGINX], nginx_version=(1, 28)),
        "problem",
        "103",
    ),
    (machine.kernel, facts(kernel=(5, 10)), facts(kernel=(5, 3)), "problem", "5.3"),
    (
        machine.accept_queues,
        facts(sysctls={"net.core.somaxconn": "4096"}),
        facts(sysctls={"net.core.somaxconn": "128"}),
        "warning",
        "128",
    ),
    (machine.migration, facts(sysctls={"net.ipv4.tcp_migrate_req": "0"}), None, "", ""),
    (
        machine.descriptors,
        facts(limits={"Max open files": (1024, None)}),
        facts(limits={"Max open files": (1024, 1024)}),
        "problem",
        "1024",
    ),
    (
        machine.descriptors,
        facts(limits={"Max open files": (1024, 524288)}),
        facts(limits={"Max open files": (1024, 8192)}),
        "warning",
        "8192",
    ),
    (machine.tasks, facts(tasks=(10, 500)), facts(tasks=(490, 500)), "problem", "TasksMax"),
    (
        machine.tasks,
        facts("--threads", "8", limits={"Max processes": (None, None)}, sysctls={"kernel.pid_max": "32768"}),
        facts("--threads", "8", limits={"Max processes": (40, 40)}, uid=1000),
        "problem",
        "LimitNPROC",
    ),
    (
        machine.overcommit,
        facts(sysctls={"vm.overcommit_memory": "0"}),
        facts(sysctls={"vm.overcommit_memory": "2"}),
        "warning",
        "overcommit",
    ),
    (
        machine.memory,
        facts(free_memory=4 << 30, status=STATUS),
        facts(free_memory=512 << 20, status=STATUS),
        "problem",
        "is refused",
    ),
    (
        machine.memory,
        facts(free_memory=1 << 30),
        facts("--no-check-memory", free_memory=1 << 20, status=STATUS),
        "problem",
        "killing",
    ),
    (
        machine.memory,
        facts(free_memory=400 << 20, application=loaded()),
        facts(free_memory=250 << 20, application=loaded()),
        "warning",
        "second release",
    ),
    (
        machine.memory,
        facts(free_memory=400 << 20, application=loaded()),
        facts(free_memory=400 << 20, application=loaded(left_behind=["1 native thread"])),
        "problem",
        "two generations",
    ),
    (machine.out_of_memory, facts(), facts(oom_group=True), "problem", "oom.group"),
    (machine.workers, facts(cores=2), facts("-w", "5", cores=2), "warning", "5 workers on 2"),
    (machine.run_directory, facts(run_dir=HERE), facts(run_dir=replace(HERE, filesystem="nfs4")), "problem", "nfs4"),
    (machine.run_directory, facts(run_dir=HERE), facts(run_dir=replace(HERE, mode=0o755)), None, ""),
    (machine.run_directory, facts(run_dir=HERE), facts(run_dir=replace(HERE, mode=0o770)), "problem", "0770"),
    (machine.run_directory, facts(run_dir=HERE), facts(run_dir=replace(HERE, free=4096)), "problem", "4K"),
    (machine.run_directory, facts(run_dir=HERE), facts(run_dir=HERE, session="ann"), "warning", "ann"),
    (
        machine.run_directory,
        facts(run_dir=replace(HERE, exchange="")),
        facts(run_dir=replace(HERE, exchange="/tmp has the mode 0777")),
        "problem",
        "0777",
    ),
    (
        machine.state_directory,
        facts(state_dir=Place("/var/lib/shop", "ext4")),
        facts(state_dir=HERE),
        "warning",
        "after a reboot",
    ),
    *(
        (surroundings.unit, facts(unit=UNIT), facts(unit={**UNIT, key: value}), grade, word)
        for key, value, grade, word in (
            ("Type", "simple", "warning", "Type=simple"),
            ("Type", "forking", "problem", "forks away"),
            ("KillMode", "control-group", "problem", "KillMode"),
            ("KillMode", "mixed", "warning", "KillMode=mixed"),
            ("OOMPolicy", "stop", "problem", "OOMPolicy=stop"),
            ("Restart", "no", "warning", "Restart=no"),
            ("ExecReload", "", "warning", "ExecReload"),
            ("RuntimeDirectoryPreserve", "no", "warning", "RuntimeDirectoryPreserve"),
        )
    ),
    (
        surroundings.unit,
        facts(unit={**UNIT, "TimeoutStopUSec": "1min 30s"}),  # the master asks for more
        facts(unit={**UNIT, "TimeoutStopUSec": "1min 30s", "Type": "exec"}),
        "warning",
        "1min 30s",
    ),
    (
        surroundings.unit,
        facts(unit={**UNIT, "PrivateTmp": "yes"}),
        facts("--run-dir", "/tmp/shop", unit={**UNIT, "PrivateTmp": "yes"}),
        "problem",
        "PrivateTmp",
    ),
    *(
        (surroundings.proxies, facts(proxies=[NGINX]), facts(proxies=[{**NGINX, key: value}]), grade, word)
        for key, value, grade, word in (
            ("proxy_read_timeout", None, "warning", "its default"),
            ("proxy_read_timeout", "30s", "warning", "504"),
            ("proxy_send_timeout", "500ms", "warning", "proxy_send_timeout 500ms"),
            ("proxy_next_upstream", "error timeout non_idempotent", "problem", "twice"),
            ("proxy_next_upstream", "error timeout http_502", "warning", "sent again"),
            ("proxy_next_upstream", None, "warning", "error timeout, its default"),
            ("proxy_http_version", None, "warning", "connection of its own"),
            ("connection", None, "warning", "connection of its own"),
            ("keepalive", None, "warning", "connection of its own"),
            ("keepalive_timeout", "2m", "problem", "502"),
        )
    ),
    (serving.loading, facts(application=loaded()), facts(application=loaded(seconds=100.0)), "warning", "100.0 s"),
    (serving.loading, facts(application=loaded()), facts(application=loaded(version="0")), "warning", "reuseport 0"),
    (serving.loading, facts(), facts(application={"error": "no module", "output": "x"}), "problem", "no module"),
    (
        serving.loading,
        facts(application=loaded(packages=PACKAGES, mismatch="")),
        facts(application=loaded(packages=PACKAGES, mismatch="gevent asks for greenlet 3 or newer: install it")),
        "warning",
        "gevent asks for greenlet 3 or newer",
    ),
    (
        serving.fork_safety,
        facts(application=loaded()),
        facts(application=loaded(left_behind=["1 native thread"])),
        "warning",
        "1 native thread",
    ),
    (
        serving.fork_safety,
        facts("--preload", "never", application=loaded(left_behind=["1 native thread"])),
        facts("--preload", "always", application=loaded(left_behind=["1 native thread"])),
        "problem",
        "always forks",
    ),
    (
        serving.patch_order,
        facts(application=loaded()),
        facts(application=loaded(early=["requests.adapters (socket.socket)"])),
        "problem",
        "requests.adapters",
    ),
    (serving.patch_order, facts(application=loaded()), facts(application=loaded(ssl_early=True)), "warning", "ssl"),
    (
        serving.parallel,
        facts("--threads", "2", application=loaded(multiprocessing={"shop": ["Pool"]}, start_method="forkserver")),
        facts(application=loaded(multiprocessing={"shop.tasks": ["Pool"]}, start_method="fork")),
        "warning",
        "shop.tasks",
    ),
    (
        serving.parallel,
        facts(application=loaded(multiprocessing={"shop": ["ProcessPoolExecutor"]}, start_method="forkserver")),
        facts(
            application=loaded(
                python="3.14.2", multiprocessing={"shop": ["ProcessPoolExecutor"]}, start_method="forkserver"
            )
        ),
        "warning",
        "forkserver",
    ),
    (serving.running, facts(status=STATUS), facts(status={**STATUS, "serving": None}), "problem", "no generation"),
    (serving.running, facts(), facts(silent="the master has not answered"), "problem", "has not answered"),
    (
        serving.running,
        facts(status=STATUS),
        facts(status={**STATUS, "generations": [{"number": 3, "workers": [{"id": "3.1", "state": "blocked"}]}]}),
        "problem",
        "3.1",
    ),
    (
        serving.running,
        facts(status={**STATUS, "releases": [{"outcome": "serving", "number": 3}]}),
        facts(status={**STATUS, "releases": [{"outcome": "failed", "error": "ImportError: no"}]}),
        "warning",
        "ImportError",
    ),
    (serving.running, facts(status=STATUS), replace(facts(status=STATUS), version="2"), "warning", "this is 2"),
    (
        serving.drains,
        facts(status={"generations": [{"number": 2, "state": "draining", "since": 60}]}),
        facts(
            status={
                "generations": [
                    {"number": 2, "state": "draining", "since": 7200, "waits_for": {"jobs": [{"name": "export"}]}}
                ]
            }
        ),
        "warning",
        "job 'export'",
    ),
    (serving.losses, facts(status=STATUS), facts(status={"lost": {"jobs": [{}]}}), "warning", "1 job"),
    (machine.overflows, facts(overflows=0), facts(overflows=3), "warning", "3 connections"),
    (
        serving.queues,
        facts(queues=[("port 8000", 5)]),
        facts(queues=[("port 8000", 1500)]),
        "problem",
        "1500 connections wait",
    ),
]


@pytest.mark.parametrize(("check", "good", "bad", "grade", "word"), ROWS)
def test_each_check_finds_what_it_looks_for_and_nothing_else(check, good, bad, grade, word) -> None:
    assert all(one.grade == "fine" and not one.remedy for one in check(good))
    found = [one for one in check(bad) if one.grade != "fine"] if bad else []
    if grade:
        assert [one.grade for one in found if word in one.text] == [grade]
        assert len(found) <= 2, "Type=exec is told beside its timeout"
        assert all(one.remedy and "\n" not in one.remedy for one in found)
    else:
        assert not found


def test_every_check_has_a_row_and_passes_over_what_is_not_known() -> None:
    checks = [check for _, some in CHECKS for check in some]
    assert {row[0] for row in ROWS} | {serving.clients, machine.companions, machine.readiness} == set(checks)
    for check in checks:
        assert all(one.grade == "fine" for one in check(facts()))


def judged(*modules: str, threads: int = 0, **found: Any) -> list[Finding]:
    argv = ["--threads", str(threads)] if threads else []
    return list(serving.clients(facts(*argv, application=loaded(modules=dict.fromkeys(modules, "2.9"), **found))))


def test_drivers_that_wait_in_c_are_named_with_another_one() -> None:
    for driver in DRIVERS:
        [one] = judged(driver.module)
        assert one.grade in ("fine", "warning")
        assert bool(one.remedy) == (one.grade == "warning")
        assert [one.grade for one in judged(driver.module, threads=4)] == ["fine"], "--threads is the other remedy"
    assert judged("flask") == []


def test_drivers_whose_state_tells() -> None:
    assert judged("psycopg2")[0].grade == "warning"
    assert judged("psycopg2", psycopg2_waits_green=True)[0].grade == "fine"
    assert judged("oracledb")[0].grade == "fine"
    assert judged("oracledb", oracledb_thick=True)[0].grade == "warning"
    assert judged("grpc")[0].grade == "warning"
    assert judged("grpc", "grpc.experimental.gevent")[0].grade == "fine"
    for version, grade in (("3.1.13", "warning"), ("3.1.14", "fine"), ("3.2", "fine"), ("", "fine")):
        [one] = serving.clients(facts(application=loaded(modules={"psycopg": version})))
        assert one.grade == grade, version


@pytest.mark.parametrize(
    ("mode", "version", "grades"),
    [
        ("on", (1, 22), ["problem"]),
        ("on", (1, 28), ["problem"]),
        ("on", (1, 29), ["fine"]),
        ("on", (2, 0), ["fine"]),
        ("on", None, []),
        ("direct", (1, 22), []),
        ("off", (1, 22), []),
    ],
)
def test_an_nginx_that_takes_an_early_hint_for_the_response(mode, version, grades) -> None:
    found = list(surroundings.early_hints(facts("--early-hints", mode, proxies=[NGINX], nginx_version=version)))
    assert [one.grade for one in found] == grades
    assert all("1.29" in one.remedy for one in found if one.grade == "problem")
    assert not list(surroundings.early_hints(facts("--early-hints", mode, nginx_version=version))), "nothing leads here"


@pytest.mark.parametrize("said", ["nginx version: nginx/1.22.1", "nginx version: nginx/1.29.0 (Ubuntu)", "no", ""])
def test_the_version_of_nginx_is_asked_of_nginx(tmp_path, monkeypatch, said) -> None:
    (tmp_path / "nginx").write_text(f"#!/bin/sh\necho '{said}' >&2\n")
    (tmp_path / "nginx").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert gathering._nginx_version() == {"1.22.1": (1, 22), "1.29.0": (1, 29)}.get(said[21:27])


CONF = """
http {
    proxy_read_timeout 2m;  # for all
    proxy_set_header Connection "";
    upstream shop { server 127.0.0.1:8000 weight=5; keepalive 16; keepalive_timeout 30s; }
    upstream other { server 10.0.0.9:8000; }
    server {
        location / { proxy_pass http://shop/; proxy_http_version 1.1; }
        location /up { proxy_pass http://unix:/run/shop.sock:/x; proxy_read_timeout "1h 30m"; }
        location /direct { proxy_set_header Host $host; if ($x ~ "a{2};") { proxy_pass http://localhost:8000; } }
        location /other { proxy_pass http://other; }
        location /named { proxy_pass http://$backend; }
    }
}
"""


def test_nginx_is_read_as_nginx_reads_it() -> None:
    found = nginx.locations(nginx.parse(CONF), ["0.0.0.0:8000", "unix:/run/shop.sock"])
    assert [one["where"] for one in found] == ["nginx.conf:8", "nginx.conf:9", "nginx.conf:10"]
    through, socket, direct = found
    assert (through["keepalive"], through["keepalive_timeout"], through["proxy_http_version"]) == ("16", "30s", "1.1")
    assert (through["proxy_read_timeout"], through["connection"]) == ("2m", "")
    assert (socket["proxy_read_timeout"], socket["keepalive"]) == ("1h 30m", None)
    assert direct["connection"] is None, "one proxy_set_header in a block replaces all of the outer ones"
    assert [nginx.seconds(t) for t in ("60", "1h 30m", "500ms", "$t", "")] == [60, 5400, 0.5, None, None]


def test_nginx_that_cannot_be_read_is_no_nginx(tmp_path: Path) -> None:
    assert nginx.load(str(tmp_path / "nginx.conf")) == []
    assert nginx.locations(nginx.parse("http { server { location / { proxy_pass http://localhost:80"), [":80"]) == []
    (tmp_path / "nginx.conf").write_text("include *.conf; http { include sites/*; }")  # itself among them
    (tmp_path / "sites").mkdir()
    (tmp_path / "sites/a").write_text("server { location / { proxy_pass http://127.0.0.1:9000; } }")
    assert nginx.locations(nginx.load(str(tmp_path / "nginx.conf")), ["127.0.0.1:9000"])


def test_the_configuration_that_docs_has_is_found_good() -> None:
    text = (Path(__file__).parents[2] / "docs/nginx.conf").read_text()
    [one] = nginx.locations(nginx.parse(f"http {{ {text} }}"), ["127.0.0.1:8000"])
    found = [f for f in surroundings.proxies(facts(proxies=[one])) if f.grade != "fine"]
    assert ["proxy_send_timeout" in f.text for f in found] == [True], "all but the default, which it leaves"


def test_what_proc_says_is_read() -> None:
    mounts = (
        "1 0 8:1 / / rw - ext4 /dev/sda rw\n"
        "2 1 0:5 / /run rw shared:1 - tmpfs tmpfs rw\n"
        "3 1 0:6 / /srv/with\\040space rw - nfs4 host:/x rw\n"
        "4 1 0:7 / /running rw - xfs /dev/sdb rw\n"
    )
    where = {p: gathering._filesystem(p, mounts) for p in ("/run/x", "/srv/with space/y", "/running", "/var", "/")}
    assert where == {"/run/x": "tmpfs", "/srv/with space/y": "nfs4", "/running": "xfs", "/var": "ext4", "/": "ext4"}
    limits = gathering._limits(
        "Limit                     Soft Limit           Hard Limit           Units     \n"
        "Max open files            1024                 524288               files     \n"
        "Max processes             unlimited            unlimited            processes \n"
    )
    assert limits == {"Max open files": (1024, 524288), "Max processes": (None, None)}
    assert gathering._overflows("TcpExt: A ListenOverflows B\nTcpExt: 1 22 3\nIpExt: X\nIpExt: 1\n") == 22
    assert gathering._overflows("") is None
    assert gathering._kernel("6.8.0-45-generic") == (6, 8)


@pytest.mark.parametrize(
    ("command", "warned"),
    [
        (("sh", "-c", "cd there && celery worker"), True),
        (("/bin/bash", "-ec", "celery worker"), False),  # what -ec is for a shell is not looked at
        (("sh", "-c", "cd there && exec celery worker"), False),
        (("sh", "-c", "trap stop TERM; work"), False),
        (("celery", "worker", "-c", "4"), False),
    ],
)
def test_a_shell_that_does_not_pass_its_signal_on_is_warned_of(command: tuple[str, ...], warned: bool) -> None:
    companion = {"name": "queue", "command": command, "stop_signal": "TERM"}
    found = list(machine.companions(SimpleNamespace(settings=SimpleNamespace(companion=(companion,)))))
    assert [one.grade for one in found] == ["warning"] * warned


QUEUES = {
    "celery": ("celery -A x worker", "/venv/bin/celery beat", "python -m celery -A x worker", "uv run celery -A x"),
    "rq": ("rq worker high low", "python -m rq.cli worker", "rqworker high"),
    "huey_consumer": ("huey_consumer.py shop.huey", "python -m huey.bin.huey_consumer shop.huey"),
    "dramatiq": ("dramatiq shop.tasks", "python3 -m dramatiq shop.tasks", "sh -c 'cd there && exec dramatiq x'"),
}


@pytest.mark.parametrize(("queue", "command"), [(queue, one) for queue, some in QUEUES.items() for one in some])
def test_a_queue_without_readiness_is_told_which_one_it_could_have(queue: str, command: str) -> None:
    def judge(**more: Any) -> list[Finding]:
        companion = COMPANION.parse({"name": "work", "command": command, "stop_signal": "TERM", **more})
        return list(machine.readiness(SimpleNamespace(settings=SimpleNamespace(companion=(companion,)))))

    [found] = judge()
    assert found.grade == "warning" and "work" in found.text and found.remedy.startswith("ready")
    for ready in ({"ready": "notify"}, {"ready_line": "ready"}, {"ready_command": "true"}):
        assert judge(**ready) == []


@pytest.mark.parametrize("command", ["python -m shop.mail", "sh -c 'exec ./celery-like'", "python shop/worker.py rq"])
def test_other_commands_are_not_taken_for_a_queue(command: str) -> None:
    companion = COMPANION.parse({"name": "work", "command": command})
    assert not list(machine.readiness(SimpleNamespace(settings=SimpleNamespace(companion=(companion,)))))


def test_a_companion_that_fails_is_a_problem() -> None:
    beat = {"id": "3.beat", "failing": "crash-looping", "why": "exited with status 1"}
    status = {**STATUS, "generations": [{"number": 3, "memory": 1, "companions": [beat, {"id": "3.mail"}]}]}
    [found] = [one for one in serving.running(facts(status=status)) if one.grade == "problem"]
    assert found.text == "companion 3.beat is crash-looping: exited with status 1"


def test_the_text_has_the_worst_first_and_counts() -> None:
    bad = Finding("problem", "bad", "do this", "line 1\nline 2")
    some = [Finding("fine", "well"), bad, Finding("warning", "hm", "x")]
    text = doctor.render([("The machine", some), ("nginx", [])], 80)
    assert text.splitlines() == [
        "The machine:",
        "  problem  bad",
        "           -> do this",
        "           | line 1",
        "           | line 2",
        "  warning  hm",
        "           -> x",
        "       ok  well",
        "",
        "1 problem, 1 warning",
    ]
    assert doctor.render([("The machine", [Finding("fine", "well")])], 80).endswith("\n\nnothing will hurt\n")
    painted = doctor.render([("The machine", some)], 80, Ink(colour=True))
    assert "\x1b[1;31mproblem\x1b[0m  bad" in painted
    assert re.sub(r"\x1b\[[0-9;]*m", "", painted) == doctor.render([("The machine", some)], 80)


def test_the_exit_status_says_whether_there_is_a_problem(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    known = facts(kernel=(6, 1))
    monkeypatch.setattr(gathering, "gather", lambda *args: known)
    assert main(["doctor", "--json", "shop:app"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"about": "The machine", "grade": "fine", "text": "Linux 6.1", "remedy": "", "detail": ""} in found
    known = facts(kernel=(4, 1))
    assert main(["doctor", "shop:app"]) == 1
    assert main(["doctor", "--workes", "3"]) == 2
    (tmp_path / "reuseport.toml").write_text("workes = 3")
    told = []
    monkeypatch.setattr(gathering, "gather", lambda settings, refused, status: told.append(refused) or known)
    assert main(["doctor"]) == 1
    assert "unknown key 'workes'" in told[0][0]


def test_a_master_that_does_not_answer_is_a_finding(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "ANSWER_SECONDS", 0.1)
    (tmp_path / "run").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("run/control.sock")
        listener.listen()
        assert "has not answered for 0.1 seconds" in doctor._status(["--run-dir", "run"])
    assert doctor._status(["--run-dir", "run"]) == {}, "its socket alone is no master"


def test_connections_that_django_keeps_for_greenlets_which_end() -> None:
    [one] = judged("django", django_keeps=["'default' (CONN_MAX_AGE=600)"])
    assert one.grade == "warning" and "'default' (CONN_MAX_AGE=600)" in one.text
    assert judged("django", threads=4, django_keeps=["'default' (CONN_MAX_AGE=600)"]) == []
    assert judged("django", django_keeps=[]) == []


def test_a_pool_of_django_without_a_size_is_named_in_both_modes() -> None:
    for threads in (0, 4):
        [one] = judged("django", threads=threads, django_pools=["'default'"])
        assert one.grade == "warning" and "'default'" in one.text and "max_size" in one.remedy
    assert judged("django", django_pools=[]) == []
    [kept] = judged("django", django_keeps=["'default' (CONN_MAX_AGE=600)"])
    assert "max_size" in kept.remedy


def test_a_timeout_that_a_library_does_not_clean_up_behind_is_named() -> None:
    for module in ("psycopg_pool", "pymemcache"):
        [one] = judged(module, gevent_timeout=["shop.views"])
        assert one.grade == "warning" and "shop.views" in one.text and module in one.text
        assert "TimeoutError" in one.remedy
        assert judged(module, gevent_timeout=[]) == []
        assert judged(module, threads=4, gevent_timeout=["shop.views"]) == []
    assert judged("flask", gevent_timeout=["shop.views"]) == []


def test_the_probe_finds_pools_without_a_size_and_users_of_gevent_timeout(monkeypatch, tmp_path) -> None:
    from types import ModuleType, SimpleNamespace

    import gevent

    from reuseport import probe

    pools = {"a": True, "b": {}, "c": {"timeout": 3}, "d": {"max_size": 9}, "e": {"min_size": 2}, "f": None, "g": False}
    databases = {alias: {"OPTIONS": {"pool": pool}} for alias, pool in pools.items()} | {"h": {}}
    known = SimpleNamespace(settings=SimpleNamespace(configured=True, DATABASES=databases))
    monkeypatch.setitem(sys.modules, "django.conf", known)
    assert sorted(probe._unbounded_pools_of_django()) == ["'a'", "'b'", "'c'"]
    held_by = {"views_a": gevent, "views_b": gevent.Timeout, "views_c": gevent.sleep, "views_d": gevent}
    for name, held in held_by.items():
        module = ModuleType(name)
        module.__file__ = str(tmp_path / f"{name}.py")
        text = "with gevent.Timeout(3): pass" if name == "views_a" else "gevent.spawn(print)"
        (tmp_path / f"{name}.py").write_text(text)
        module.held = held
        monkeypatch.setitem(sys.modules, name, module)
    assert list(probe._users_of_gevent_timeout(str(tmp_path))) == ["views_a", "views_b"]


def test_whose_packages_the_application_runs_on_is_told():
    texts = [finding.text for finding in serving.loading(facts(application=loaded(packages=PACKAGES)))]
    assert "it runs on the server's reuseport 0.1.0 and the application's gevent 23.7.0, greenlet 2.0.2" in texts
