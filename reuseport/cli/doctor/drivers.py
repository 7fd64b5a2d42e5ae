"""Database drivers and other clients that wait in C, where gevent's patches do not reach.

While one of them waits, its worker's loop stands still: no other request of that worker goes on. Each entry names the
module whose presence tells, and what is true of it; sources are the projects' own documents and issue trackers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from reuseport.cli.doctor.findings import Finding, fine, warning

Probe = Mapping[str, Any]


class Driver(NamedTuple):
    """`blocks(probe)`: whether it does, as far as can be seen after the import."""

    module: str
    blocks: Callable[[Probe], bool]
    text: str
    remedy: str
    good: str = ""  # what is said where it does not


def _always(probe: Probe) -> bool:
    return True


def _lacks(module: str) -> Callable[[Probe], bool]:
    return lambda probe: module not in probe["modules"]


def _older(module: str, version: tuple[int, ...]) -> Callable[[Probe], bool]:
    def blocks(probe: Probe) -> bool:
        found = tuple(int(part) for part in re.findall(r"\d+", str(probe["modules"][module]))[: len(version)])
        return bool(found) and found < version

    return blocks


THREADS = "or serve with --threads N"
POOL_SIZE = 4  # psycopg_pool's default
SHOWN = 3  # modules that are named
FRAGILE = ("psycopg_pool", "pymemcache")

DRIVERS = (
    # The wait callback is psycopg2's own hook for this; psycogreen sets it.
    Driver(
        "psycopg2",
        lambda probe: not probe.get("psycopg2_waits_green"),
        "psycopg2 waits for the database in C and has no wait callback",
        f"call psycogreen.gevent.patch_psycopg() before the first connection, use psycopg 3, {THREADS}",
        "psycopg2 has a wait callback, and lets others go on while it waits",
    ),
    # https://github.com/psycopg/psycogreen: "gevent is supported automatically from 3.1.14 on".
    Driver(
        "psycopg",
        _older("psycopg", (3, 1, 14)),
        "psycopg before 3.1.14 does not know gevent",
        f"update psycopg, {THREADS}",
        "psycopg knows gevent, in its C implementation, too",
    ),
    Driver("MySQLdb", _always, "mysqlclient (MySQLdb) waits for the database in C", f"use PyMySQL, {THREADS}"),
    Driver(
        "_mysql_connector",
        _always,
        "mysql.connector has its C extension, which waits for the database in C",
        f"connect with use_pure=True, {THREADS}",
    ),
    Driver(
        "cx_Oracle",
        _always,
        "cx_Oracle waits for the database in C",
        f"use its successor oracledb in thin mode, {THREADS}",
    ),
    Driver(
        "oracledb",
        lambda probe: bool(probe.get("oracledb_thick")),
        "oracledb is in thick mode, and waits for the database in C",
        f"leave out init_oracle_client() (thin mode speaks through Python's sockets), {THREADS}",
        "oracledb is in thin mode, which speaks through Python's sockets",
    ),
    Driver("pyodbc", _always, "pyodbc waits for the database in C", f"use a driver in Python, {THREADS}"),
    Driver("ibm_db", _always, "ibm_db waits for the database in C", "serve with --threads N"),
    Driver(
        "pymssql",
        _always,
        "pymssql waits for the database in C, unless it was given a callback",
        f"call pymssql.set_wait_callback with one that calls gevent.socket.wait_read, {THREADS}",
    ),
    # https://github.com/grpc/grpc/pull/14561; its C core has pollers of its own.
    Driver(
        "grpc",
        _lacks("grpc.experimental.gevent"),
        "grpc waits in its C core, and may hang under gevent's patches",
        f"call grpc.experimental.gevent.init_gevent() before the first channel, {THREADS}",
        "grpc.experimental.gevent is there (init_gevent() makes grpc wait in gevent's loop)",
    ),
    # https://github.com/confluentinc/confluent-kafka-python/issues/612
    Driver(
        "confluent_kafka",
        _always,
        "confluent_kafka's flush() and poll() wait in C; produce() does not",
        f"poll(0) now and then; flush() and consume in native threads (reuseport.spawn, where='thread'), {THREADS}",
    ),
    Driver("pylibmc", _always, "pylibmc waits for memcached in C", f"use pymemcache, {THREADS}"),
    # https://github.com/MagicStack/uvloop: its loop is libuv's, in C.
    Driver("uvloop", _always, "uvloop waits in libuv's own loop", f"use asyncio's loop, {THREADS}"),
    Driver("pycurl", _always, "pycurl's perform() waits in C", f"use requests or urllib3, {THREADS}"),
    Driver(
        "zmq",
        _lacks("zmq.green"),
        "zmq waits in C",
        f"import zmq.green in its place, {THREADS}",
        "zmq.green waits in gevent's loop",
    ),
    # https://pymongo.readthedocs.io: threads and sockets of the standard library.
    Driver("pymongo", lambda probe: False, "", "", "pymongo waits in Python, and lets others go on"),
    Driver("pymysql", lambda probe: False, "", "", "PyMySQL waits in Python, and lets others go on"),
)


def drivers(probe: Probe, threads: int) -> Iterator[Finding]:
    """What is to be said of the drivers that the application has imported."""
    for one in DRIVERS:
        if one.module not in probe["modules"]:
            continue
        if threads:
            yield fine(f"{one.module}: requests run in native threads (--threads), where it may wait in C")
        elif one.blocks(probe):
            yield warning(f"{one.text}: the whole worker stands still meanwhile", one.remedy)
        else:
            yield fine(one.good)
    # https://docs.djangoproject.com/en/stable/ref/databases/#persistent-connections: each thread keeps its own, and a
    # greenlet counts as one, which here ends with its request.
    if (kept := probe.get("django_keeps")) and not threads:
        yield warning(
            f"Django keeps its connections to {', '.join(kept)}, each for one greenlet, which ends with its request: "
            "every request opens another, and leaves it to the garbage collector, until the database refuses more",
            f"CONN_MAX_AGE=0 and OPTIONS={{'pool': {{'max_size': 20}}}} (psycopg 3) or a pooler such as PgBouncer, "
            f"{THREADS}",
        )
    # https://www.psycopg.org/psycopg3/docs/api/pool.html: min_size is 4 by default, and max_size is min_size.
    for pool in probe.get("django_pools", ()):
        yield warning(
            f"Django's pool of connections to {pool} has no max_size: each worker uses {POOL_SIZE} connections, and "
            "other requests wait for them",
            "OPTIONS={'pool': {'max_size': 20}}, or as many as requests of a worker use the database at once",
        )
    # psycopg_pool/pool.py (3.3) and pymemcache/client/base.py (4.0) clean up behind `except Exception` only.
    fragile = [name for name in FRAGILE if name in probe["modules"]]
    if fragile and not threads and (users := probe.get("gevent_timeout")):
        yield warning(
            f"{', '.join(users[:SHOWN])} can use gevent.Timeout, which is no Exception: raised in "
            f"{' or '.join(fragile)}, it loses a connection, or leaves an answer to the next caller",
            "gevent.Timeout(seconds, TimeoutError), or the library's own timeout=",
        )
