"""Workers that say on their own channels what no version of the server says: each ends itself, and nothing else."""

from __future__ import annotations

import json

from harness import wait_for

JOB = {"number": 1, "name": "export", "tenant": None, "started": 1.0}
TYPED = [
    {"type": "job"},
    {"type": "job", **JOB, "number": True},
    {"type": "job", **JOB, "number": -1},
    {"type": "job", **JOB, "number": 1 << 80},
    {"type": "job", **JOB, "name": ["export"]},
    {"type": "job", **JOB, "started": "yesterday"},
    {"type": "job", **JOB, "started": float("nan")},
    {"type": "job", **JOB, "deadline": float("inf")},
    {"type": "job", **JOB, "fraction": 2},
    {"type": "job", **JOB, "text": {"deep": [[[]]]}},
    {"type": "job-ended"},
    {"type": "job-ended", "number": None},
    {"type": "failed", "error": 7},
    {"type": "retire"},
    {"type": "stays", "tenant": "acme", "at": "1", "seconds": 1},
    {"type": "stays", "tenant": "acme", "at": 1, "seconds": -1e300},
    {"type": "slots", "slots": [["127.0.0.1:1", 0, False]]},
    {"type": "slots", "slots": {}},
    {"type": "imported", "directory": "\0"},
    {"type": "imported", "directory": "x" * 50_000},
]
BAD = [json.dumps({"v": 1, **said}).encode() for said in TYPED]
BAD += [b"\xff\x00\x1b[2J", b"[" * 60_000, b'{"v": 1}', b'{"v": 1, "type": "ready"} and more']

CODE = """
import os
import gevent
import reuseport
from reuseport.worker.main import Worker

BAD = %r

def speak(number):
    with reuseport.job(f"held by {number}", tenant="acme"):
        basic.pass_gate("speak")
        os.write(Worker.current.link.channel.fileno(), BAD[number - 1])
        basic.pass_gate("never")

@reuseport.on_start
def begin():
    number = Worker.current.birth.number
    if number <= len(BAD):
        gevent.spawn(speak, number)
"""


def test_each_malformed_message_ends_its_worker_and_nothing_else(serve):
    server = serve(workers=len(BAD))
    server.write("one", code=CODE % BAD)
    server.start()
    server.gate("speak").await_entered(len(BAD))
    before = server.status()
    speakers = {worker["pid"] for worker in before.current["workers"]}
    assert len(speakers) == len(BAD)
    server.gate("speak").open()
    after = server.wait(lambda s: s.is_settled() and not speakers & s.pids(), "every speaker to be replaced")
    assert after["master"]["pid"] == before["master"]["pid"]
    assert (len(after.current["workers"]), after.serving) == (len(BAD), 1)
    assert {job["name"] for job in after["lost"]["jobs"]} == {f"held by {n}" for n in range(1, len(BAD) + 1)}
    assert {job["how"] for job in after["lost"]["jobs"]} == {"was killed because it sent a malformed message"}
    assert after["lost"]["count"] == len(BAD)
    wait_for(lambda: server.log.read_text().count("sent a malformed message:") == len(BAD), "a line for each")
    assert server.cli("status").exit == 0
    server.write("two")
    assert server.release().exit == 0
    assert server.get().version == "two"
    assert "a defect" not in server.log.read_text()
