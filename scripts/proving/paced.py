"""A client that asks at a fixed rate, whatever the server does: a process of its own, bound to its core.

    paced.py PORT RATE SECONDS CONNECTIONS

The open loop that wrk does not have. A request is due at its time and its latency counts from then, also while all
connections are busy, so that a stall is seen by every request that it delays. Prints a line of JSON, times in seconds.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from collections import deque

END = b"Hello, world!\n"  # of speed.py's page; some servers send head and body apart
ASK = b"GET / HTTP/1.1\r\nHost: x\r\nUser-Agent: paced\r\nAccept: */*\r\n\r\n"


def ask_at(port: int, rate: float, seconds: float, connections: int) -> dict[str, float]:
    poll = select.epoll()
    socks = {}
    for _ in range(connections):
        sock = socket.create_connection(("127.0.0.1", port))
        sock.setblocking(False)
        socks[sock.fileno()] = sock
        poll.register(sock, select.EPOLLIN)
    idle, due = deque(socks), dict.fromkeys(socks, 0.0)
    answers = dict.fromkeys(socks, b"")
    latencies: list[float] = []
    failed = 0
    start = time.monotonic()
    total = int(rate * seconds)
    asked = 0
    # Three seconds behind the last one is due, whatever is missing has failed.
    while len(latencies) + failed < total and time.monotonic() < start + seconds + 3:
        now = time.monotonic()
        while asked < total and idle and start + asked / rate <= now:
            number = idle.popleft()
            due[number] = start + asked / rate
            asked += 1
            try:
                socks[number].send(ASK)
            except OSError:
                failed += 1
        # Below a millisecond it looks without waiting: epoll would oversleep.
        for number, _ in poll.poll(0 if idle and asked < total else 0.01):
            try:
                data = socks[number].recv(65536)
            except OSError:
                data = b""
            answers[number] += data
            if answers[number].startswith(b"HTTP/1.1 200") and answers[number].endswith(END):
                latencies.append(time.monotonic() - due[number])
                answers[number] = b""
                idle.append(number)
            elif not data or not answers[number].startswith(b"HTTP/1.1 200"[: len(answers[number])]):
                failed += 1
                poll.unregister(number)
    failed += total - len(latencies) - failed
    latencies.sort()
    at = [
        latencies[min(len(latencies) - 1, int(len(latencies) * share))] if latencies else 0.0 for share in (0.5, 0.99)
    ]
    return {"p50": at[0], "p99": at[1], "worst": latencies[-1] if latencies else 0.0, "asked": total, "failed": failed}


if __name__ == "__main__":
    print(json.dumps(ask_at(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))))
