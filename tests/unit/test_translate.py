"""What Gunicorn's settings become, and that all of it can be read again."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from reuseport.cli.translate import arguments, read, render, translate
from reuseport.cli.translate.table import SETTINGS
from reuseport.options import OptionError, check, load
from reuseport.options.table import BY_NAME


def text(environ: dict[str, str] | None = None, /, **said: Any) -> str:
    return render(translate(said, environ or {}), "gunicorn.conf.py")


def values(environ: dict[str, str] | None = None, /, **said: Any) -> dict[str, Any]:
    return tomllib.loads(text(environ, **said))


HOOK = {"callable": "post_fork"}

RICH: dict[str, Any] = {
    "wsgi_app": "shop.wsgi",
    "bind": ["0.0.0.0", "unix:/tmp/shop.sock", "[::1]", "tcp://127.0.0.1:9000"],
    "backlog": 512,
    "workers": 9,
    "worker_class": "gevent",
    "worker_connections": 2000,
    "threads": 1,
    "max_requests": 1000,
    "max_requests_jitter": 50,
    "timeout": 120,
    "graceful_timeout": 60,
    "keepalive": 5,
    "limit_request_line": 0,
    "limit_request_fields": 50000,
    "limit_request_field_size": 16380,
    "preload_app": True,
    "sendfile": False,
    "reuse_port": True,
    "daemon": True,
    "raw_env": ["DJANGO_SETTINGS_MODULE=shop.settings", 'QUOTE=a"b\\c'],
    "umask": 0o027,
    "secure_scheme_headers": {"X-FORWARDED-PROTOCOL": "ssl"},
    "forwarded_allow_ips": "10.0.0.1, 10.1.0.0/16",
    "proxy_protocol": True,
    "proxy_allow_ips": ["*"],
    "pythonpath": "lib,/srv/shop/lib",
    "accesslog": "-",
    "access_log_format": '%(h)s "%(r)s" %(s)s %({x-id}i)s',
    "errorlog": "-",
    "loglevel": "WARNING",
    "logger_class": {"callable": "Logger"},
    "logconfig_dict": {"version": 1},
    "syslog": True,
    "syslog_addr": "udp://localhost:514",
    "statsd_host": "localhost:8125",
    "proc_name": "my shop / 2",
    "post_fork": HOOK,
    "when_ready": HOOK,
    "on_exit": HOOK,
    "cert_reqs": {"object": "<VerifyMode.CERT_OPTIONAL: 1>"},
    "ssl_version": 2,
    "ciphers": "HIGH",
    "http_protocols": "h2,h1",
    "header_map": "dangerous",
    "dirty_apps": ["shop:ml"],
    "reload": True,
    "spew": True,
}


def test_a_rich_configuration_is_read_again_without_a_word(tmp_path: Path) -> None:
    (tmp_path / "reuseport.toml").write_text(text(**RICH))
    settings = load([], {}, str(tmp_path))
    assert settings.remarks == ()
    assert check(settings) == []
    assert (settings.app, settings.workers, settings.threads) == ("shop.wsgi", 9, 0)
    assert settings.bind == ("tcp:0.0.0.0:8000", "unix:/tmp/shop.sock", "tcp:[::1]:8000", "tcp:127.0.0.1:9000")
    assert dict(settings.env) == {"DJANGO_SETTINGS_MODULE": "shop.settings", "QUOTE": 'a"b\\c'}
    assert (settings.umask, settings.name, settings.log_level) == (0o027, "my-shop-2", "warning")
    assert (settings.proxy_protocol, settings.proxy_allow_ips) == ("auto", ("*",))
    assert settings.forwarded_allow_ips == ("10.0.0.1", "10.1.0.0/16")


def test_everything_that_was_said_is_spoken_of() -> None:
    made = text(**RICH)
    quiet = {"threads", "worker_connections"}  # the first belongs to the worker class
    for name, row in SETTINGS.items():
        if name in RICH and name not in quiet:
            assert name in made or row.option in made, name
    assert "worker_connections = 2000 has no counterpart" in made
    assert all(len(line) <= 105 for line in made.splitlines())


def test_each_setting_becomes_an_option_or_says_why_not() -> None:
    for name, row in SETTINGS.items():
        if name in ("worker_class", "threads"):
            continue
        assert bool(row.option) or bool(row.remark), name
        assert not row.option or row.option in BY_NAME, name
        assert not row.remark.endswith("."), name


def test_gunicorn_has_no_setting_that_is_missing() -> None:
    gunicorn, config = pytest.importorskip("gunicorn"), pytest.importorskip("gunicorn.config")
    if gunicorn.version_info[0] != 27:
        pytest.skip("the table is that of Gunicorn 27")
    known = {setting.name: setting for setting in config.KNOWN_SETTINGS}
    assert known.keys() <= SETTINGS.keys()
    for name, setting in known.items():
        assert set(setting.cli or ()) == set(SETTINGS[name].flags), name
        assert (setting.action or "store") == SETTINGS[name].action, name


@pytest.mark.parametrize(
    ("said", "threads", "word"),
    [
        ({}, 1, "worker_class sync"),
        ({"worker_class": "sync"}, 1, "one request at a time"),
        ({"worker_class": "sync", "threads": 4}, 4, "gthread"),  # as Gunicorn has it
        ({"worker_class": "gthread"}, 1, "native threads"),
        ({"worker_class": "gthread", "threads": 8}, 8, "8 native threads"),
        ({"worker_class": {"callable": "ThreadWorker"}, "threads": 2}, 2, "2 native threads"),
        ({"worker_class": "gevent", "threads": 4}, None, "greenlets"),
        ({"worker_class": "gunicorn.workers.ggevent.GeventWorker"}, None, "the default here"),
        ({"worker_class": "eventlet"}, None, "eventlet itself will not do"),
        ({"worker_class": "shop.workers.Special"}, 1, "unknown here"),
    ],
)
def test_worker_class_and_threads(said: dict[str, Any], threads: int | None, word: str) -> None:
    assert values(**said).get("threads") == threads
    assert word in " ".join(text(**said).replace("#", "").split())
    assert not translate(said, {}).impossible


@pytest.mark.parametrize(
    "said",
    [
        {"worker_class": "uvicorn.workers.UvicornWorker"},
        {"worker_class": "tornado"},
        {"protocol": "uwsgi"},
        {"paste": "production.ini"},
        {"wsgi_app": "shop:make('x')"},
    ],
)
def test_what_could_not_be_served(said: dict[str, Any]) -> None:
    assert len(translate(said, {}).impossible) == 1
    assert "# What cannot be served here:" in text(**said)


def test_what_is_said_to_be_as_usual_needs_no_word() -> None:
    usual = {"protocol": "http", "daemon": False, "http_protocols": "h1", "raw_env": [], "user": ""}
    assert text(**usual) == text()


def test_what_cannot_be_taken_over_is_told_and_left_out() -> None:
    for said in (
        {"workers": 0},
        {"bind": "fd://3"},
        {"bind": ""},
        {"access_log_format": "%(nonsense)s"},
        {"raw_env": ["X"]},
        {"forwarded_allow_ips": "proxy.example"},
        {"loglevel": "notset"},
        {"proc_name": "/"},
        {"cert_reqs": 7, "certfile": "x.pem"},
        {"timeout": "soon"},
    ):
        name = next(iter(said))
        assert SETTINGS[name].option not in values(**said) or said[name] == ""
        assert "could not be taken over" in text(**said) or said[name] == "", said


def test_defaults_that_differ_are_told_unless_they_were_said() -> None:
    made = text()
    assert tomllib.loads(made)["workers"] == 1
    for word in ("keep_alive 75 s", "graceful_timeout is 30 s", "limit_request_line is 4094"):
        assert word in " ".join(made.replace("#", "").split())
    assert "75 s" not in text(keepalive=3)
    assert "workers" not in values({"WEB_CONCURRENCY": "4"}), "which reuseport obeys as well"
    assert values({"PORT": "5000"})["bind"] == ["0.0.0.0:5000"]
    assert values({"PORT": "5000"}, bind="127.0.0.1:1")["bind"] == ["127.0.0.1:1"]


def test_tls_settings_without_a_certificate_mean_nothing() -> None:
    assert "cert_reqs" not in values(cert_reqs=2)
    assert values(cert_reqs=2, certfile="a.pem", keyfile="b.pem")["cert_reqs"] == "required"


def test_a_command_line_is_read_as_gunicorn_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["-w", "4", "-b:80", "--bind", "unix:x", "-k", "gevent", "--preload", "-m", "022", "-e", "A=1", "shop:app"]
    found, positional = arguments(words, "here")
    assert positional == ["shop:app"]
    assert found == {
        "workers": 4, "bind": [":80", "unix:x"], "worker_class": "gevent", "preload_app": True, "umask": 0o22,
        "raw_env": ["A=1"],
    }  # fmt: skip
    for command in (["gunicorn", *words], ["/venv/bin/gunicorn", *words], ["python", "-m", "gunicorn", *words], words):
        said, _ = read("", command, {"GUNICORN_CMD_ARGS": "--workers 2 --timeout 7"})
        assert (said["workers"], said["timeout"], said["wsgi_app"]) == (4, 7, "shop:app")
    for bad in (["--workes", "4"], ["-w", "x"], ["-w"]):
        with pytest.raises(OptionError, match="the command line: "):
            read("", bad, {})
    with pytest.raises(OptionError, match="GUNICORN_CMD_ARGS: no closing quotation"):
        read("", ["a:b"], {"GUNICORN_CMD_ARGS": "'"})
    with pytest.raises(OptionError, match=r"translate: what\? There is no gunicorn\.conf\.py here"):
        read("", [], {})
