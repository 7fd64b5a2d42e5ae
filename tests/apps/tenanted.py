"""What the tests of tenants serve: every answer says which version it is, and whose the request was.

`/job?name=GATE` begins a job that ends when the gate opens. `/work` writes the time it ran, per tenant and version, to
the file that TEST_INTERVALS names: so that a test can see afterwards which versions worked at the same time.
"""

from __future__ import annotations

import json
import os
import random
import time
from urllib.parse import parse_qs

import basic

import reuseport


def write_interval(kind: str, tenant: str, generation: int, begun: int) -> None:
    line = f"{kind} {tenant} {generation} {begun} {time.monotonic_ns()}\n"
    fd = os.open(os.environ["TEST_INTERVALS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.write(fd, line.encode())
    os.close(fd)


def finish(name: str) -> None:
    basic.pass_gate(name)


def work(seconds: float, tenant: str, generation: int) -> None:
    begun = time.monotonic_ns()
    time.sleep(seconds)
    write_interval("job", tenant, generation, begun)


def whose(environ) -> str | None:
    if environ["PATH_INFO"] == "/nobody-knows":
        raise RuntimeError("whose is it?")
    time.sleep(0.001)
    return environ.get("HTTP_X_CUSTOMER")


def make(version: str):
    def application(environ, start_response):
        begun = time.monotonic_ns()
        query = {key: values[-1] for key, values in parse_qs(environ["QUERY_STRING"]).items()}
        path, tenant = environ["PATH_INFO"], environ.get("reuseport.tenant")
        generation = environ["reuseport.generation"]
        answer = {"version": version, "pid": os.getpid(), "tenant": tenant, "generation": generation}
        if path == "/job":
            reuseport.spawn(finish, query["name"], name="export")
        elif path == "/gate":
            basic.pass_gate(query["name"])
        elif path == "/upload":
            answer["length"] = len(environ["wsgi.input"].read())
        elif path == "/work":
            chance = random.random()
            if chance < 0.2:
                reuseport.spawn(work, random.random() * 0.05, tenant, generation, name="work")
            time.sleep(random.random() * 0.01)
            write_interval("request", tenant, generation, begun)
        body = json.dumps(answer).encode()
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]

    return application
