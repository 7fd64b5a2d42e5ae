"""A client that speaks TLS with an engine in this process, and a harness whose every client does."""

from __future__ import annotations

import socket
import ssl

import gevent
import trustme
from http_harness import Answer, Client, Harness, parse, turn, wait_for

authority = trustme.CA()
server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
authority.issue_cert("localhost").configure_cert(server_context)


class TlsClient:
    """Speaks TLS in memory over a client that sees bytes. `proper`: the server has said close_notify."""

    def __init__(self, harness: Harness, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3, step: int = 1 << 20) -> None:
        harness.engine.tls = server_context
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        fd = theirs.detach()
        gevent.get_hub().loop.run_callback(lambda: harness.engine.accept(fd, ("192.0.2.1", 4000), ("127.0.0.1", 443)))
        turn()
        self.wire = Client(ours)
        self.step = step
        self.proper = False
        self.ended = False
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.maximum_version = version
        authority.configure_trust(context)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_hostname="localhost")
        self.received = b""

    def __enter__(self) -> TlsClient:
        wait_for(self.shake_hands)
        return self

    def __exit__(self, *_: object) -> None:
        self.wire.sock.close()
        turn()

    def shake_hands(self) -> bool:
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            self.flush()
            self.feed()
            return False
        self.flush()
        return True

    def flush(self) -> None:
        data = self._out.read()
        for at in range(0, len(data), self.step):
            self.wire.send(data[at : at + self.step])

    def feed(self, count: int = 1 << 20) -> None:
        try:
            data = self.wire.sock.recv(count)
        except BlockingIOError:
            return
        if data:
            self._in.write(data)
        else:
            self.ended = True

    def send(self, data: bytes) -> None:
        self.tls.write(data)
        self.flush()

    def receive(self, count: int = 1 << 20) -> bool:
        """Read what is there; whether the stream has ended."""
        self.feed(count)
        try:
            while not self.proper:
                data = self.tls.read(65536)
                self.received += data
                self.proper = not data
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.proper = True
        return self.ended

    def read_all(self, count: int = 1 << 20) -> bytes:
        wait_for(lambda: self.receive(count))
        return self.received


class TlsHarness(Harness):
    """Its clients come by TLS. Their end is that of the connection, as many clients have it: without close_notify."""

    def talk(self, *pieces: bytes, tcp: bool = False, methods: tuple[str, ...] = ()) -> list[Answer]:
        with TlsClient(self) as client:
            for piece in pieces:
                client.send(piece)
            client.wire.finish()
            return parse(client.read_all(), methods)
