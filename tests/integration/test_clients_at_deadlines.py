"""Real clients of real servers at a deadline: Django's pool of psycopg connections, and pymemcache.

A job's deadline, its cancelling, and the timeout that docs/jobs-and-tenants.md recommends leave the client usable.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Gate, Status, listens, wait_for

POSTGRES = shutil.which("postgres") or next(map(str, Path("/usr/lib/postgresql").glob("*/bin/postgres")), "")
MISSING = [name for name in ("psycopg_pool", "pymemcache", "django") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)}: not installed, see the extra `client`")

APP = """
import os
import gevent
import reuseport
from basic import pass_gate
from pymemcache.client.base import PooledClient
from django.conf import settings
settings.configure(SECRET_KEY="x", DATABASES={"default": {
    "ENGINE": "django.db.backends.postgresql", "NAME": "postgres", "USER": "postgres",
    "HOST": os.environ["TEST_POSTGRES"],
    "OPTIONS": {"pool": {"min_size": 1, "max_size": 1, "timeout": 20}},
}})
import django
django.setup()
from django.db import connection

cache = PooledClient(os.environ["TEST_MEMCACHED"], max_pool_size=1)
handles = []

def ask(gate=""):
    try:
        with connection.cursor() as cursor:
            cursor.execute("select 42")
            if gate:
                pass_gate(gate)
            return cursor.fetchone()[0]
    finally:
        connection.close()

def get(key, default=None):
    found = cache.get(key, default)
    return found.decode() if isinstance(found, bytes) else found

def fill(**values):
    return all(cache.set(key, value, noreply=False) for key, value in values.items())

def application(environ, start_response):
    work, _, way = environ["PATH_INFO"].strip("/").partition("-")
    work = {"ask": ask, "hold": lambda: ask("hold"), "get": lambda: get("slow"), "quick": lambda: get("quick"),
            "fill": lambda: fill(slow="wrong", quick="right")}[work]
    try:
        if way == "deadline":
            with reuseport.job(environ["PATH_INFO"], deadline=0.2):
                answer = work()
        elif way == "timeout":
            with gevent.Timeout(0.2, TimeoutError):
                answer = work()
        elif way == "cancel":
            handle = reuseport.spawn(work)
            gevent.sleep(0.2)
            handle.cancel()
            answer = handle.result(20)
        else:
            answer = work()
    except (reuseport.JobCancelled, TimeoutError) as error:
        answer = type(error).__name__
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(answer).encode()]
"""


@contextlib.contextmanager
def running(command: list[str], path: Path, **more) -> Iterator[subprocess.Popen]:
    """A server that listens at the unix socket `path`."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, **more)
    try:
        wait_for(lambda: path.exists() and listens(path), command[0])
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """The directory of the socket of a PostgreSQL that ends with the tests."""
    if not POSTGRES:
        pytest.skip("postgres is not installed (apt-get install postgresql)")
    pytest.importorskip("psycopg", reason="libpq is not installed (apt-get install libpq5)", exc_type=ImportError)
    as_user = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
    bin = Path(POSTGRES).resolve().parent
    with tempfile.TemporaryDirectory(prefix="ru-pg-", dir="/tmp") as name:
        home, data = Path(name), Path(name) / "data"
        if as_user:
            shutil.chown(home, "postgres", "postgres")
        initdb = [str(bin / "initdb"), "-D", str(data), "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8"]
        subprocess.run(initdb, check=True, cwd=home, stdout=subprocess.DEVNULL, env={"LC_ALL": "C"}, **as_user)
        words = [str(bin / "postgres"), "-D", str(data), "-k", str(home), "-c", "listen_addresses=", "-c", "fsync=off"]
        with running(words, home / ".s.PGSQL.5432", cwd=home, stderr=subprocess.DEVNULL, **as_user):
            yield str(home)


@pytest.fixture
def memcached() -> Iterator[tuple[str, int]]:
    """The socket of a memcached that ends with the test, and its pid."""
    if not shutil.which("memcached"):
        pytest.skip("memcached is not installed (apt-get install memcached)")
    with tempfile.TemporaryDirectory(prefix="ru-mc-", dir="/tmp") as name:
        path = Path(name) / "s"
        words = ["memcached", "-s", str(path), *(["-u", "root"] if os.geteuid() == 0 else [])]
        with running(words, path) as process:
            yield str(path), process.pid


def is_late(status: Status, name: str) -> bool:
    """Whether the job runs, and its deadline has passed."""
    return any(job["name"] == name and job["age"] > 0.4 for job in status.current["waits_for"]["jobs"])


@pytest.mark.parametrize("mode", [(), ("--threads", "4")], ids=["greenlets", "threads"])
def test_a_client_is_usable_after_a_deadline(serve, postgres, memcached, mode):
    path, pid = memcached
    server = serve(*mode, workers=1, env={"TEST_POSTGRES": postgres, "TEST_MEMCACHED": path})
    server.write("one", APP)
    server.start()
    ways = {"deadline": "JobTimeout"}
    if not mode:
        ways |= {"timeout": "TimeoutError", "cancel": "JobCancelled"}
    hold: Gate = server.gate("hold")
    for number, (way, ending) in enumerate(ways.items()):
        hold.close()
        held = server.get_later("/hold")
        hold.await_entered(number + 1)
        late = server.get_later(f"/ask-{way}")
        if mode:  # a thread gets it when it comes back from what it waits for
            server.wait(lambda s: is_late(s, "/ask-deadline"), "the deadline has passed")
        else:
            assert late.result().body.decode() == ending
        hold.open()
        assert held.result().body == b"42"
        assert late.result().body.decode() == ending
        assert server.get("/ask").body == b"42", "the only connection is in the pool again"
    assert server.get("/fill").body == b"True"
    for way, ending in ways.items():
        os.kill(pid, signal.SIGSTOP)
        try:
            late = server.get_later(f"/get-{way}")
            if mode:
                server.wait(lambda s: is_late(s, "/get-deadline"), "the deadline has passed")
            else:
                assert late.result().body.decode() == ending
        finally:
            os.kill(pid, signal.SIGCONT)
        assert late.result().body.decode() == ending
        assert server.get("/quick").body == b"right"
        assert server.get("/get").body == b"wrong"
