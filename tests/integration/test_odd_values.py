"""What applications can pass to the public functions: jobs of odd names and deadlines, and jobs that cannot begin."""

from __future__ import annotations

import json

import pytest

from reuseport import names

CODE = '''
import datetime, fractions, decimal, json, time
import reuseport
from reuseport.worker import jobprocess

ODD = ["a\\0b", "a\\nb", "a\\x1b[2Jb", "a\\ud800b", "x" * 70_000]
WRONG = {
    "bytes": dict(name=b"export"), "none": dict(name=None), "bytes of a tenant": dict(name="x", tenant=b"acme"),
    "bool": dict(name="x", deadline=True), "str": dict(name="x", deadline="30"),
    "nan": dict(name="x", deadline=float("nan")), "negative": dict(name="x", deadline=-1),
    "timedelta": dict(name="x", deadline=datetime.timedelta(seconds=30)),
}
DEADLINES = [fractions.Fraction(1, 4), decimal.Decimal("0.25")]
plain_title = jobprocess.set_title

def set_title(title):
    if "doomed" in title:
        basic.enter("doomed")
        raise RuntimeError("no title")
    plain_title(title)

jobprocess.set_title = set_title

def whose(tenant):
    return tenant

def wrong(keywords):
    try:
        with reuseport.job(**keywords):
            return "ran"
    except (TypeError, ValueError) as error:
        return type(error).__name__

def late(deadline):
    try:
        with reuseport.job("late", deadline=deadline):
            while True:
                time.sleep(0.01)
    except reuseport.JobTimeout:
        return "JobTimeout"

def result(handle):
    try:
        return handle.result(20)
    except BaseException as error:
        return f"{type(error).__name__}: {error}"

def application(environ, start_response, plain=application):
    path = environ["PATH_INFO"]
    if path == "/odd":
        handles = [reuseport.spawn(whose, str(n), name=odd, tenant=odd, where="process") for n, odd in enumerate(ODD)]
        answer = [result(handle) for handle in handles]
    elif path == "/hold":
        for odd in ODD:
            reuseport.spawn(basic.pass_gate, "held", name=odd, tenant=odd)
        handle = reuseport.spawn(basic.pass_gate, "held", name="plain", tenant="acme")
        handle.job.text, handle.job.fraction = b"assigned", decimal.Decimal(5)
        answer = "held"
    elif path == "/mine":
        reuseport.spawn(basic.pass_gate, "held", name="mine")
        answer = environ["reuseport.tenant"]
    elif path == "/wrong":
        answer = {name: wrong(keywords) for name, keywords in WRONG.items()}
    elif path == "/late":
        answer = [late(deadline) for deadline in DEADLINES]
    elif path == "/doomed":
        answer = result(reuseport.spawn(whose, "x", name="doomed", tenant="acme", where="process"))
    else:
        return plain(environ, start_response)
    body = json.dumps(answer).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
'''
ODD = ["a\0b", "a\nb", "a\x1b[2Jb", "a\ud800b", "x" * 70_000]
RAW = "\xc3\x9cbersee"  # as environ has what a client sends in UTF-8 (PEP 3333): it has a control character


@pytest.mark.parametrize("options", [(), ("--threads", "4")], ids=["greenlets", "threads"])
def test_odd_values_are_converted_or_refused_and_hide_no_other_job(serve, options):
    server = serve(*options, "--tenant", "header:X-Tenant", workers=1)
    server.write("one", code=CODE)
    server.start()
    worker = server.get("/").pid
    assert server.get("/odd").json == ["0", "1", "2", "3", "4"]
    assert set(server.get("/wrong").json.values()) == {"TypeError", "ValueError"}
    assert server.get("/late").json == ["JobTimeout"] * 2
    server.get("/hold")
    client = server.client()
    client.request("GET", "/mine", headers={"X-Tenant": RAW})
    assert json.loads(client.getresponse().read()) == RAW, "the application gets it as the client wrote it"
    client.close()
    server.gate("held").await_entered(len(ODD) + 2)
    status = server.wait(lambda s: len(jobs(s)) == len(ODD) + 2, "every job to be told")
    assert {job["name"] for job in jobs(status)} == {*map(names.name, ODD), "plain", "mine"}
    assert {job["tenant"] for job in jobs(status)} == {*map(names.name, ODD), "acme", names.name(RAW)}
    assert server.cli("hold", RAW).exit == 0
    moved = server.cli("move", names.name(RAW))
    assert moved.exit == 0 and "no longer held in generation 1" in moved.out
    for command in ("status", "tenants"):
        done = server.cli(command)
        assert done.exit == 0 and not set(done.out) & set("\0\x1b\ud800")
    server.gate("held").open()
    server.wait(lambda s: not jobs(s) and s.is_settled(), "the jobs to end")

    assert server.get("/doomed").json.startswith("JobLost: job 'doomed' is lost: its process")
    status = server.wait(lambda s: s["lost"]["count"], "the loss to be told")
    (lost,) = status["lost"]["jobs"]
    assert (lost["name"], lost["tenant"], lost["how"]) == ("doomed", "acme", "ended before the function began")
    assert len(server.gate("doomed").entered()) == 1, "it is tried once"
    assert server.get("/").pid == worker and server.status()["lost"]["count"] == 1


def jobs(status):
    return [job for g in status["generations"] for job in g["waits_for"]["jobs"]]
