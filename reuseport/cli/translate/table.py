"""Every setting of Gunicorn (27), and what it is here.

Each is one row: how Gunicorn's command line says it, and either the option that it becomes, with a remark where that
means something else, or why there is none. `needless` are those that ask for what is always so, or for the workings of
Gunicorn itself; `impossible` those without which the application cannot be what it was.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from reuseport.options.spec import parse_app

SAME, NONE, NEEDLESS = "same", "none", "needless"
LARGEST_LINE = 1 << 20  # bytes: what limit_request_line and _field_size take at most


@dataclass(frozen=True)
class Row:
    """`flags` are Gunicorn's; `action`, `number` and `bare` are how they are read. `option` is the one of ours, with
    `convert(value)` for its value, which raises ValueError with a reason where there is none; `inexact`, if that may be
    another one. `remark` says what is different, or why there is nothing; not where the value is the `usual` one, or
    nothing. `default`: what is different if it was not said at all."""

    flags: tuple[str, ...] = ()
    action: str = "store"
    number: bool = False
    bare: str = ""
    option: str = ""
    convert: Callable[[Any], Any] = lambda value: value
    remark: str = ""
    default: str = ""
    usual: Any = None
    inexact: bool = False
    needless: bool = False
    impossible: Callable[[Any], bool] = lambda value: False
    const: Any = None


def same(option: str, *flags: str, **more: Any) -> Row:
    return Row(flags, option=option, **more)


def none(remark: str, *flags: str, **more: Any) -> Row:
    return Row(flags, remark=remark, **more)


def needless(remark: str, *flags: str, **more: Any) -> Row:
    return Row(flags, remark=remark, needless=True, **more)


def _addresses(value: Any) -> list[str]:
    """As Gunicorn reads them: the port is 8000 where none is said, the host everybody's."""
    items = value.split(",") if isinstance(value, str) else list(value)
    addresses = []
    for item in (str(item).strip() for item in items):
        if item.startswith("fd://"):
            raise ValueError("sockets of systemd are used as soon as they are passed; leave bind out")
        if item and not item.startswith("unix:"):
            item = re.sub(r"^tcp:/*", "", item)
            item = item if re.search(r":\d+$", item) and not item.endswith("]") else f"{item}:8000"
        if item:
            addresses.append(re.sub(r"^unix://(?=/)", "unix:", item))
    if not addresses:
        raise ValueError("no address is said")
    return addresses


def _commas(value: Any) -> list[str]:
    items = value.split(",") if isinstance(value, str) else list(value)
    return [str(item).strip() for item in items if str(item).strip()]


def _peers(value: Any) -> list[str]:
    return _commas(value) or ["none"]


def _variables(value: Any) -> dict[str, str]:
    pairs = [str(item).partition("=") for item in ([value] if isinstance(value, str) else value)]
    if bad := [name for name, equals, _ in pairs if not equals]:
        raise ValueError(f"{bad[0]!r} is not KEY=VALUE")
    return {name: text for name, _, text in pairs}


def _application(value: Any) -> str:
    parse_app(str(value))
    return str(value)


def _line(value: Any) -> int:
    return int(value) or LARGEST_LINE


def _fields(value: Any) -> int:
    return min(int(value), 32768)


def _mask(value: Any) -> str:
    return f"{int(value):03o}"


def _name(value: Any) -> str:
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", str(value)).lstrip("._-")[:64]
    if not plain:
        raise ValueError(f"{value!r} has no letter that a name may have")
    return plain


def _certificates(value: Any) -> str:
    words = {0: "none", 1: "optional", 2: "required"}
    found = re.search(r"\d", str(value.get("object", "")) if isinstance(value, Mapping) else str(value))
    if found is None or int(found[0]) not in words:
        raise ValueError(f"{value!r} is none of 0, 1, 2")
    return words[int(found[0])]


def _proxy_protocol(value: Any) -> str:
    return {"true": "auto", "false": "off"}.get(str(value).lower(), str(value).lower())


_ASGI = "is for ASGI, which reuseport does not serve"
_HTTP2 = "concerns HTTP/2, which is not spoken here: put nginx or another proxy in front"
_SYSLOG = 'is log_file = "syslog" and access_log = "syslog"; or "journald", or "syslog://HOST:PORT"'
_DIRTY = "has no counterpart: reuseport.spawn(function, where='process') runs work in processes of the generation"
_STRICT = "has no counterpart: what is ambiguous in a request is always refused"
_MASTER = "has no counterpart: the master runs no code of yours"
_FLAG = {"action": "store_true"}

# fmt: off
SETTINGS: Mapping[str, Row] = {
    # --- the application and its processes
    "config": needless("is this file itself", "-c", "--config"),
    "wsgi_app": same("app", convert=_application),
    "bind": same("bind", "-b", "--bind", action="append", convert=_addresses),
    "backlog": same("backlog", "--backlog", number=True, remark="is that of each worker's own queue here"),
    "workers": same("workers", "-w", "--workers", number=True),
    "worker_class": none("", "-k", "--worker-class"),  # see `concurrency`
    "threads": none("", "--threads", number=True),
    "worker_connections": none(
        "has no counterpart: a worker takes as many connections as it has file descriptors",
        "--worker-connections",
        number=True,
    ),
    "max_requests": same(
        "max_requests", "--max-requests", number=True, remark="has the successor ready before the worker leaves"
    ),
    "max_requests_jitter": same("max_requests_jitter", "--max-requests-jitter", number=True),
    "timeout": same(
        "timeout",
        "-t",
        "--timeout",
        number=True,
        remark="is about a worker whose loop stands still, and no request is ended for its length. Such a worker is "
        "reported with its stack and gets a substitute; kill_blocked = true has it killed, as Gunicorn does",
    ),
    "graceful_timeout": same(
        "graceful_timeout",
        "--graceful-timeout",
        number=True,
        remark="counts for a stop only: after a release requests and jobs end in their own time (job_timeout bounds "
        "jobs)",
        default="Gunicorn's graceful_timeout is 30 s; a stop waits here for requests and jobs without a limit",
    ),
    "keepalive": same(
        "keep_alive",
        "--keep-alive",
        number=True,
        remark="should be longer than a proxy in front keeps idle connections",
        default="Gunicorn's keepalive is 2 s, and keep_alive 75 s",
    ),
    "limit_request_line": same(
        "limit_request_line",
        "--limit-request-line",
        number=True,
        convert=_line,
        inexact=True,
        default="Gunicorn's limit_request_line is 4094, and ours 8190",
    ),
    "limit_request_fields": same("limit_request_fields", "--limit-request-fields", number=True, convert=_fields,
        inexact=True),
    "limit_request_field_size": same(
        "limit_request_field_size", "--limit-request-field_size", number=True, convert=_line, inexact=True
    ),
    # --- debugging
    "reload": same("reload", "--reload", **_FLAG),
    "reload_engine": needless("is inotify, or looking once in a second where there is none", "--reload-engine"),
    "reload_extra_files": same("reload_extra_file", "--reload-extra-file", action="append"),
    "spew": none("has no counterpart: `reuseport stacks` shows what each request is at", "--spew", **_FLAG),
    "check_config": needless("is a flag: reuseport serve --check-config", "--check-config", **_FLAG),
    "print_config": needless("is a flag: reuseport serve --print-config", "--print-config", **_FLAG),
    # --- mechanics
    "preload_app": needless(
        "is what preload = \"auto\", the default, does if the import survives a fork; HUP brings new code all the same",
        "--preload",
        **_FLAG,
    ),
    "sendfile": needless("has no counterpart, and needs none: a regular file goes out by sendfile", "--no-sendfile",
        action="store_const", const=False),
    "reuse_port": needless("is always so: every socket has SO_REUSEPORT", "--reuse-port", **_FLAG),
    "chdir": same("chdir", "--chdir", remark="follows links afresh at each release, so `current` may be flipped"),
    "daemon": none("has no counterpart: leave the background to systemd (reuseport init systemd)", "-D", "--daemon",
        **_FLAG),
    "raw_env": same("env", "-e", "--env", action="append", convert=_variables),
    "pidfile": same("pid", "-p", "--pid"),
    "worker_tmp_dir": needless("means nothing: workers report through shared memory", "--worker-tmp-dir"),
    "user": same("user", "-u", "--user", convert=str),
    "group": same("group", "-g", "--group", convert=str),
    "umask": same("umask", "-m", "--umask", number=True, convert=_mask),
    "initgroups": needless("is always so: user brings its groups along", "--initgroups", **_FLAG),
    "tmp_upload_dir": needless("is used by nobody, in Gunicorn neither"),
    "secure_scheme_headers": none(
        "has no counterpart: of a trusted proxy X-Forwarded-Proto, -Protocol, -Ssl and Forwarded count, no others"
    ),
    "forwarded_allow_ips": same("forwarded_allow_ips", "--forwarded-allow-ips", convert=_peers,
        remark="counts here for REMOTE_ADDR as well, not only for the scheme"),
    "protocol": none("has no counterpart: HTTP is spoken, and not uwsgi", "--protocol", usual="http",
        impossible=lambda value: str(value).lower() != "http"),
    "uwsgi_allow_ips": needless("concerns the uwsgi protocol", "--uwsgi-allow-from"),
    "pythonpath": same("pythonpath", "--pythonpath", convert=_commas),
    "paste": none("has no counterpart: name the application as MODULE:factory()", "--paste", "--paster",
        impossible=bool),
    "raw_paste_global_conf": needless("concerns paste", "--paste-global", action="append"),
    "proxy_protocol": same("proxy_protocol", "--proxy-protocol", bare="auto", convert=_proxy_protocol),
    "proxy_allow_ips": same("proxy_allow_ips", "--proxy-allow-from", convert=_peers),
    "control_socket": needless("is in the run directory (run_dir)", "--control-socket"),
    "control_socket_mode": needless("concerns Gunicorn's control socket; ours is its user's alone",
        "--control-socket-mode"),
    "control_socket_disable": needless("concerns Gunicorn's control socket; ours is its user's alone",
        "--no-control-socket", **_FLAG),
    # --- logs
    "accesslog": same("access_log", "--access-logfile"),
    "access_log_format": same("access_log_format", "--access-logformat"),
    "disable_redirect_access_to_syslog": needless("concerns syslog", "--disable-redirect-access-to-syslog", **_FLAG),
    "errorlog": same("log_file", "--error-logfile", "--log-file"),
    "loglevel": same("log_level", "--log-level", convert=lambda value: str(value).lower()),
    "capture_output": same("capture_output", "--capture-output", **_FLAG,
        remark="line by line, with whose it is; what subprocesses print stays on standard output and error"),
    "logger_class": none("has no counterpart: log_json = true, or log_config", "--logger-class"),
    "logconfig": same("log_config", "--log-config"),
    "logconfig_json": same("log_config", "--log-config-json"),
    "logconfig_dict": none("has no counterpart: write the dictionary into a .json file, and name that in log_config"),
    "syslog": none(_SYSLOG, "--log-syslog", **_FLAG),
    "syslog_addr": needless("concerns syslog", "--log-syslog-to"),
    "syslog_prefix": same("log_syslog_prefix", "--log-syslog-prefix", usual=None,
        remark="without 'gunicorn.' in front"),
    "syslog_facility": same("log_syslog_facility", "--log-syslog-facility"),
    "enable_stdio_inheritance": needless("is always so", "-R", "--enable-stdio-inheritance", **_FLAG),
    "statsd_host": same("statsd_host", "--statsd-host"),
    "statsd_prefix": same("statsd_prefix", "--statsd-prefix"),
    "dogstatsd_tags": same("dogstatsd_tags", "--dogstatsd-tags"),
    "enable_backlog_metric": needless("is reuseport_slot_queue_length of --metrics, which is always there",
        "--enable-backlog-metric", **_FLAG),
    "proc_name": same("name", "-n", "--name", convert=_name, inexact=True,
        remark="also names the run directory: `reuseport status -n NAME` finds the server by it"),
    "default_proc_name": needless("is Gunicorn's own"),
    # --- hooks
    "on_starting": none(f"{_MASTER}; a unit has ExecStartPre="),
    "on_reload": none(f"{_MASTER}; do it before `reuseport release`"),
    "when_ready": none(f"{_MASTER}; `reuseport release --wait ready` and systemd's READY=1 say it"),
    "pre_fork": none(f"{_MASTER}; what must be done once is done where the application is imported"),
    "post_fork": none("has another form: a function in the application that is @reuseport.on_start"),
    "post_worker_init": none("has another form: a function in the application that is @reuseport.on_start"),
    "worker_int": none("has another form: a function in the application that is @reuseport.on_drain"),
    "worker_abort": none("has no counterpart: a blocked worker is reported in the log with its stack"),
    "pre_exec": none(f"{_MASTER}"),
    "pre_request": none("has another form: a WSGI middleware"),
    "post_request": none("has another form: a WSGI middleware, or access_log with its format"),
    "child_exit": none("has another form: a function in the application that is @reuseport.on_child_exit"),
    "worker_exit": none("has another form: atexit, or a function that is @reuseport.on_drain"),
    "nworkers_changed": none(f"{_MASTER}"),
    "on_exit": none(f"{_MASTER}; a unit has ExecStopPost="),
    "ssl_context": none("has no counterpart: TLS 1.2 and later, with what the system's OpenSSL allows"),
    # --- TLS
    "keyfile": same("keyfile", "--keyfile"),
    "certfile": same("certfile", "--certfile", remark="is read again at each release"),
    "ca_certs": same("ca_certs", "--ca-certs"),
    "cert_reqs": same("cert_reqs", "--cert-reqs", convert=_certificates),
    "ssl_version": needless("means nothing: TLS 1.2 and later is spoken", "--ssl-version"),
    "ciphers": none("has no counterpart: the system's OpenSSL decides (its CipherString can)", "--ciphers"),
    "suppress_ragged_eofs": needless("means nothing: a cut connection is always seen", "--suppress-ragged-eofs",
        **_FLAG),
    "do_handshake_on_connect": needless("means nothing: no handshake blocks", "--do-handshake-on-connect", **_FLAG),
    # --- HTTP
    "http_protocols": none(_HTTP2, "--http-protocols", usual="h1"),
    "http2_cleartext": needless(_HTTP2, "--http2-cleartext"),
    "http2_max_concurrent_streams": needless(_HTTP2, "--http2-max-concurrent-streams", number=True),
    "http2_initial_window_size": needless(_HTTP2, "--http2-initial-window-size", number=True),
    "http2_max_frame_size": needless(_HTTP2, "--http2-max-frame-size", number=True),
    "http2_max_header_list_size": needless(_HTTP2, "--http2-max-header-list-size", number=True),
    "http_parser": needless("is Gunicorn's own", "--http-parser"),
    "permit_obsolete_folding": none(_STRICT, "--permit-obsolete-folding", **_FLAG),
    "strip_header_spaces": none(_STRICT, "--strip-header-spaces", **_FLAG),
    "permit_unconventional_http_method": needless("is always so: any method that is a token works",
        "--permit-unconventional-http-method", **_FLAG),
    "permit_unconventional_http_version": none("has no counterpart: HTTP/1.0 and 1.1 are spoken",
        "--permit-unconventional-http-version", **_FLAG),
    "casefold_http_method": none("has no counterpart: methods are case-sensitive (RFC 9110 section 9.1)",
        "--casefold-http-method", **_FLAG),
    "forwarder_headers": none("has no counterpart: of a trusted proxy SCRIPT_NAME counts, and no other such field",
        "--forwarder-headers", usual="SCRIPT_NAME"),
    "header_map": none("has no counterpart: a field with an underscore never takes the place of one with a dash",
        "--header-map", usual="drop"),
    "websocket_max_message_size": none("has no counterpart: the application's WebSocket library decides",
        "--websocket-max-message-size", number=True),
    "root_path": none(_ASGI, "--root-path"),
    "asgi_loop": none(_ASGI, "--asgi-loop"),
    "asgi_lifespan": none(_ASGI, "--asgi-lifespan"),
    "asgi_disconnect_grace_period": none(_ASGI, "--asgi-disconnect-grace-period", number=True),
    # --- dirty workers
    "dirty_apps": none(_DIRTY, "--dirty-app", action="append"),
    "dirty_workers": needless(_DIRTY, "--dirty-workers", number=True),
    "dirty_timeout": none("has another form: job_timeout, and a job's own deadline", "--dirty-timeout", number=True),
    "dirty_threads": needless(_DIRTY, "--dirty-threads", number=True),
    "dirty_graceful_timeout": none("has another form: job_grace", "--dirty-graceful-timeout", number=True),
    "on_dirty_starting": none(_DIRTY),
    "dirty_post_fork": none(_DIRTY),
    "dirty_worker_init": none(_DIRTY),
    "dirty_worker_exit": none(_DIRTY),
}
# fmt: on


def concurrency(said: Mapping[str, Any]) -> tuple[dict[str, Any], list[str], str]:
    """(options, remarks, why it is impossible) of worker_class and threads, which only together mean something."""
    kind = said.get("worker_class")
    word = str(kind.get("callable") or kind.get("object")) if isinstance(kind, Mapping) else str(kind or "sync")
    threads = int(said.get("threads") or 1)
    short = word.rpartition(".")[2].lower()
    if any(part in word.lower() for part in ("uvicorn", "asgi", "aiohttp")):
        return {}, [], f"worker_class {word} {_ASGI}"
    if "tornado" in short:
        return {}, [], f"worker_class {word} is for Tornado's own applications, which reuseport does not serve"
    if "gevent" in short:
        return {}, ["worker_class gevent: requests run in greenlets, which is the default here."], ""
    if "eventlet" in short:
        return {}, ["worker_class eventlet: requests run in gevent's greenlets, and eventlet itself will not do."], ""
    if short in ("gthread", "threadworker") or threads > 1:
        remark = f"worker_class gthread: {threads} native threads in each worker, nothing patched."
        return {"threads": threads}, [remark], ""
    remark = (
        "worker_class sync: one request at a time in each worker, nothing patched. Without this line requests run in "
        "greenlets, as with Gunicorn's gevent workers; with a higher number in so many native threads."
    )
    if short not in ("sync", "syncworker"):
        remark = f"worker_class {word} is unknown here, and taken for sync. {remark}"
    return {"threads": 1}, [remark], ""
