"""The master: its name and its places, what is told of it, what it keeps beside, and its configuration."""

from __future__ import annotations

import re

from reuseport.options import accessformat, address, companions, kinds, logplace, machine, spec
from reuseport.options.option import ENVIRONMENT, FILE, FLAG, Option, filled


def _filled_place(value: str) -> None:
    filled(value)
    logplace.check(value)


def _tag(value: str) -> None:
    if not re.fullmatch(r"[!-~]{0,48}", value) or set(value) & set(":[]"):  # RFC 5424 section 6.2.5, and syslog(3)'s
        raise ValueError(f"{value!r} is not a name for syslog: up to 48 letters, digits and signs, none of : [ ]")


PLACE = "Identity and place"
LOG = "Log"
METRICS = "Metrics"
COMPANIONS = "Companions"
CONFIGURATION = "Configuration"

# fmt: off
OPTIONS: tuple[Option, ...] = (
    Option(
        "name", kinds.NAME, lambda values, origin: origin.script or spec.default_name(values["app"]), flags=("-n",),
        aliases=("--proc-name",), group=PLACE, effect="start", default_text="the application's module", decisive=True,
        help="What this master is called in ps, in the log and in its run directory.",
    ),
    Option(
        "run_dir", kinds.PATH, machine.run_dir_of, metavar="DIR", group=PLACE, effect="start", check=filled,
        decisive=True,
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
        help="The user, by name or number, that the application runs as, with all its groups. HOME, LOGNAME, USER and "
        "SHELL follow; --env sets others. The master must have been started as root.",
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
        help="Where the log goes: a file, which USR1 opens again after a rotation, or a descriptor that the master was "
        "started with (/dev/stdout, /dev/fd/3), or journald (its own protocol), or syslog (/dev/log), or "
        "syslog://HOST:PORT (UDP). The master opens the file and passes it to the processes of --user.",
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
        check=logplace.check, default_text="none", empty="no access log",
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
        empty="no prefix",
        help="What names for statsd begin with; a dot is added.",
    ),
    Option(
        "dogstatsd_tags", kinds.METRIC_TAGS, "", group=METRICS, effect="start", default_text="none",
        empty="no tags",
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
        effect="always", default_text="reuseport.toml in the working directory, if it is there", decisive=True,
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
