"""Generations: the application, its processes, releases and stops, and tenants."""

from __future__ import annotations

from reuseport.options import kinds, machine, spec
from reuseport.options.option import Option, between, filled, positive

_COUNT = between(0, 1_000_000_000)

APPLICATION = "The application"
PROCESSES = "Processes"
RELEASES = "Releases and stops"
TENANTS = "Tenants"

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
        "its own virtual environment. What that lacks of reuseport, gevent and what they need comes from the server's "
        "environment, if both have the same minor version of Python. A relative path lies in --chdir; a name without a "
        "slash is looked up in PATH.",
    ),
    Option(
        "env", kinds.ASSIGNMENT, {}, repeatable=True, flags=("-e",), group=APPLICATION, default_text="none",
        help="A variable for the application's environment; repeatable. Sources add up key by key. In a file it is "
        "the table [env]; REUSEPORT_ENV holds words as a shell would read them.",
    ),
    Option(
        "env_file", kinds.LATE_PATH, (), repeatable=True, metavar="FILE", group=APPLICATION, default_text="none",
        help="A file with variables for the application's environment, NAME=VALUE in each line, read by the master at "
        "each release; repeatable. A later file wins, and --env wins over all. With - in front of the path the file "
        "may be missing. A relative path lies in --chdir. /dev/null stands for no file, and ends the remark about a "
        ".env that the application reads itself.",
    ),
    Option(
        "warmup", kinds.WEB_PATH, (), repeatable=True, group=APPLICATION, default_text="none",
        help="A path that each worker requests from itself (GET) before it is ready; repeatable. An answer of 500 or "
        "above fails the release. With //HOST/PATH the Host is that one, and not localhost. A rollback to the version "
        "that stands by does not wait for it.",
    ),
    Option(
        "preload", kinds.choice("auto", "always", "never"), "auto", group=APPLICATION,
        bare=("always", "a bare --preload stands for --preload always; --preload auto, the default, also preloads"),
        help="Whether a generation imports the application once and shares its memory among its workers (always), or "
        "each worker imports it (never). auto imports once, and falls back to never when the import leaves behind "
        "what does not survive a fork: a thread, a greenlet, an open connection, an event loop, a pool of processes.",
    ),
    Option(
        "lazy_imports", kinds.choice("settle", "keep"), "settle", group=APPLICATION,
        help="What becomes of the application's lazy imports (PEP 810, Python 3.15 or later), and of Django's URLconf, "
        "which Django imports at its first request. settle: they are carried out when the application has been "
        "imported, so that the workers share their memory, and a broken one fails the release. keep: each one is "
        "carried out at its first use.",
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
        "quarantine", kinds.SECONDS, 60.0, unit="seconds; 0: off", group=PROCESSES, effect="release",
        help="A request (by method, target, Host and tenant) that was running when two workers of a generation died "
        "within a minute is answered 503 for so long, and everything else is served.",
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
        "packages do not count. At a terminal breakpoint() works.",
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
        "generation its requests go there; when the last one ends it moves on. A takeover and an upgrade change it, "
        "too.",
    ),
    Option(
        "tenant_isolation", kinds.choice("shared", "strict"), "shared", group=TENANTS, effect="start",
        help="strict: two versions never work for one tenant at the same time. Its requests wait a moment when it "
        "moves. A takeover and an upgrade change it, too.",
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
)
# fmt: on
