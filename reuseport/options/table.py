"""Every option of the server, declared once.

The flag, the key in a file, the environment variable, the check and the help of an option all follow from its one
`Option` here; so do the Gunicorn options that are taken but mean nothing, from one `Foreign` each. To add an option is
to add an entry; nothing else in the package lists them.

An option's effect says what a release does with a new value: "start" needs another start, "release" counts for the
generations that begin from then on, and "always" also for those that already live, and for the master itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from reuseport.options import accessformat, address, companions, kinds, logplace, machine, networks, spec
from reuseport.options.option import ENVIRONMENT, FILE, FLAG, Foreign, Option, between, filled, positive


def without_query(value: str | None) -> None:
    if value is not None and "?" in value:
        raise ValueError(f"{value!r} has a query, of which no path consists")


def _filled_place(value: str) -> None:
    filled(value)
    logplace.check(value)


def _tag(value: str) -> None:
    if not re.fullmatch(r"[!-~]{0,48}", value) or set(value) & set(":[]"):  # RFC 5424 section 6.2.5, and syslog(3)'s
        raise ValueError(f"{value!r} is not a name for syslog: up to 48 letters, digits and signs, none of : [ ]")


_COUNT = between(0, 1_000_000_000)

APPLICATION, PROCESSES, RELEASES, NETWORK = "The application", "Processes", "Releases and stops", "Network and HTTP"
PROXY, TLS = "Behind a proxy", "TLS"
TENANTS, COMPANIONS = "Tenants", "Companions"
PLACE, LOG, METRICS, CONFIGURATION = "Identity and place", "Log", "Metrics", "Configuration"

# fmt: off
OPTIONS: tuple[Option, ...] = (
    Option(
        "app", spec.APP, None, positional=True, group=APPLICATION, default_text="none",
        help="The application: MODULE:APP, or MODULE:factory() to call what makes it. MODULE alone stands for "
        "MODULE:application.",
    ),
    Option(
        "factory", kinds.SWITCH, False, group=APPLICATION,
        help="APP is a function that returns the application; it is called once in each generation.",
    ),
    Option(
        "chdir", kinds.PATH, ".", metavar="DIR", group=APPLICATION, check=filled,
        default_text=". (where the master was started)",
        help="The application's directory; it is also the first entry of sys.path. Symbolic links in it are followed "
        "afresh at each release, so that flipping `current` and releasing brings the new version.",
    ),
    Option(
        "pythonpath", kinds.DIRECTORIES, (), repeatable=True, group=APPLICATION, default_text="none",
        help="More directories for sys.path, comma separated or repeated; relative ones lie in --chdir.",
    ),
    Option(
        "python", kinds.LATE_PATH, "", group=APPLICATION, default_text="the interpreter that runs the master",
        help="The interpreter that loads the application, found afresh at each release, so that a release can bring "
        "its own virtual environment (which must have reuseport in it). A relative path lies in --chdir; a name "
        "without a slash is looked up in PATH.",
    ),
    Option(
        "env", kinds.ASSIGNMENT, {}, repeatable=True, flags=("-e",), group=APPLICATION, default_text="none",
        help="A variable for the application's environment; repeatable. Sources add up key by key. In a file it is "
        "the table [env]; REUSEPORT_ENV holds words as a shell would read them.",
    ),
    Option(
        "warmup", kinds.WEB_PATH, (), repeatable=True, group=APPLICATION, default_text="none",
        help="A path that each worker requests from itself (GET) before it is ready; repeatable. An answer of 500 or "
        "above fails the release. With //HOST/PATH the Host is that one, and not localhost.",
    ),
    Option(
        "preload", kinds.choice("auto", "always", "never"), "auto", group=APPLICATION,
        bare=("always", "a bare --preload stands for --preload always; --preload auto, the default, also preloads"),
        help="Whether a generation imports the application once and shares its memory among its workers (always), or "
        "each worker imports it (never). auto imports once, and falls back to never when the import leaves behind "
        "what does not survive a fork: a thread, a greenlet, an open connection.",
    ),
    Option(
        "workers", kinds.WHOLE, machine.usable_cores, flags=("-w",), group=PROCESSES, check=between(1, 1024),
        fallbacks=("WEB_CONCURRENCY",), default_text="the usable cores",
        help="Worker processes of a generation. Usable cores are those that affinity and the container's CPU quota "
        "leave.",
    ),
    Option(
        "threads", kinds.WHOLE, 0, unit="native threads; 0: greenlets", group=PROCESSES, check=between(0, 1024),
        help="Run each worker's requests in so many native threads, instead of in greenlets, and patch nothing: for "
        "code that gevent cannot make cooperative, such as database drivers in C, or views that compute. When all are "
        "busy a request waits for its turn.",
    ),
    Option(
        "max_requests", kinds.WHOLE, 0, unit="requests; 0: no limit", group=PROCESSES, check=_COUNT,
        help="A worker that has answered so many requests is replaced, once its substitute is ready.",
    ),
    Option(
        "max_requests_jitter", kinds.WHOLE, 0, unit="requests", group=PROCESSES, check=_COUNT,
        help="A random 0 to N is added to --max-requests for each worker, so that they are not all replaced at once.",
    ),
    Option(
        "max_worker_memory", kinds.SIZE, 0, unit="bytes, or 512M; 0: no limit", group=PROCESSES,
        help="A worker whose resident memory is above this is replaced, once its substitute is ready. It drains: its "
        "requests and jobs end in peace.",
    ),
    Option(
        "timeout", kinds.SECONDS, 30.0, flags=("-t",), unit="seconds; 0: off", group=PROCESSES, effect="always",
        help="A worker whose loop has not turned for so long is blocked: it is reported with its Python stack and "
        "gets a substitute. A request may take any time; only a loop that stands still counts.",
    ),
    Option(
        "kill_blocked", kinds.SWITCH, False, group=PROCESSES,
        help="Kill a blocked worker, with its requests and jobs, instead of leaving it to finish beside its "
        "substitute.",
    ),
    Option(
        "orphan_timeout", kinds.SECONDS, 0.0, unit="seconds; 0: never", group=PROCESSES, effect="release",
        help="How long workers whose master has died serve on without another one. Then they drain, and end with their "
        "last request and job.",
    ),
    Option(
        "boot_timeout", kinds.SECONDS, 120.0, unit="seconds", group=RELEASES, check=positive, effect="always",
        help="How long a new generation may take from its start until its workers are ready, warm-up included; after "
        "that the release has failed and the old generation serves on.",
    ),
    Option(
        "graceful_timeout", kinds.SECONDS, 0.0, unit="seconds; 0: no limit", group=RELEASES, effect="always",
        help="How long a stop (TERM) waits for requests and jobs before it ends them. Drains after a release have no "
        "such limit.",
    ),
    Option(
        "stop_delay", kinds.SECONDS, 0.0, unit="seconds", group=RELEASES, effect="always",
        help="How long the server still accepts after it was told to stop (TERM), while --health-path says that it "
        "leaves and each response closes its connection: for a load balancer or orchestrator that has to notice before "
        "connections are refused. A second TERM ends it.",
    ),
    Option(
        "job_timeout", kinds.SECONDS, 0.0, unit="seconds; 0: no limit", group=RELEASES,
        help="The deadline of jobs that have none of their own. Then JobTimeout is raised inside the job.",
    ),
    Option(
        "job_grace", kinds.SECONDS, 30.0, unit="seconds", group=RELEASES,
        help="How long a job may go on after its deadline, to clean up. Then the process of a job is killed; a worker "
        "whose thread or greenlet goes on is replaced, finishes its other requests and jobs, and is ended.",
    ),
    Option(
        "standby", kinds.SECONDS, 600.0, unit="seconds; 0: not at all", group=RELEASES, effect="always",
        help="How long after a release the previous generation's zygote is kept, so that `reuseport rollback` need not "
        "load anything. It costs the memory of the application once.",
    ),
    Option(
        "probation", kinds.SECONDS, 0.0, unit="seconds; 0: none", group=RELEASES,
        help="How long a new generation is watched. If two of its workers crash, or its share of 5xx answers is higher "
        "than its predecessor's by more than --max-error-rate, it is rolled back, and its release has failed. The "
        "release is answered when the time is over.",
    ),
    Option(
        "max_error_rate", kinds.SHARE, 0.05, unit="0 to 1, or 5%", group=RELEASES, effect="always",
        help="By how much a new generation's share of 5xx answers may be above its predecessor's during --probation.",
    ),
    Option(
        "max_generations", kinds.WHOLE, 0, unit="generations; 0: no limit", group=RELEASES, check=_COUNT,
        effect="always",
        help="How many generations may live at once, the draining and the new one included. A release beyond that is "
        "refused, a rollback never.",
    ),
    Option(
        "check_memory", kinds.SWITCH, True, group=RELEASES, effect="always",
        help="Refuse a release for which there is less free memory than the generation that serves uses.",
    ),
    Option(
        "release_file", kinds.LATE_PATH, "", metavar="FILE", group=RELEASES, effect="always", default_text="none",
        help="Touching this file releases, as HUP does; so does making it. A relative path lies in --chdir, with "
        "its links followed afresh: tmp/restart.txt is that of `current` as it is now.",
    ),
    Option(
        "stop_file", kinds.LATE_PATH, "", metavar="FILE", group=RELEASES, effect="always", default_text="none",
        help="Touching this file stops, as TERM does. A relative path lies in --chdir.",
    ),
    Option(
        "reload", kinds.SWITCH, False, group=RELEASES, effect="start",
        help="For development: saving a Python file that the application has imported, or that lies beside one, "
        "releases, as HUP does. With a mistake in it the version before serves on, until the next save. Installed "
        "packages do not count.",
    ),
    Option(
        "reload_extra_file", kinds.LATE_PATH, (), metavar="FILE", repeatable=True, group=RELEASES, effect="always",
        default_text="none",
        help="Another file whose saving releases, with --reload; repeatable. A directory stands for the files in it, "
        "templates say. A relative path lies in --chdir.",
    ),
    Option(
        "takeover", kinds.choice("no", "yes", "if-running"), "no", group=RELEASES, effect="start", bare=("yes", ""),
        help="Start beside the master that owns the run directory, and take over from it: this version is loaded, then "
        "gets the addresses and all that still drains, and the other master leaves with its last job. Until then a "
        "failure changes nothing. Without a running master, yes (--takeover alone) refuses to start; if-running starts "
        "as usual.",
    ),
    Option(
        "label", kinds.TEXT, "", group=RELEASES, default_text="the last part of the application's directory",
        help="What this version is called in `reuseport status` and `reuseport history`. `reuseport release --label` "
        "says it for one release.",
    ),
    Option(
        "tenant", kinds.TENANT, "", group=TENANTS, effect="start", default_text="none",
        help="Whose a request is: header:NAME, host, host:LABEL and path:N (counted from the left, from 1), "
        "cookie:NAME, or MODULE:CALLABLE, which gets environ without the body. While a tenant has a job on an older "
        "generation its requests go there; when the last one ends it moves on.",
    ),
    Option(
        "tenant_isolation", kinds.choice("shared", "strict"), "shared", group=TENANTS, effect="start",
        help="strict: two versions never work for one tenant at the same time. Its requests wait a moment when it "
        "moves.",
    ),
    Option(
        "strict_wait", kinds.SECONDS, 1.0, unit="seconds", group=TENANTS, check=positive, effect="always",
        help="How long a tenant's new requests may wait, where isolation is strict, for its running ones; then it "
        "stays for ten times as long before the next attempt.",
    ),
    Option(
        "pin_max", kinds.SECONDS, 0.0, unit="seconds; 0: no limit", group=TENANTS, effect="always",
        help="How long after a release jobs on the old generation keep their tenant there; then its new requests go "
        "to the new one, though those jobs still run.",
    ),
    Option(
        "bind", address.ADDRESS, ("tcp:127.0.0.1:8000",), repeatable=True, flags=("-b",), group=NETWORK, effect="start",
        check=address.check_addresses,
        help="An address to listen on; repeatable. HOST:PORT, :PORT (every IPv4 address), [IPV6]:PORT or unix:PATH. "
        "Port 0 takes a free one. REUSEPORT_BIND may hold several, separated by commas.",
    ),
    Option(
        "beside", kinds.SWITCH, False, group=NETWORK, effect="start",
        help="Bind to TCP addresses that another server of the same user has (with SO_REUSEPORT), and share its "
        "clients from when the first generation is ready. Otherwise an address in use is an error. To go from one "
        "version to another without losing anybody there is --takeover.",
    ),
    Option(
        "backlog", kinds.WHOLE, 2048, unit="connections", group=NETWORK, effect="start", check=between(1, 65535),
        help="How many connections may wait in each worker's queue. The kernel caps it at net.core.somaxconn.",
    ),
    Option(
        "header_timeout", kinds.SECONDS, 10.0, unit="seconds; 0: no limit", group=NETWORK,
        help="How long a request's head may take to arrive, counted from its first byte.",
    ),
    Option(
        "body_timeout", kinds.SECONDS, 60.0, unit="seconds; 0: no limit", group=NETWORK,
        help="How long a client may pause while it sends a request's body.",
    ),
    Option(
        "keep_alive", kinds.SECONDS, 75.0, unit="seconds; 0: close after each response", group=NETWORK,
        help="How long an idle connection is kept for its next request. A proxy in front should give up earlier.",
    ),
    Option(
        "send_timeout", kinds.SECONDS, 60.0, unit="seconds; 0: no limit", group=NETWORK,
        help="How long a client may pause while it takes a response.",
    ),
    Option(
        "limit_request_line", kinds.WHOLE, 8190, unit="bytes", group=NETWORK, check=between(64, 1 << 20),
        help="The longest request line; a longer one is answered 414.",
    ),
    Option(
        "limit_request_fields", kinds.WHOLE, 100, unit="fields", group=NETWORK, check=between(1, 32768),
        help="The most header fields of a request; more are answered 431.",
    ),
    Option(
        "limit_request_field_size", kinds.WHOLE, 8190, unit="bytes", group=NETWORK, check=between(64, 1 << 20),
        aliases=("--limit-request-field_size",), help="The longest header field; a longer one is answered 431.",
    ),
    Option(
        "limit_request_body", kinds.SIZE, 0, unit="bytes, or 512M; 0: no limit", group=NETWORK,
        help="The largest body of a request; a larger one is answered 413.",
    ),
    Option(
        "health_path", kinds.WEB_PATH, None, group=NETWORK, check=without_query, default_text="none",
        help="A path at which the server itself answers: 200 while it serves, 503 from the moment that it was told to "
        "stop. For load balancers and readiness probes; the application never sees it.",
    ),
    Option(
        "websocket_drain", kinds.SECONDS, 30.0, unit="seconds; 0: all at once", group=NETWORK,
        help="In what time a worker that drains closes its WebSockets, each at another moment, so that the clients do "
        "not all come back at once.",
    ),
    Option(
        "forwarded_allow_ips", networks.PEER, ("127.0.0.1", "::1"), repeatable=True, group=PROXY,
        check=networks.check_peers, fallbacks=("FORWARDED_ALLOW_IPS",),
        help="The proxies whose X-Forwarded-For, -Proto, -Protocol, -Ssl, Forwarded and SCRIPT_NAME count: addresses "
        "and networks, * for every peer, none for none. A unix socket's peer counts as one of them, except with none. "
        "A proxy must overwrite or extend what its own clients send.",
    ),
    Option(
        "proxy_protocol", networks.PROXY_PROTOCOL, "off", group=PROXY,
        bare=("auto", "a bare --proxy-protocol stands for --proxy-protocol auto, which takes both versions"),
        help="Every connection of a peer in --proxy-allow-ips begins with a PROXY header, of version 1, 2, or either "
        "(auto). One that does not is closed.",
    ),
    Option(
        "proxy_allow_ips", networks.PEER, ("127.0.0.1", "::1"), repeatable=True, group=PROXY,
        aliases=("--proxy-allow-from",), check=networks.check_peers,
        help="The peers that send PROXY headers, written as for --forwarded-allow-ips; all others are clients.",
    ),
    Option(
        "certfile", kinds.PATH, "", group=TLS, default_text="none: no TLS",
        help="The certificate, PEM, with the chain behind it. TLS 1.2 and later is then spoken on every TCP address "
        "(not on unix sockets). The files are read again at each release.",
    ),
    Option(
        "keyfile", kinds.PATH, "", group=TLS, default_text="the key is in --certfile",
        help="The certificate's private key, PEM, without a password. It may be readable by root only: it is read "
        "before --user counts.",
    ),
    Option(
        "ca_certs", kinds.PATH, "", group=TLS, default_text="none",
        help="The authorities, PEM, that client certificates must come from.",
    ),
    Option(
        "cert_reqs", networks.CERT_REQS, "none", group=TLS,
        help="Whether clients may (optional) or must (required) have a certificate. Gunicorn's 0, 1 and 2 do as well.",
    ),
    Option(
        "name", kinds.NAME, lambda values, origin: origin.script or spec.default_name(values["app"]), flags=("-n",),
        aliases=("--proc-name",), group=PLACE, effect="start", default_text="the application's module",
        help="What this master is called in ps, in the log and in its run directory.",
    ),
    Option(
        "run_dir", kinds.PATH, machine.run_dir_of, metavar="DIR", group=PLACE, effect="start", check=filled,
        default_text="$RUNTIME_DIRECTORY, $XDG_RUNTIME_DIR/reuseport/NAME or /tmp/reuseport-UID/NAME",
        help="Where the control socket and what the processes share lie; private to its owner. One master owns it.",
    ),
    Option(
        "state_dir", kinds.PATH, machine.state_dir_of, metavar="DIR", group=PLACE, effect="start", check=filled,
        default_text="$STATE_DIRECTORY, or --run-dir",
        help="Where the history of releases is kept, by which `reuseport rollback 7` finds the seventh generation's "
        "directory.",
    ),
    Option(
        "pid", kinds.PATH, "", flags=("-p",), group=PLACE, effect="start", default_text="none",
        help="A file to write the master's process id to. It never changes while the master lives.",
    ),
    Option(
        "user", kinds.ACCOUNT, "", flags=("-u",), metavar="USER", group=PLACE, effect="start", default_text="unchanged",
        help="The user, by name or number, that the application runs as. The master must have been started as root.",
    ),
    Option(
        "group", kinds.ACCOUNT, "", flags=("-g",), metavar="GROUP", group=PLACE, effect="start",
        default_text="the group of --user", help="The group, by name or number, that the application runs as.",
    ),
    Option(
        "umask", kinds.UMASK, None, flags=("-m",), unit="octal digits, in quotes in a file", group=PLACE,
        default_text="unchanged",
        help="The mode bits that files the application makes do not get: 022, 077.",
    ),
    Option(
        "log_file", logplace.PLACE, "-", aliases=("--error-logfile",), group=LOG, effect="start",
        check=_filled_place, default_text="- (standard error)",
        help="Where the log goes: a file, which USR1 opens again after a rotation, or journald (its own protocol), or "
        "syslog (/dev/log), or syslog://HOST:PORT (UDP).",
    ),
    Option(
        "log_level", kinds.choice("debug", "info", "warning", "error", "critical"), "info", group=LOG,
        metavar="LEVEL", help="debug, info, warning, error or critical: what is less is not logged.",
    ),
    Option(
        "log_json", kinds.SWITCH, False, group=LOG, effect="start",
        help="Write each entry of the log as one line of JSON: time, process, generation, level, message. What the "
        "application prints stays as it is, unless --capture-output.",
    ),
    Option(
        "log_syslog_facility", logplace.FACILITY, "daemon", group=LOG, effect="start", metavar="FACILITY",
        help="What syslog files the log and the access log under: daemon, user, local0 to local7, ...",
    ),
    Option(
        "log_syslog_prefix", kinds.TEXT, "", group=LOG, effect="start", metavar="NAME", check=_tag,
        default_text="--name", help="What syslog and the journal call this server (the journal: SYSLOG_IDENTIFIER).",
    ),
    Option(
        "capture_output", kinds.SWITCH, False, group=LOG, effect="start",
        help="What the application prints goes to --log-file, each line with its worker's generation and number. What "
        "its subprocesses and C libraries print stays as it is.",
    ),
    Option(
        "log_config", kinds.LATE_PATH, "", metavar="FILE", group=LOG, aliases=("--log-config-json",),
        default_text="none",
        help="A file for Python's logging, applied before the application is imported: of logging.config's ini form, "
        "or of its dictionary form if it ends in .json or .toml. Workers then write their log to the logger "
        "reuseport.error and requests to reuseport.access, as far as it configures those (or gunicorn.error and "
        "gunicorn.access). The master's own lines stay in --log-file. A relative path lies in --chdir.",
    ),
    Option(
        "access_log", logplace.PLACE, "", metavar="FILE", aliases=("--access-logfile",), group=LOG,
        check=logplace.check, default_text="none",
        help="Where a line for each request goes; - is standard output, and the rest as for --log-file. USR1 opens a "
        "file again after a rotation.",
    ),
    Option(
        "access_log_format", kinds.TEXT, accessformat.DEFAULT, aliases=("--access-logformat",), group=LOG,
        check=accessformat.check_format,
        help="What such a line says: json for an object with fixed keys, or Gunicorn's atoms, such as %(s)s for the "
        "status, %({user-agent}i)s, %({x-cache}o)s, and %({reuseport.generation}e)s for a variable of environ "
        "(reuseport.worker, reuseport.request_id and reuseport.tenant are others).",
    ),
    Option(
        "request_id", kinds.choice("off", "pass", "make"), "off", group=LOG,
        help="Whether a request's id is taken from --request-id-header into environ (reuseport.request_id), the logs "
        "and the response (pass), and made where there is none (make).",
    ),
    Option(
        "request_id_header", kinds.TOKEN, "X-Request-ID", group=LOG, metavar="HEADER",
        help="The header that a request's id comes and goes in.",
    ),
    Option(
        "metrics", address.ONE_OR_NONE, "", group=METRICS, effect="start", default_text="none",
        help="Where Prometheus gets the metrics, at /metrics: HOST:PORT, [IPV6]:PORT or unix:PATH. Whoever can connect "
        "can read them, so name a private address.",
    ),
    Option(
        "statsd_host", address.ONE_OR_NONE, "", group=METRICS, effect="start", check=address.check_port,
        default_text="none",
        help="A statsd that is told each second, HOST:PORT or unix:PATH. A name is resolved once, at the start.",
    ),
    Option(
        "statsd_prefix", kinds.METRIC_PREFIX, "", group=METRICS, effect="start", default_text="none",
        help="What names for statsd begin with; a dot is added.",
    ),
    Option(
        "dogstatsd_tags", kinds.METRIC_TAGS, "", group=METRICS, effect="start", default_text="none",
        help="Tags for a statsd that knows them (DogStatsD), separated by commas: env:prod,shop.",
    ),
    Option(
        "companion", companions.COMPANION, (), repeatable=True, group=COMPANIONS, where=frozenset({FILE}),
        default_text="none", check=companions.check_names, keys=companions.KEYS,
        help="A command that belongs to each generation: a queue worker, a scheduler. It begins in the generation's "
        "directory when that is ready, gets one stop signal when it begins to drain, and is waited for. One table for "
        "each, in a file only.",
    ),
    Option(
        "config", kinds.PATH, "", flags=("-c",), group=CONFIGURATION, where=frozenset({FLAG, ENVIRONMENT}),
        effect="always", default_text="reuseport.toml in the working directory, if it is there",
        help="A TOML file with options: each flag's long name is a key, with dashes or underscores. It is read again "
        "at each release.",
    ),
    Option(
        "print_config", kinds.SWITCH, False, group=CONFIGURATION, where=frozenset({FLAG}), effect="always",
        help="Print every option's value as TOML, each with its source, and exit.",
    ),
    Option(
        "check_config", kinds.SWITCH, False, group=CONFIGURATION, where=frozenset({FLAG}), effect="always",
        help="Check what can be checked without starting, say what is wrong, and exit: 0 all is well, 1 it is not.",
    ),
)

# fmt: on

_NO_ASGI = "is a worker for ASGI; reuseport serves WSGI applications"

FOREIGN: tuple[Foreign, ...] = (
    Foreign(
        ("-k", "--worker-class"),
        "means nothing here: every worker runs requests in greenlets on gevent's loop",
        refused_values={"uvicorn": _NO_ASGI, "asgi": _NO_ASGI, "aiohttp": _NO_ASGI},
    ),
    Foreign(("--worker-connections",), "means nothing here: a worker has no fixed number of connections"),
    Foreign(("--worker-tmp-dir",), "means nothing here: workers report through shared memory, not through files"),
    Foreign(("--reuse-port",), "means nothing here: every socket is opened with SO_REUSEPORT", takes_value=False),
    Foreign(("--no-sendfile",), "means nothing here: there is no such way of sending to avoid", takes_value=False),
    Foreign(("--initgroups",), "means nothing here: --user always brings its groups along", takes_value=False),
    Foreign(
        ("-R", "--enable-stdio-inheritance"),
        "means nothing here: standard output and error are always inherited",
        takes_value=False,
    ),
    Foreign(("--log-syslog",), "means nothing here: say --log-file syslog, and --access-log syslog", takes_value=False),
    Foreign(("--log-syslog-to",), "means nothing here: say --log-file syslog:/PATH or syslog://HOST:PORT"),
    Foreign(
        ("-D", "--daemon"),
        "is refused: leave the background to what supervises services (a systemd unit, a container)",
        takes_value=False,
        refused=True,
    ),
    Foreign(("--reload-engine",), "means nothing here: --reload uses inotify, and polls where there is none"),
    Foreign(("--ssl-version",), "means nothing here: TLS 1.2 and later is spoken"),
    Foreign(("--ciphers",), "is refused: the system's OpenSSL decides (its CipherString can)", refused=True),
    Foreign(("--do-handshake-on-connect",), "means nothing here: no handshake blocks", takes_value=False),
    Foreign(("--suppress-ragged-eofs",), "means nothing here: a cut connection is always seen", takes_value=False),
    Foreign(("--paste", "--paster"), "is refused: name the application as MODULE:factory()", refused=True),
)

BY_NAME: Mapping[str, Option] = {option.name: option for option in OPTIONS}
