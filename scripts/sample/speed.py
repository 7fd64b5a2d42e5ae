"""What the servers of `scripts/bench peers` all serve: a page for each case, and nothing that costs more than it."""

from __future__ import annotations

import json
import os

import flask

BIG_FILE = os.environ.get("BENCH_FILE", "")
PIECE = 65536

HELLO = b"Hello, world!\n"
JSON = json.dumps([{"id": n, "name": f"customer {n}", "open": True, "balance": n * 1.5} for n in range(150)]).encode()
BODY = b"x" * 100_000

view = flask.Flask("speed")


@view.get("/flask")
def greet():
    return {"greeting": "hello", "agent": flask.request.headers.get("User-Agent", "")}


def fixed(content_type, body):
    headers = [("Content-Type", content_type), ("Content-Length", str(len(body)))]

    def page(environ, start_response):
        start_response("200 OK", headers)
        return [body]

    return page


def post(environ, start_response):
    count = 0
    while piece := environ["wsgi.input"].read(PIECE):
        count += len(piece)
    body = b"%d\n" % count
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def download(environ, start_response):
    file = open(BIG_FILE, "rb")  # noqa: SIM115 - the server closes it (PEP 3333)
    length = os.fstat(file.fileno()).st_size
    start_response("200 OK", [("Content-Type", "application/octet-stream"), ("Content-Length", str(length))])
    wrapper = environ.get("wsgi.file_wrapper")
    return wrapper(file, PIECE) if wrapper else iter(lambda: file.read(PIECE), b"")


PAGES = {
    "/": fixed("text/plain", HELLO),
    "/json": fixed("application/json", JSON),
    "/body": fixed("application/octet-stream", BODY),
    "/post": post,
    "/download": download,
}


def application(environ, start_response):
    return PAGES.get(environ["PATH_INFO"], view)(environ, start_response)
