"""Thousands of clients that want little, or nothing, or never come to an end: a process of its own.

    crowd.py PORT KIND COUNT

`idle`: each has been answered once, and keeps its connection. `heads`: a byte of a head a second. `bodies`: a byte of
a body a second. `readers`: each takes a byte a second of an answer of 100 kB. `slow`: a third of each. Prints "ready"
when all are connected, lives until its standard input says so, and then prints how many the server has closed on. One
that is closed on comes back.
"""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
import sys

ASK = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
HEAD = b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: "
BODY = b"POST /post HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
READER = b"GET /body HTTP/1.1\r\nHost: x\r\n\r\n"
FIRST = {"idle": ASK, "heads": HEAD, "bodies": BODY, "readers": READER}


def connect(port: int, kind: str) -> socket.socket:
    sock = socket.socket()
    if kind == "readers":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    sock.settimeout(20)
    sock.connect(("127.0.0.1", port))
    sock.sendall(FIRST[kind])
    return sock


def trickle(sock: socket.socket, kind: str) -> bool:
    """One byte of it; False when the server has closed."""
    try:
        if kind == "readers":
            return bool(sock.recv(1))
        sock.send(b"x")
        return not sock.recv(1)  # whatever is answered to half a request, it is no more of this client's
    except BlockingIOError:
        return True
    except OSError:
        return False


def stand(port: int, kind: str, count: int) -> int:
    kinds = ("heads", "bodies", "readers") if kind == "slow" else (kind,)
    crowd = [(connect(port, one), one) for one in itertools.islice(itertools.cycle(kinds), count)]
    for sock, one in crowd:
        if one == "idle" and not sock.recv(65536).startswith(b"HTTP/1.1 200"):
            raise SystemExit("an idle client was not answered")
        sock.setblocking(False)
    print("ready", flush=True)
    ends = select.poll()
    ends.register(sys.stdin, select.POLLIN | select.POLLHUP)
    closed = at = 0
    while not ends.poll(1 if kind != "idle" else 1000):
        # A thousandth of the crowd every ms: it must not move in step, nor hold up the others that share its core.
        for _ in range(0 if kind == "idle" else max(1, count // 1000)):
            sock, one = crowd[at]
            if not trickle(sock, one):
                closed += 1
                sock.close()
                with contextlib.suppress(OSError):
                    sock = connect(port, one)
                    sock.setblocking(False)
                    crowd[at] = sock, one
            at = (at + 1) % count
    if kind == "idle":
        for sock, _ in crowd:
            with contextlib.suppress(BlockingIOError):
                closed += not sock.recv(1, socket.MSG_PEEK)
    return closed


if __name__ == "__main__":
    try:
        print(stand(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
    except OSError as error:
        raise SystemExit(f"crowd.py: {error}") from None
