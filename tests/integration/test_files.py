"""Files as bodies from a real worker, whose standard library gevent has patched, or whose requests run in threads."""

from __future__ import annotations

import gzip
import random

import pytest

DATA = random.Random(5).randbytes(3_000_000)

CODE = """
import gzip, io, os, tempfile, zipfile
HERE = os.path.dirname(__file__)

def temporary():
    file = tempfile.NamedTemporaryFile()
    with open(HERE + "/data", "rb") as source:
        file.write(source.read())
    file.seek(0)
    return file

def spooled():
    file = tempfile.SpooledTemporaryFile(max_size=100)
    with open(HERE + "/data", "rb") as source:
        file.write(source.read())
    file.seek(0)
    return file

KINDS = {
    "plain": lambda: open(HERE + "/data", "rb"),
    "raw": lambda: open(HERE + "/data", "rb", buffering=0),
    "gzip": lambda: gzip.open(HERE + "/data.gz"),
    "bytes": lambda: io.BytesIO(open(HERE + "/data", "rb").read()),
    "temporary": temporary,
    "spooled": spooled,
    "text": lambda: open(HERE + "/data", encoding="latin-1"),
}

def application(environ, start_response):
    file = KINDS[environ["PATH_INFO"][1:]]()
    if at := int(environ["QUERY_STRING"] or 0):
        file.seek(at)
    start_response("200 OK", [("Content-Type", "application/octet-stream")])
    return environ["wsgi.file_wrapper"](file, 8192)
"""


@pytest.mark.parametrize("options", [(), ("--threads", "2")], ids=["greenlets", "threads"])
def test_files_of_every_kind(serve, options):
    server = serve(*options, workers=1)
    directory = server.write("one", code=CODE)
    (directory / "data").write_bytes(DATA)
    (directory / "data.gz").write_bytes(gzip.compress(DATA, 1))
    server.start()
    for kind in ("plain", "raw", "gzip", "bytes", "temporary", "spooled"):
        for at in (0, 1_000_001):
            answer = server.get(f"/{kind}?{at}")
            assert (answer.status, answer.body == DATA[at:]) == (200, True), (kind, at)
    assert server.get("/text").status == 500
    assert "open the file in binary mode" in server.log.read_text()
