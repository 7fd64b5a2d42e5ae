"""Behind a proxy that speaks PROXY: the client's address, also after a hand-over."""

from __future__ import annotations

import json
import socket

from test_websockets import address, write

HEADER = b"PROXY TCP4 192.0.2.7 192.0.2.1 5000 80\r\n"
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n"


def answer(sock: socket.socket) -> dict:
    data = b""
    while b"}" not in data:
        piece = sock.recv(65536)
        assert piece, data
        data += piece
    return json.loads(data.partition(b"\r\n\r\n")[2])


def test_the_hand_over_carries_the_clients_address(serve):
    server = serve("--proxy-protocol", "v1")
    write(server, "one")
    server.start()
    host, port = address(server).split(":")
    with (
        socket.create_connection((host, int(port)), 20) as sock,
        socket.create_connection((host, int(port)), 20) as late,
    ):
        late.sendall(HEADER[:20])
        sock.sendall(HEADER + REQUEST)
        seen = answer(sock)
        assert (seen["version"], seen["REMOTE_ADDR"]) == ("one", "192.0.2.7")
        write(server, "two")
        assert server.release().exit == 0
        sock.sendall(REQUEST)
        seen = answer(sock)
        assert (seen["version"], seen["REMOTE_ADDR"]) == ("two", "192.0.2.7")
        late.sendall(HEADER[20:] + REQUEST)
        assert answer(late)["REMOTE_ADDR"] == "192.0.2.7"
    server.settle(2)
