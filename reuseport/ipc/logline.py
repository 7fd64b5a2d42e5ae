"""The form of a log line, the same for every process."""

import time

LEVELS = {"debug": 0, "info": 1, "warning": 2, "error": 3, "critical": 4}


def line(who: str, level: str, text: str) -> bytes:
    """One line. `who` is "master", "zygote 7" or a worker's id such as "7.2"."""
    stamp = time.strftime("%Y-%m-%d %H:%M:%S %z")
    return f"[{stamp}] [{who}] [{level}] {text}\n".encode(errors="backslashreplace")
