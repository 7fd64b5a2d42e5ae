"""What stands around the server: systemd, and nginx in front. The checks judge facts, and touch nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from reuseport.cli.doctor import nginx
from reuseport.cli.doctor.findings import Facts, Finding, fine, problem, warning

HINTS = (1, 29)  # the first version of nginx that passes over a 103, or passes it on (its directive early_hints)


def unit(facts: Facts) -> Iterator[Finding]:
    show = facts.unit
    if show is None:
        return
    found = list(_unit(show, facts))
    yield from found or [fine(f"{show.get('Id', 'the unit')} lets jobs end and workers be adopted")]


def _unit(show: Mapping[str, str], facts: Facts) -> Iterator[Finding]:
    kind = show.get("Type", "")
    if kind == "forking":
        yield problem("Type=forking: systemd waits for a master that forks away, which it never does", "Type=notify")
    elif not kind.startswith("notify"):
        yield warning(
            f"Type={kind}: systemd takes it for started before it serves, and is not told what a stop waits for",
            "Type=notify (reuseport init systemd prints a unit)",
        )
    mode = show.get("KillMode", "control-group")
    if mode == "control-group":
        yield problem(
            "KillMode=control-group: a stop, or the master's death, ends every worker and job", "KillMode=process"
        )
    elif mode != "process":
        yield warning(f"KillMode={mode}: workers whose master has died are killed, with their jobs", "KillMode=process")
    if show.get("OOMPolicy", "stop") != "continue":
        yield problem(
            f"OOMPolicy={show.get('OOMPolicy', 'stop')}: the unit stops when one worker is killed for its memory",
            "OOMPolicy=continue",
        )
    stop = show.get("TimeoutStopUSec", "infinity")
    if stop != "infinity" and not kind.startswith("notify"):
        yield warning(
            f"TimeoutStopSec is {stop}: a stop that waits longer for a job is ended with SIGKILL",
            "TimeoutStopSec=infinity, or Type=notify, by which the master asks for more time",
        )
    if show.get("Restart", "no") == "no":
        yield warning("Restart=no: nobody starts another master for the workers of one that died", "Restart=on-failure")
    if not show.get("ExecReload") and kind != "notify-reload":
        yield warning("there is no ExecReload=", "ExecReload=reuseport release --wait ready --run-dir DIR")
    directories = [f"/run/{name}" for name in show.get("RuntimeDirectory", "").split()]
    path = facts.settings.run_dir
    if show.get("RuntimeDirectoryPreserve", "no") == "no" and any(f"{path}/".startswith(f"{d}/") for d in directories):
        yield warning(
            "RuntimeDirectoryPreserve=no: a restart removes the run directory, where the next master finds the workers",
            "RuntimeDirectoryPreserve=restart",
        )
    if show.get("PrivateTmp") in ("yes", "disconnected") and path.startswith(("/tmp/", "/var/tmp/")):
        yield problem(
            f"PrivateTmp=: the run directory {path} cannot be seen from outside: `reuseport status` finds nobody",
            "RuntimeDirectory= in the unit, or --run-dir below /run",
        )


def proxies(facts: Facts) -> Iterator[Finding]:
    for one in facts.proxies:
        found = list(_proxy(one, facts))
        yield from found or [fine(f"nginx ({one['where']}): its timeouts and connections agree with the server's")]


def early_hints(facts: Facts) -> Iterator[Finding]:
    """A proxy that takes a 103 for the response forwards nothing behind it."""
    version = facts.nginx_version
    if not facts.proxies or version is None or facts.settings.early_hints != "on":
        return
    said = f"nginx {version[0]}.{version[1]}"
    if version >= HINTS:
        yield fine(f"{said} can tell an early hint from the response")
    else:
        yield problem(
            f"{said} takes an early hint (status 103) for the response: the client waits until proxy_read_timeout",
            f"--early-hints direct, or nginx {HINTS[0]}.{HINTS[1]} or later",
        )


def _proxy(one: Mapping[str, object], facts: Facts) -> Iterator[Finding]:
    begin = f"nginx ({one['where']})"
    for name, what in (
        ("proxy_read_timeout", "works longer without a word is answered 504"),
        ("proxy_send_timeout", "is read more slowly is broken off"),
    ):
        limit = nginx.seconds(str(one.get(name) or "60s"))
        if limit is not None and limit <= 60:
            said = f"{name} {one[name]}" if one.get(name) else f"{name} is 60s, its default"
            yield warning(
                f"{begin}: {said}: a request that {what}, while reuseport sets no limit",
                f"{name} 1h (or as long as your longest request), or make it a job",
            )
    repeats = str(one.get("proxy_next_upstream") or "error timeout").split()
    if "non_idempotent" in repeats:
        yield problem(
            f"{begin}: proxy_next_upstream non_idempotent: a POST may be done twice", "proxy_next_upstream off"
        )
    elif "off" not in repeats:
        said = f"proxy_next_upstream {' '.join(repeats)}" + ("" if one.get("proxy_next_upstream") else ", its default")
        yield warning(
            f"{begin}: {said}: a GET, PUT or DELETE that ends its worker is sent again over each kept connection",
            "proxy_next_upstream off",
        )
    version, connection = str(one.get("proxy_http_version") or ""), one.get("connection")
    if not one.get("keepalive") or version in ("", "1.0") or connection not in ("", "$connection_upgrade"):
        missing = [
            *(["keepalive 32 in an upstream { }"] if not one.get("keepalive") else []),
            *(["proxy_http_version 1.1"] if version in ("", "1.0") else []),
            *(['proxy_set_header Connection ""'] if connection not in ("", "$connection_upgrade") else []),
        ]
        yield warning(f"{begin}: each request costs a connection of its own", "; ".join(missing))
        return
    idle = nginx.seconds(str(one.get("keepalive_timeout") or "60s"))
    if facts.settings.keep_alive and idle is not None and idle >= facts.settings.keep_alive:
        yield problem(
            f"{begin}: it keeps idle connections for {idle:g} s, and reuseport for {facts.settings.keep_alive:g} s: a "
            "POST sent just when reuseport closes is answered 502",
            f"keepalive_timeout 60s in the upstream, or --keep-alive {idle * 1.25:g}",
        )
