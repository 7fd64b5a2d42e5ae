"""The sample monolith: a WSGI application without a framework, and the template that releases are made from.

Every answer says which version of the code gave it, from three sides that must agree: the constant below, a module
imported only at the first request, and a file read only then. A worker that mixed two releases would show here.
"""

import hashlib
import json
import os
import time
from pathlib import Path
from urllib.parse import parse_qs

import reuseport

VERSION = 1

PIECE = 1024
JOURNAL = os.environ.get("MONOLITH_JOURNAL")  # where it writes down whose work it does, and when; nowhere if empty


def application(environ, start_response):
    query = {name: values[-1] for name, values in parse_qs(environ["QUERY_STRING"]).items()}
    page = PAGES.get(environ["PATH_INFO"])
    if page is None:
        start_response("404 Not Found", [("Content-Type", "text/plain"), ("Content-Length", "0")])
        return []
    work = "request", int(query.get("id", 0)), whose(environ), generation(environ)
    note("begins", *work)
    try:
        return page(environ, query, start_response)
    finally:
        note("ends", *work)


def bare(environ, query, start_response):
    """As little as an application can do: what is left is the server."""
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2"), *marks(environ)])
    return [b"ok"]


def front(environ, query, start_response):
    """A short request."""
    return answer(environ, query, start_response)


def slow(environ, query, start_response):
    """Waits, as for another service, without using the CPU."""
    before = VERSION
    time.sleep(float(query["seconds"]))
    return answer(environ, query, start_response, before=before)


def burn(environ, query, start_response):
    """Uses the CPU and never yields: nothing else happens in this worker."""
    work = "burn", int(query.get("id", 0)), whose(environ) or "nobody", generation(environ)
    note("begins", *work)
    end = time.monotonic() + float(query["seconds"])
    while time.monotonic() < end:
        pass
    note("ends", *work)
    return answer(environ, query, start_response)


def work(environ, query, start_response):
    """A request as most are: some milliseconds of CPU."""
    end = time.thread_time() + float(query.get("ms", 5)) / 1000
    total = 0
    while time.thread_time() < end:
        total += sum(range(200))
    return answer(environ, query, start_response, total=total)


def job(environ, query, start_response):
    """Begins work that outlives its request, for the customer whose request this is."""
    number, seconds = int(query.get("id", 0)), float(query["seconds"])
    work = "job", number, whose(environ), generation(environ)
    note("begins", *work)
    where = query.get("where", "greenlet")
    reuseport.spawn(invoices, work, seconds, name=f"invoices {number}", where=where)
    return answer(environ, query, start_response)


def invoices(work, seconds):
    time.sleep(seconds)
    note("ends", *work)


def burst(environ, query, start_response):
    """Begins many short jobs at once, for nobody."""
    for number in range(int(query["count"])):
        reuseport.spawn(time.sleep, float(query["seconds"]), name=f"burst {number}")
    return answer(environ, query, start_response)


def upload(environ, query, start_response):
    count, digest = 0, hashlib.sha256()
    while piece := environ["wsgi.input"].read(16384):
        count += len(piece)
        digest.update(piece)
    return answer(environ, query, start_response, count=count, sha256=digest.hexdigest())


def stream(environ, query, start_response):
    """Pieces over time; the first line says how many there will be, the last that this was all."""
    pieces, seconds = int(query["pieces"]), float(query["seconds"])
    start_response("200 OK", [("Content-Type", "text/plain"), *marks(environ)])
    return streamed(pieces, seconds)


def streamed(pieces, seconds):
    yield f"{pieces} pieces from version {VERSION}\n".encode()
    for piece in range(pieces):
        time.sleep(seconds / pieces)
        yield f"{piece} {VERSION} ".encode().ljust(PIECE - 1, b".") + b"\n"
    yield f"end of {pieces} pieces from version {VERSION}\n".encode()


def answer(environ, query, start_response, **more):
    import pricing  # at the first request, as large applications do: it must still be this release's own

    number = int(query.get("id", 0))
    body = json.dumps(
        {
            "id": number,
            "version": VERSION,
            "price": pricing.price(number),
            "banner": Path(__file__).with_name("banner.txt").read_text(),
            **more,
        }
    ).encode()
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), *marks(environ)]
    start_response("200 OK", headers)
    return [body]


def marks(environ):
    return [
        ("X-Version", str(VERSION)),
        ("X-Generation", str(generation(environ))),
        ("X-Tenant", whose(environ)),
        ("X-Pid", str(os.getpid())),
    ]


def generation(environ):
    return environ.get("reuseport.generation", 0)


def whose(environ):
    return environ.get("reuseport.tenant") or ""


def note(event, kind, number, tenant, generation):
    """One line, in one write, so that lines of many processes do not mix."""
    if JOURNAL and tenant:
        line = f"{event} {kind} {number} {tenant} {generation} {VERSION} {os.getpid()} {time.monotonic():.6f}\n"
        with open(JOURNAL, "ab", buffering=0) as journal:
            journal.write(line.encode())


PAGES = {
    "/": front,
    "/bare": bare,
    "/slow": slow,
    "/burn": burn,
    "/work": work,
    "/job": job,
    "/burst": burst,
    "/upload": upload,
    "/stream": stream,
}
