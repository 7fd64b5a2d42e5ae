"""Figures as a person says them. What is missing, or is no figure, is ABSENT."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from reuseport.options.arguments import one_line

ABSENT = "-"


def duration(seconds: Any) -> str:
    """Seconds as a person says them: 42s, 12m, 3h 5m, 4d 2h."""
    if not isinstance(seconds, int | float):
        return ABSENT
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60}m"
    return f"{whole // 86400}d {whole % 86400 // 3600}h"


def latency(seconds: Any) -> str:
    """The time that an answer takes: 0.4ms, 12ms, 1.3s."""
    if not isinstance(seconds, int | float):
        return ABSENT
    if seconds >= 0.9995:
        return f"{seconds:.1f}s" if seconds < 99.95 else duration(seconds)
    return f"{seconds * 1000:.1f}ms" if seconds < 0.00995 else f"{seconds * 1000:.0f}ms"


def rate(number: Any) -> str:
    """So many in a second: 0, 0.4, 12, 3.2k, 64k."""
    if not isinstance(number, int | float):
        return ABSENT
    if number >= 999.5:
        return f"{number / 1000:.1f}k" if number < 9950 else f"{number / 1000:.0f}k"
    return f"{number:.1f}" if 0 < number < 9.95 else f"{number:.0f}"


def size(count: Any) -> str:
    """Bytes as a person says them: 0, 512K, 53M, 1.2G (powers of 1024)."""
    if not isinstance(count, int | float):
        return ABSENT
    for unit, suffix in ((1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K")):
        if count >= unit:
            number = count / unit
            return f"{number:.1f}{suffix}" if suffix == "G" and number < 10 else f"{number:.0f}{suffix}"
    return str(int(count))


def ranges(numbers: Iterable[int]) -> str:
    """Numbers with runs drawn together: 0-3,7."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs) or ABSENT


def count(number: Any, what: str) -> str:
    """1 job, 2 jobs; nothing for none."""
    if not number:
        return ""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def text(value: Any) -> str:
    """What an application or a file said, made safe to print: it must not move the cursor."""
    return ABSENT if value is None or value == "" else one_line(str(value))


def a_list(data: Mapping[str, Any], key: str) -> list[Any]:
    """The list of that name, empty where a master of another version says something else."""
    value = data.get(key)
    return value if isinstance(value, list) else []


def a_dict(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The object of that name, likewise."""
    value = data.get(key)
    return value if isinstance(value, dict) else {}


def objects(data: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """The objects in the list of that name, likewise."""
    return [one for one in a_list(data, key) if isinstance(one, dict)]


def waiting_for(waits: Mapping[str, Any], jobs: Sequence[Any]) -> str:
    """What a drain waits for, in a few words."""
    parts = [
        count(waits.get("requests"), "request"),
        count(waits.get("connections"), "connection"),
        count(len(jobs) + (waits.get("more") or 0), "job"),
        count(len(a_list(waits, "companions")), "companion"),
        _held(a_list(waits, "held"), waits.get("more_held") or 0),
    ]
    return ", ".join(part for part in parts if part) or "its processes to end"


def _held(tenants: Sequence[Any], more: int) -> str:
    one = len(tenants) == 1 and not more
    return f"tenant {text(tenants[0])}, which is held here" if one else count(len(tenants) + more, "held tenant")


def held(waits: Mapping[str, Any]) -> list[str]:
    """A line for each tenant that is held in a generation, with what lets go of it."""
    lines = []
    for one in a_list(waits, "held"):
        tenant = text(one)
        lines.append(f"tenant {tenant} is held here (reuseport move {shlex.quote(tenant)} lets go of it)")
    more = waits.get("more_held")
    return [*lines, f"and {count(more, 'other tenant')}"] if more else lines


def trial(canary: Mapping[str, Any]) -> str:
    """Who tries a generation out: "tenants acme, globex, and 10 % of the others"."""
    tenants = [text(one) for one in a_list(canary, "tenants")]
    if more := canary.get("more"):
        tenants.append(f"{more} more")
    percent = canary.get("percent")
    parts = [f"tenant{'s' if len(tenants) > 1 else ''} {', '.join(tenants)}"] if tenants else []
    if isinstance(percent, int | float) and percent:
        parts.append(f"{percent:g} % of {'the others' if tenants else 'all tenants'}")
    return ", and ".join(parts) or ABSENT
