"""Where values come from: precedence, the three spellings of each option, and one clear line for each mistake."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reuseport import options
from reuseport.options import OPTIONS, OptionError, Settings, changed_at_start_only, from_keywords, load, reload
from reuseport.options.manual import manual, print_config
from reuseport.options.table import BY_NAME, ENVIRONMENT, FILE, FLAG, FOREIGN


@pytest.fixture
def cwd(tmp_path: Path) -> str:
    return str(tmp_path)


def write(directory: str, text: str, name: str = "reuseport.toml") -> str:
    path = Path(directory, name)
    path.write_text(text)
    return str(path)


def mistake(argv: list[str], environ: dict[str, str], cwd: str) -> str:
    with pytest.raises(OptionError) as caught:
        load(argv, environ, cwd)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


def test_a_flag_wins_over_a_variable_over_the_file_over_the_default(cwd: str) -> None:
    assert load([], {}, cwd).timeout == 30
    path = write(cwd, "timeout = '1m'")
    read = load([], {}, cwd)
    assert (read.timeout, read.sources["timeout"], read.where("timeout")) == (60, "file", f"{path}: timeout")
    read = load([], {"REUSEPORT_TIMEOUT": "2m"}, cwd)
    assert (read.timeout, read.sources["timeout"], read.where("timeout")) == (120, "environment", "REUSEPORT_TIMEOUT")
    read = load(["-t", "3m"], {"REUSEPORT_TIMEOUT": "2m"}, cwd)
    assert (read.timeout, read.sources["timeout"], read.where("timeout")) == (180, "flag", "-t")


def test_a_stronger_list_replaces_a_weaker_one_and_tables_add_up(cwd: str) -> None:
    write(cwd, 'bind = [":1", ":2"]\n[env]\nA = "file"\nB = "file"\n')
    read = load(["-e", "B=flag", "-b", ":3", "--bind=:4"], {"REUSEPORT_ENV": "C='two words'"}, cwd)
    assert read.bind == ("tcp:0.0.0.0:3", "tcp:0.0.0.0:4")
    assert read.env == {"A": "file", "B": "flag", "C": "two words"}
    assert load([], {"REUSEPORT_BIND": ":5,:6 :7"}, cwd).bind == ("tcp:0.0.0.0:5", "tcp:0.0.0.0:6", "tcp:0.0.0.0:7")


def test_web_concurrency_counts_when_nothing_else_says_how_many_workers(cwd: str) -> None:
    assert load([], {"WEB_CONCURRENCY": "7"}, cwd).workers == 7
    assert load([], {"WEB_CONCURRENCY": "seven", "REUSEPORT_WORKERS": "3"}, cwd).workers == 3
    assert load([], {"WEB_CONCURRENCY": ""}, cwd).workers == options.usable_cores()
    assert mistake([], {"WEB_CONCURRENCY": "x"}, cwd) == "WEB_CONCURRENCY: 'x' is not a whole number"


SAMPLES = {
    "app": "shop:app", "chdir": "/srv", "pythonpath": "/lib", "python": "venv/bin/python", "env": "A=1",
    "tenant": "header:X-Tenant", "tenant_isolation": "strict",
    "warmup": "/health", "health_path": "/healthz", "preload": "never",
    "lazy_imports": "keep", "workers": "3", "bind": ":80", "name": "shop", "run_dir": "/run/shop",
    "forwarded_allow_ips": "10.0.0.0/8", "proxy_allow_ips": "::1", "proxy_protocol": "v2", "cert_reqs": "required",
    "early_hints": "off",
    "umask": "027", "log_level": "error", "log_syslog_facility": "local3", "user": "nobody",
    "group": "nobody", "max_worker_memory": "512M",
    "max_error_rate": "50%", "label": "v2", "state_dir": "/var/lib/shop",
    "request_id": "make", "reload_extra_file": "templates", "metrics": "127.0.0.1:9100",
    "statsd_host": "127.0.0.1:8125", "takeover": "if-running",
}  # fmt: skip


@pytest.mark.parametrize(
    "option", [one for one in OPTIONS if one.where >= {FLAG, ENVIRONMENT, FILE}], ids=lambda o: o.name
)
def test_flag_variable_and_key_of_an_option_mean_the_same(option, cwd: str) -> None:
    text = str(not option.default).lower() if option.is_switch else SAMPLES.get(option.name, "77")
    switch = option.flag.replace("--", "--no-", 1) if option.default else option.flag
    argv = [text] if option.positional else [switch] if option.is_switch else [option.flag, text]
    by_flag = load(argv, {}, cwd)
    by_variable = load([], {option.variable: text}, cwd)
    write(cwd, f"{option.name} = {json.dumps(text)}")
    by_file = load([], {}, cwd)
    value = getattr(by_flag, option.name)
    assert value != getattr(Settings.from_json({}), option.name)
    assert getattr(by_variable, option.name) == value == getattr(by_file, option.name)
    assert [one.sources[option.name] for one in (by_flag, by_variable, by_file)] == ["flag", "environment", "file"]


def test_keys_take_dashes_or_underscores_and_the_types_of_toml(cwd: str) -> None:
    write(
        cwd,
        'keep-alive = 5\nmax_worker_memory = 1048576\nkill-blocked = true\nbind = ":80"\nuser = 1000\nwarmup = ["/"]',
    )
    read = load([], {}, cwd)
    assert (read.keep_alive, read.max_worker_memory, read.kill_blocked) == (5, 1 << 20, True)
    assert (read.bind, read.user, read.warmup) == (("tcp:0.0.0.0:80",), "1000", ("/",))


MAIL = "[[companion]]\nname = 'mail'\ncommand = 'true'\n"
HUEY = "[[companion]]\nname = 'mail'\ncommand = 'huey_consumer shop.huey'\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wrokers = 3", "{path}: unknown key 'wrokers'; did you mean workers?"),
        ("zzz = 3", "{path}: unknown key 'zzz'"),
        ("workers = 3\n\nname =\n", "{path}:3: not valid TOML: invalid value"),
        ("name =", "{path}: not valid TOML: invalid value (at end of document)"),
        ("a = 'x", "{path}: not valid TOML: "),
        ("a = " + "[" * 100_000, "{path}: its values are nested too deeply"),
        ("workers = 'x'", "{path}: workers: 'x' is not a whole number"),
        ("workers = true", "{path}: workers: True is not a whole number"),
        ("workers = [1]", "{path}: workers: [1] is not a whole number"),
        ("keep-alive = 'x'", "{path}: keep-alive: 'x' is not a time"),
        ("keep-alive = 1\nkeep_alive = 2", "{path}: keep_alive: was said before, as keep-alive"),
        ("print_config = true", "{path}: print_config: a file cannot say this"),
        ("umask = 22", "{path}: umask: 22 is not text"),
        ("[env]\nA = true", "{path}: env: the value of A is not text"),
        ("daemon = true", "{path}: daemon is refused: "),
        ("log_file = ''", "{path}: log_file: '' is no path"),
        ("bind = [8000]", "{path}: bind: 8000 is not text"),
        ("companion = 3", "{path}: companion: 3 is not a table: it begins with [[companion]]"),
        ("[[companion]]\nname = 'mail'", "{path}: companion: 'mail': has no command"),
        ("[[companion]]\ncommand = 'true'", "{path}: companion: a table: has no name"),
        ("[[companion]]\nname = 'a b'\ncommand = 'x'", "{path}: companion: 'a b': name: 'a b' is not a name"),
        (MAIL + "stop_signl = 1", "{path}: companion: 'mail': unknown key 'stop_signl'; did you mean stop_signal?"),
        (MAIL + "stop-signal = 'TERN'", "{path}: companion: 'mail': stop-signal: 'TERN' is not the name of a signal"),
        (HUEY, "{path}: companion: 'mail': stop_signal: the default, TERM, would interrupt this program's tasks"),
        (MAIL + "stop_signal = 'KILL'", "{path}: companion: 'mail': stop_signal: 'KILL' is not the name of a signal"),
        (MAIL + "stop_timeout = -1", "{path}: companion: 'mail': stop_timeout: -1 is not a time"),
        (MAIL + "ready = 'yes'", "{path}: companion: 'mail': ready: 'yes' is not one of timer, notify, command, line"),
        (MAIL + "ready = 'command'", "{path}: companion: 'mail': ready: 'command' needs ready_command"),
        (MAIL + "ready = 'line'", "{path}: companion: 'mail': ready: 'line' needs ready_line"),
        (
            MAIL + "ready = 'notify'\nready_line = 'x'",
            "{path}: companion: 'mail': ready = 'notify' and ready_line: only one of them can show that it is ready",
        ),
        (
            MAIL + "ready_command = 'x'\nready_line = 'x'",
            "{path}: companion: 'mail': ready_command and ready_line: only one of them",
        ),
        (MAIL + "ready = 'timer'\nready_line = 'x'", "{path}: companion: 'mail': ready = 'timer' and ready_line: only"),
        (MAIL + "ready_line = '('", "{path}: companion: 'mail': ready_line: '(' is not a regular expression: missing"),
        (MAIL + "ready_line = ''", "{path}: companion: 'mail': ready_line: '' is found in every line"),
        (MAIL + "ready_command = ''", "{path}: companion: 'mail': ready_command: '' names no program"),
        (MAIL + "ready_timeout = 5", "{path}: companion: 'mail': ready_timeout: it means nothing without ready"),
        (MAIL + "ready = 'notify'\nready_timeout = 0", "{path}: companion: 'mail': ready_timeout: 0.0 is not between"),
        (
            MAIL + "ready = 'notify'\nready_interval = 5",
            "{path}: companion: 'mail': ready_interval: it means nothing without ready_command",
        ),
        (MAIL + "restart = 'no'", "{path}: companion: 'mail': restart: 'no' is not one of always, on-failure, never"),
        (MAIL + "processes = 0", "{path}: companion: 'mail': processes: 0 is not between 1 and 1000"),
        (MAIL + "exclusive = true\nprocesses = 2", "{path}: companion: 'mail': exclusive: it never runs twice"),
        (MAIL + "env = {A = true}", "{path}: companion: 'mail': env: the value of A is not text"),
        (MAIL + MAIL, "{path}: companion: 'mail': two of this name"),
        ("[[companion]]\nname = 'm'\ncommand = \"a 'b\"", "{path}: companion: 'm': command: \"a 'b\" cannot be split"),
        ("[[companion]]\nname = 'm'\ncommand = []", "{path}: companion: 'm': command: [] names no program"),
        ("[[companion]]\nname = 'm'\ncommand = ['a', 1]", "{path}: companion: 'm': command: ['a', 1] is neither"),
    ],
)
def test_a_mistake_in_the_file_names_the_file_and_the_key(text: str, message: str, cwd: str) -> None:
    path = write(cwd, text)
    assert mistake([], {}, cwd).startswith(message.format(path=path))


def test_a_companion_has_every_key(cwd: str) -> None:
    write(cwd, MAIL + "stop-signal = 'SIGINT'\nstop_timeout = '2m'\n[companion.env]\nN = 3\n")
    (mail,) = load([], {}, cwd).companion
    assert (mail["command"], mail["stop_signal"], mail["stop_timeout"]) == (("true",), "INT", 120)
    assert (mail["restart"], mail["processes"], mail["exclusive"], mail["ready_after"]) == ("always", 1, False, 1)
    assert dict(mail["env"]) == {"N": "3"}


@pytest.mark.parametrize(
    ("text", "ready", "after"),
    [
        ("", "timer", 1),
        ("ready_after = 3", "timer", 3),
        ("ready = 'notify'", "notify", 0),
        ("ready = 'notify'\nready_after = 3", "notify", 3),
        ("ready_line = 'listening on [0-9]+'", "line", 0),
        ("ready_command = \"sh -c 'exit 0'\"\nready_interval = '5s'", "command", 0),
        ("ready-command = ['true']\nready = 'command'", "command", 0),
    ],
)
def test_how_a_companion_shows_that_it_is_ready_can_be_printed_and_read_again(
    text: str, ready: str, after: float, cwd: str
) -> None:
    write(cwd, MAIL + text)
    read = load([], {}, cwd)
    (mail,) = read.companion
    assert (mail["ready"], mail["ready_after"]) == (ready, after)
    write(cwd, print_config(read))
    assert load([], {}, cwd).companion == read.companion


@pytest.mark.parametrize(
    ("text", "signal"),
    [
        (HUEY + "stop_signal = 'INT'", "INT"),
        (HUEY + "stop_signal = 'TERM'", "TERM"),
        (HUEY.replace("shop.huey", "shop.huey --graceful-signal TERM"), "TERM"),
    ],
)
def test_hueys_consumer_gets_the_signal_that_was_said(text: str, signal: str, cwd: str) -> None:
    write(cwd, text)
    (mail,) = load([], {}, cwd).companion
    assert mail["stop_signal"] == signal


def test_a_file_that_cannot_be_read_names_what_asked_for_it(cwd: str) -> None:
    assert mistake(["-c", "no.toml"], {}, cwd) == f"-c: {cwd}/no.toml: no such file or directory"
    assert mistake([], {"REUSEPORT_CONFIG": "/"}, cwd) == "REUSEPORT_CONFIG: /: is a directory"
    assert mistake(["-c", "gunicorn.conf.py"], {}, cwd).startswith(f"-c: {cwd}/gunicorn.conf.py: is a Python file; ")
    assert f"`reuseport translate {cwd}/gunicorn.conf.py` prints one" in mistake(["-c", "gunicorn.conf.py"], {}, cwd)
    os.mkfifo(Path(cwd, "pipe"))
    assert mistake(["-c", "pipe"], {}, cwd).startswith(f"-c: {cwd}/pipe: is not a regular file")
    Path(cwd, "reuseport.toml").symlink_to("nowhere")
    assert mistake([], {}, cwd) == f"{cwd}/reuseport.toml: no such file or directory"
    Path(cwd, "latin.toml").write_bytes(b"name = '\xe9'")
    assert mistake(["-c", "latin.toml"], {}, cwd) == f"-c: {cwd}/latin.toml: not valid TOML: byte 8 is not UTF-8"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--wrokers", "3"], "unknown option --wrokers; did you mean --workers?"),
        (["--worker", "3"], "unknown option --worker; did you mean --workers?"),
        (["-x"], "unknown option -x"),
        (["-w"], "-w: wants a value, -w N"),
        (["--name", "--workers", "3"], "--name: wants a value, --name NAME"),
        (["--workers=0"], "--workers: 0 is not between 1 and 1024"),
        (["--boot-timeout", "0"], "--boot-timeout: 0 is not more than 0"),
        (["--kill-blocked=yes"], "--kill-blocked: takes no value, but was given 'yes'"),
        (["a:b", "c:d"], "unexpected argument 'c:d'"),
        (["shop.py"], "app: 'shop.py' names a file; a module is wanted: shop:app"),
        (["-b:80", "-b", "0.0.0.0:80"], "-b: the address 0.0.0.0:80 is there twice"),
        (["-D"], "-D is refused: leave the background to what supervises services (a systemd unit, a container)"),
        (["--ciphers", "HIGH"], "--ciphers HIGH is refused: the system's OpenSSL decides"),
        (["--forwarded-allow-ips", "10.0.0.1/8"], "--forwarded-allow-ips: '10.0.0.1/8' has bits set beyond its prefix"),
        (["--proxy-allow-ips", "none,::1"], "--proxy-allow-ips: none stands alone, and not beside ::1"),
        (["-k", "uvicorn.workers.UvicornWorker"], "-k uvicorn.workers.UvicornWorker is a worker for ASGI; "),
        (["--preload=sometimes"], "--preload: 'sometimes' is not one of auto, always, never"),
        (["-m", "888"], "-m: '888' is not an octal mask"),
    ],
)
def test_a_mistake_on_the_command_line_names_the_flag(argv: list[str], message: str, cwd: str) -> None:
    assert mistake(argv, {}, cwd).startswith(message)


def test_a_mistake_is_reported_even_where_a_stronger_source_hides_it(cwd: str) -> None:
    assert mistake(["-w", "2"], {"REUSEPORT_WORKERS": "two"}, cwd).startswith("REUSEPORT_WORKERS: ")


def test_gunicorns_spellings_mean_the_same(cwd: str) -> None:
    read = load(
        ["--error-logfile", "x.log", "--limit-request-field_size", "100", "--log-level", "INFO", "-w4"], {}, cwd
    )
    assert (read.log_file, read.limit_request_field_size, read.log_level) == (f"{cwd}/x.log", 100, "info")
    assert read.workers == 4
    assert read.remarks == ()


def test_gunicorn_options_that_mean_nothing_get_one_line_each(cwd: str) -> None:
    write(cwd, "worker_connections = 100\ndaemon = false")
    read = load(["--reuse-port", "-kgevent", "app:app"], {}, cwd)
    assert read.app == "app:app"
    assert [remark.split(" means nothing here")[0] for remark in read.remarks] == [
        "--reuse-port",
        "-k gevent",
        f"{cwd}/reuseport.toml: worker_connections",
    ]


def test_a_bare_preload_does_not_swallow_the_application(cwd: str) -> None:
    read = load(["--preload", "shop:app"], {}, cwd)
    assert (read.preload, read.app) == ("always", "shop:app")
    assert len(read.remarks) == 1
    read = load(["--preload", "never", "shop:app"], {}, cwd)
    assert (read.preload, read.app, read.remarks) == ("never", "shop:app", ())


def test_a_switch_is_turned_off_by_its_no(cwd: str) -> None:
    write(cwd, "kill_blocked = true")
    assert load([], {}, cwd).kill_blocked is True
    assert load(["--no-kill-blocked"], {}, cwd).kill_blocked is False


def test_two_dashes_end_the_options(cwd: str) -> None:
    assert mistake(["--", "-w"], {}, cwd).startswith("app: '-w' is not MODULE:APP")


def test_a_slip_in_a_variables_name_is_remarked(cwd: str) -> None:
    read = load([], {"REUSEPORT_WROKERS": "3", "REUSEPORT_QQ": "1"}, cwd)
    assert read.remarks == ("REUSEPORT_WROKERS in the environment is no option; did you mean REUSEPORT_WORKERS?",)


def test_paths_lie_in_the_working_directory_and_keep_their_links(cwd: str) -> None:
    read = load(
        ["--chdir", "current", "-p", "x.pid", "--run-dir", "run", "-b", "unix:s.sock", "--python", "v/bin/p"], {}, cwd
    )
    assert (read.chdir, read.pid, read.run_dir) == (f"{cwd}/current", f"{cwd}/x.pid", f"{cwd}/run")
    assert read.bind == (f"unix:{cwd}/s.sock",)
    assert read.python == "v/bin/p"  # lies in the directory of each release
    assert load([], {}, cwd).chdir == cwd


def test_the_working_directory_keeps_a_link_that_the_shell_knows(tmp_path: Path, monkeypatch) -> None:
    real, link = tmp_path / "releases-1", tmp_path / "current"
    real.mkdir()
    link.symlink_to(real)
    monkeypatch.chdir(link)
    assert options.working_directory({"PWD": str(link)}) == str(link)
    assert options.working_directory({"PWD": "/"}) == str(real)
    real.rename(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(OptionError, match="does not exist any more"):
        options.working_directory({"PWD": str(link)})


@pytest.mark.parametrize(
    ("environ", "path"),
    [
        ({}, "/tmp/reuseport-5/shop"),
        ({"XDG_RUNTIME_DIR": "/run/user/5"}, "/run/user/5/reuseport/shop"),
        ({"XDG_RUNTIME_DIR": "/run/user/5", "RUNTIME_DIRECTORY": "/run/shop:/run/other"}, "/run/shop"),
        ({"RUNTIME_DIRECTORY": "/run/shop", "REUSEPORT_RUN_DIR": "/run/mine"}, "/run/mine"),
    ],
)
def test_the_run_directory(environ: dict[str, str], path: str) -> None:
    assert options.default_run_dir("shop", environ, 5) == path


def test_the_name_comes_from_the_module_and_the_run_directory_from_the_name(cwd: str) -> None:
    read = load(["shop.wsgi:app"], {"XDG_RUNTIME_DIR": "/run/user/5"}, cwd)
    assert (read.name, read.run_dir) == ("shop.wsgi", "/run/user/5/reuseport/shop.wsgi")
    assert load(["shop.wsgi:app", "-n", "blue"], {"XDG_RUNTIME_DIR": "/r"}, cwd).run_dir == "/r/reuseport/blue"


def test_a_release_reads_the_file_again(cwd: str) -> None:
    write(cwd, "workers = 2\nbacklog = 10\nname = 'a'")
    old = load(["-t", "9"], {"REUSEPORT_KEEP_ALIVE": "8"}, cwd)
    assert reload(old) == old
    write(cwd, "workers = 3\nbacklog = 11\nname = 'b'")
    new = reload(Settings.from_json(json.loads(json.dumps(old.to_json()))))
    assert new != old
    assert (new.workers, new.timeout, new.keep_alive) == (3, 9, 8)
    # The run directory follows from the name; one message about it is enough.
    assert changed_at_start_only(old, new) == ["backlog", "name"]
    write(cwd, "workers = 'x'")
    with pytest.raises(OptionError, match="workers: 'x'"):
        reload(old)


def test_what_only_a_start_changes_is_told_with_each_way_to_get_it() -> None:
    starts = [option.name for option in OPTIONS if option.effect == "start"]
    for name in starts:
        told = options.ways_to_change([name])
        assert len(told) == (name != "takeover") and all(BY_NAME[name].flag in text for text in told)
    [both] = options.ways_to_change(["log_json", "capture_output"])
    assert "--log-json, --capture-output changed" in both and "--takeover" in both and "upgrade" not in both
    by_upgrade, by_start = options.ways_to_change(["tenant", "tenant_isolation", "bind", "user"])
    assert "--tenant, --tenant-isolation changed" in by_upgrade and "`reuseport upgrade`" in by_upgrade
    assert "--bind, --user changed" in by_start and "--takeover" not in by_start and "start it anew" in by_start
    assert options.ways_to_change([]) == []


def test_settings_do_not_change(cwd: str) -> None:
    read = load(["-e", "A=1"], {}, cwd)
    with pytest.raises(AttributeError):
        read.workers = 3
    with pytest.raises(AttributeError):
        del read.workers
    with pytest.raises(TypeError):
        read.env["A"] = "2"
    with pytest.raises(AttributeError, match="no option 'wrokers'"):
        _ = read.wrokers


def test_settings_travel_as_json_between_versions(cwd: str) -> None:
    read = load(["-e", "A=1", "-b", ":0", "-k", "gevent", "shop:app"], {"XDG_RUNTIME_DIR": "/r", "SECRET": "x"}, cwd)
    data = json.loads(json.dumps(read.to_json()))
    assert "SECRET" not in json.dumps(data)
    assert Settings.from_json(data) == read
    assert pickle.loads(pickle.dumps(read)) == read
    data["values"]["from_the_future"] = {"x": 1}
    data["said"]["from_the_future"] = ["flag", "--from-the-future"]
    data["origin"]["from_the_future"] = 1
    data["more"] = 1
    del data["values"]["keep_alive"]
    assert Settings.from_json(data) == read
    assert Settings.from_json({}).bind == ("tcp:127.0.0.1:8000",)


def test_keywords_are_flags_for_an_embedding(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["/srv/my server.py"])
    monkeypatch.setenv("REUSEPORT_KEEP_ALIVE", "8")
    write(str(tmp_path), "app = 'other:app'")
    read = from_keywords(
        None, bind=":90", workers=2, env={"A": "1"}, warmup=("/",), chdir=tmp_path, timeout=1.5, pid=None
    )
    assert (read.app, read.name, read.bind, read.workers) == (None, "my-server", ("tcp:0.0.0.0:90",), 2)
    assert (read.env, read.warmup, read.chdir, read.timeout, read.keep_alive) == (
        {"A": "1"},
        ("/",),
        str(tmp_path),
        1.5,
        8,
    )
    assert reload(Settings.from_json(json.loads(json.dumps(read.to_json())))) == read
    assert from_keywords("shop:app").name == "shop"
    for keywords, message in [
        ({"wrokers": 1}, r"serve\(\) has no option 'wrokers'; did you mean workers\?"),
        ({"workers": "x"}, r"serve\(workers=\.\.\.\): 'x' is not a whole number"),
        ({"workers": object()}, r"serve\(workers=\.\.\.\): <object"),
        ({"print_config": True}, r"serve\(print_config=\.\.\.\): only the command line"),
        ({"daemon": True}, r"serve\(daemon=\.\.\.\) is refused"),
    ]:
        with pytest.raises(OptionError, match=message):
            from_keywords(None, **keywords)


def test_the_configuration_that_is_printed_can_be_read_again(cwd: str) -> None:
    companion = "[[companion]]\nname = 'mail'\ncommand = \"sh -c 'a b'\"\nstop_timeout = '15m'\nenv = {A = 'b'}\n"
    write(cwd, 'keep_alive = 2.5\n[env]\n"odd key" = "\\u007f\\"\\n"\n' + companion)
    argv = [
        "-e",
        "B=1",
        "-b",
        "[::1]:80",
        "-b",
        "unix:x",
        "--max-worker-memory",
        "3G",
        "-m",
        "022",
        "--warmup",
        "/a?b=%20",
        "shop:app",
    ]
    read = load(argv, {"WEB_CONCURRENCY": "3"}, cwd)
    text = print_config(read)
    assert 'bind = ["[::1]:80", "unix:' in text
    assert "workers = 3  # environment WEB_CONCURRENCY\n" in text
    assert 'max_worker_memory = "3G"  # flag --max-worker-memory\n' in text
    assert f"keep_alive = 2.5  # file {cwd}/reuseport.toml\n" in text
    assert "backlog = 2048  # default\n" in text
    assert f'[env]\n"odd key" = "\\u007F\\"\\n"  # file {cwd}/reuseport.toml\nB = "1"  # flag -e\n' in text
    tomllib.loads(text)
    again = load(["-c", write(cwd, text, "printed.toml")], {}, cwd)
    assert {name: getattr(again, name) for name in BY_NAME if FILE in BY_NAME[name].where} == {
        name: getattr(read, name) for name in BY_NAME if FILE in BY_NAME[name].where
    }


TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@given(key=TEXT.filter(lambda key: key and "=" not in key), value=TEXT)
def test_any_environment_of_the_application_can_be_printed(key: str, value: str) -> None:
    read = load([f"--env={key}={value}"], {}, "/nowhere")
    assert tomllib.loads(print_config(read))["env"] == {key: value}


@given(
    st.lists(
        st.sampled_from(["-w", "--bind", "-e", "--preload", "--", "-", "--no-kill-blocked", "-k"]) | st.text(max_size=6)
    )
)
def test_any_command_line_is_read_or_refused_in_one_line(argv: list[str]) -> None:
    try:
        load(argv, {}, "/nowhere")
    except OptionError as error:
        assert str(error)
        assert "\n" not in str(error)


def test_the_table_is_sound() -> None:
    flags = [flag for one in OPTIONS if not one.positional for flag in (one.flag, *one.flags, *one.aliases)]
    flags += [flag for one in FOREIGN for flag in one.flags]
    assert len(flags) == len(set(flags))
    assert not set(BY_NAME) & {one.name for one in FOREIGN}
    for one in OPTIONS:
        assert one.effect in ("start", "release", "always")
        assert one.help.endswith(".") and all(key.help.endswith(".") for key in one.keys)
        assert not one.repeatable or isinstance(one.default, tuple | dict)
        # An abbreviation that happens to be another option's flag would be a trap.
        assert one.name not in dir(Settings)


def test_the_manual_names_every_option_in_every_spelling() -> None:
    text = manual(OPTIONS, "reuseport serve", "About.", 80)
    assert max(len(line) for line in text.splitlines()) <= 80
    flat = " ".join(text.split())
    for one in OPTIONS:
        assert one.positional or (one.flag if FLAG in one.where else f"[[{one.name}]]") in flat
        assert all(f"{key.name} = " in flat and key.help in flat for key in one.keys)
        assert ENVIRONMENT not in one.where or one.variable in flat
        assert FILE not in one.where or one.where == {FILE} or f"key {one.name}." in flat


def test_the_options_load_nothing_that_a_master_must_not_have() -> None:
    code = "import sys, reuseport.options.manual; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    loaded = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
    ).stdout
    assert not {"gevent", "httptools", "rich", "setproctitle"} & set(loaded.split())
