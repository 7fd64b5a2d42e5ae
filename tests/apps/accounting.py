"""What tests/integration/adversary.py talks to: every answer says what the request was, and as whom its client counts.

A request says in its query what is to be done: how much of the body is read, where time passes, how the answer is
made. Every id that the application has got is written down, so that it shows if one came twice.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from pathlib import Path
from tempfile import TemporaryFile
from urllib.parse import parse_qsl

GATES = Path(os.environ["TEST_GATES"])
_written: dict[int, int] = {}  # a descriptor by pid: a worker must not write into its zygote's


def write_down(text: str) -> None:
    pid = os.getpid()
    if pid not in _written:
        _written[pid] = os.open(GATES / f"seen.{pid}", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.write(_written[pid], text.encode() + b"\n")


def application(environ, start_response):
    asked = dict(parse_qsl(environ["QUERY_STRING"]))
    write_down(asked["id"])
    pause = float(asked.get("pause", 0))
    body = environ["wsgi.input"]
    if asked.get("before"):
        time.sleep(pause)
    length, checksum = 0, 0
    most = {"none": 0, "some": int(asked.get("part", 0))}.get(asked["read"], 1 << 40)
    while length < most and (piece := body.read(min(int(asked.get("step", 65536)), most - length))):
        length += len(piece)
        checksum = zlib.crc32(piece, checksum)
        if asked.get("between"):
            time.sleep(pause / 10)
    if asked.get("after"):
        time.sleep(pause)
    answer = {
        "id": asked["id"],
        "method": environ["REQUEST_METHOD"],
        "length": length,
        "checksum": checksum,
        "peer": [environ["REMOTE_ADDR"], environ["REMOTE_PORT"]],
        "generation": environ["reuseport.generation"],
        "worker": environ["reuseport.worker"],
    }
    data = json.dumps(answer).encode() + b"\n" + b"x" * int(asked.get("size", 0))
    headers = [("Content-Type", "application/json")]
    how = asked.get("how", "list")
    if how != "chunks":
        headers.append(("Content-Length", str(len(data))))
    start_response("200 OK", headers)
    if how == "file":
        file = TemporaryFile()  # noqa: SIM115 - the server closes it
        file.write(data)
        file.seek(0)
        return environ["wsgi.file_wrapper"](file)
    if how == "list":
        return [data]
    return (data[at : at + 9000] for at in range(0, len(data), 9000))
