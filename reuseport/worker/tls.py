"""TLS: a socket that decrypts, and a connection on it.

OpenSSL works on memory here, never on the socket. So whatever it wants to send while it reads (a key update, an
alert) waits in a buffer, and a read never waits for room. And all that was received is decrypted at once, into the
connection's `unread`: no complete record ever stays inside, where no event would tell of the request in it.

Nobody can hand TLS state over. So a connection stays where it is: a drain closes it behind its next response, or, when
no request has begun for some seconds, without one. To close it at once would meet a busy client's next request under
way. A part of a record is the beginning of a request: what is in it shows only when the rest has come.
"""

from __future__ import annotations

import _socket
import contextlib
import os
import socket
import ssl
from typing import TYPE_CHECKING, Any

from ..ipc.scoreboard import BYTES_OUT
from .body import BodyError
from .connection import FIRST, LAST_CALL, Connection
from .lingering import LINGER_IN_DRAIN
from .response import refusal
from .states import CLOSED, HEAD, LINGERING, SERVING, WAITING
from .stream import PIECE, Disconnected
from .wheel import TICK

if TYPE_CHECKING:
    from .engine import Engine

WRITE = 2
SLICE = 65536  # bytes encrypted at once
HEADER = 5  # bytes of a record's header
HANDSHAKE = "handshake"  # a connection's state until it is over


class TlsSocket:
    """Looks like a non-blocking socket, as far as connections use one; `recv` gives all there is.

    `send` takes plaintext only when the ciphertext of what it took before has left. `flush` sends the rest of that.
    """

    def __init__(self, sock: _socket.socket, context: ssl.SSLContext) -> None:
        self.raw = sock
        self._in = ssl.MemoryBIO()
        self._out = ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_side=True)
        self._left = memoryview(b"")  # ciphertext for which the kernel had no room
        self._header = b""  # of a record (RFC 8446 section 5.1) whose length has not come yet
        self._missing = 0  # bytes of the record whose beginning has come
        self._ended = False
        self.fileno = sock.fileno
        self.setsockopt = sock.setsockopt
        self.close = sock.close

    def feed(self, data: bytes) -> None:
        """Put in what was received already."""
        self._in.write(data)
        self._follow(data)

    def _follow(self, data: bytes) -> None:
        """See where records end: how much of one has come OpenSSL does not say."""
        at = self._missing
        while at < len(data):
            header = self._header + data[at : at + HEADER - len(self._header)]
            if len(header) < HEADER:
                self._header = header
                at = len(data)
            else:
                at += HEADER - len(self._header) + int.from_bytes(header[3:])
                self._header = b""
        self._missing = at - len(data)

    @property
    def in_record(self) -> bool:
        """Whether a part of a record has come, whose rest has not."""
        return self._missing > 0 or self._header != b""

    def receive(self) -> bool:
        """Take some ciphertext from the kernel; False at the end of the stream. Raises as recv does."""
        data = self.raw.recv(PIECE)
        if data:
            self.feed(data)
        return bool(data)

    def recv(self, count: int = 0) -> bytes:
        """All plaintext that can be had now, b"" when the client has finished. BlockingIOError if there is none yet.

        A stream that ends without close_notify ends like one with it: what is cut short shows in HTTP's own framing.
        """
        if self._ended:
            return b""
        self._ended = not self.receive()
        data = self.decrypted()
        if not data and not self._ended:
            raise BlockingIOError
        return data

    def decrypted(self) -> bytes:
        """The plaintext of all complete records. OSError (an SSLError) if the client breaks the protocol."""
        pieces = []
        try:
            while piece := self.tls.read(SLICE):
                pieces.append(piece)
            self._ended = True  # close_notify
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self._ended = True
        finally:
            if self._out.pending:
                self.flush()  # an alert, or the answer to a key update
        return b"".join(pieces)

    def send(self, data: bytes | memoryview) -> int:
        """As a socket's; the bytes of plaintext that were taken."""
        if not self.flush():
            raise BlockingIOError
        taken = self.tls.write(memoryview(data)[:SLICE]) if data else 0
        self.flush()
        return taken

    def flush(self) -> bool:
        """Send ciphertext; whether all has left. Raises as a socket's send does, but for want of room."""
        if self._out.pending:
            new = self._out.read()
            self._left = memoryview(bytes(self._left) + new) if self._left else memoryview(new)
        try:
            while self._left:
                self._left = self._left[self.raw.send(self._left) :]
        except BlockingIOError:
            return False
        return True

    def say_goodbye(self) -> bool:
        """Send close_notify, once; whether it, and all before it, has left."""
        # It waits for the client's then, which nobody needs; or the handshake is not over.
        with contextlib.suppress(ssl.SSLError, ValueError):
            self.tls.unwrap()
        return self.flush()

    def shutdown(self, how: int) -> None:
        if how != socket.SHUT_RD:
            self.say_goodbye()
        self.raw.shutdown(how)


class TlsConnection(Connection):
    """`data`: what was received already. The first request is looked for when the handshake is over."""

    __slots__ = ("_broken", "_silent")
    plain = False
    can_pass = False
    closes = True

    def __init__(
        self, engine: Engine, fd: int, peer: Any, template: dict[str, Any], context: ssl.SSLContext, data: bytes
    ) -> None:
        super().__init__(engine, fd, peer, template)
        self._sock = TlsSocket(self._sock, context)
        self._broken = False  # the client must not take the end for a proper one
        self._silent = True  # no byte of the handshake has come
        self.state = HANDSHAKE
        if data:
            self._begin_handshake()
            self._sock.feed(data)
            engine.loop.run_callback(self._shake_hands)

    def _readable(self) -> None:
        if self.state is HANDSHAKE:
            self._receive_handshake()
        else:
            super()._readable()
            self._see_whether_begun()
        self._reader.again()  # how much plaintext there was says nothing of what is left in the kernel

    def _resume(self) -> None:
        super()._resume()
        self._see_whether_begun()

    def ask_for_body(self) -> None:
        super().ask_for_body()
        if not self._sock.flush():
            self._flush_later()

    def _see_whether_begun(self) -> None:
        """A part of a record is a part of a head."""
        if self.state is WAITING and not self._parked and not self.unread and self._sock.in_record:
            self.state = HEAD
            self._set_deadline(self.engine.head_time())

    def _begin_handshake(self) -> None:
        """Its first byte has come: from now on it has as long as a request's head."""
        if self._silent:
            self._silent = False
            self._set_deadline(self.engine.head_time())

    def _receive_handshake(self) -> None:
        try:
            if self._sock.receive():
                self._begin_handshake()
                self._shake_hands()
            else:
                self.close()
        except BlockingIOError:
            return
        except OSError:
            self.close()

    def _shake_hands(self) -> None:
        if self.state is not HANDSHAKE:
            return
        tls = self._sock
        try:
            try:
                tls.tls.do_handshake()
            finally:
                if not tls.flush():
                    self._flush_later()
        except ssl.SSLWantReadError:
            return
        except OSError as error:
            self.engine.log("debug", f"no TLS with {self.remote_addr}: {getattr(error, 'reason', None) or error}")
            if getattr(error, "reason", "") == "HTTP_REQUEST":
                text = "this port speaks TLS: the address begins with https"
                with contextlib.suppress(OSError):
                    tls.raw.send(refusal(400, text, self.engine.date()))
                self._linger_raw()
            else:
                self.close()
            return
        self.template = {**self.template, **_described(tls.tls)}
        self.state = WAITING
        self._set_deadline(LAST_CALL if self.engine.draining else self.engine.silence)
        try:
            data = tls.decrypted()
        except OSError:
            self.close()
            return
        if data:
            self._take(data)
        self._see_whether_begun()

    def _flush_later(self) -> None:
        """No greenlet waits for room: the loop sends the rest."""
        if self._writer is None:
            self._writer = self.engine.loop.io(self._sock.fileno(), WRITE)
        self._writer.start(self._flush)

    def _flush(self) -> None:
        try:
            if not self._sock.flush():
                return
        except OSError:
            self.close()
            return
        self._writer.stop()
        if self.state is LINGERING:
            self._linger_raw()

    # In a request's greenlet.

    def read_into(self, view: memoryview) -> int:
        while not self.unread:
            try:
                self.unread = self._sock.recv()
            except BlockingIOError:
                self._await_body()
                continue
            except OSError as error:
                raise BodyError(400, f"the client is gone: {error.strerror or error}") from error
            except BaseException:
                self.abort()  # as in Stream
                raise
            if not self.unread:
                return 0
        return self.take_into(view)

    def send(self, data: bytes) -> None:
        sock = self._sock
        view = memoryview(data)
        if self._waiting:
            self._check_alone(self._writer)
        try:
            while True:
                if len(view) > SLICE:
                    # As for room, so that `request_done` and other writers see that a piece is under way.
                    self.engine.time_slice.check(self._await_room)
                try:
                    sent = sock.send(view)
                    self.board[BYTES_OUT] += sent
                    view = view[sent:]
                except BlockingIOError:
                    pass
                if not view and sock.flush():
                    return
                while not sock.flush():
                    self._await_room()
        except Disconnected:
            raise
        except OSError as error:
            raise Disconnected(f"the client is gone: {error.strerror or error}") from error

    def sendfile(self, fd: int, offset: int, count: int) -> int:
        data = os.pread(fd, min(count, SLICE), offset)
        if data:
            self.send(data)
        return len(data)

    def _reset_at_close(self) -> None:
        self._broken = True
        super()._reset_at_close()

    # The end.

    def request_done(self, keep_alive: bool, body_taken: bool = True) -> None:
        if not keep_alive and self.state is SERVING and not self._waiting:
            self.state = WAITING  # so that `close` waits until the kernel has room for close_notify
        super().request_done(keep_alive, body_taken)
        self._see_whether_begun()
        if self.engine.draining:
            self.stays()

    def stays(self) -> None:
        super().stays()
        if self.engine.pass_on is not None and (self.state is WAITING or self._silent):
            left = self.seconds_left()
            self._set_deadline(LAST_CALL if left is None else min(left or TICK, LAST_CALL))

    def expire(self) -> None:
        if self.state is WAITING and self.engine.draining:
            self._fresh = False  # its time is over
            self.close_if_idle()
            if self.state is WAITING:  # something has come
                self._set_deadline(LAST_CALL)
        else:
            super().expire()

    def _more_to_read(self) -> bool:
        try:
            return bool(getattr(self._sock, "raw", self._sock).recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def close_if_idle(self) -> None:
        """Close it, unless it has something of a request, decrypted or not. A new one has `FIRST` to begin."""
        if self._silent:
            self._set_deadline(FIRST)
        if self.state is not WAITING or self.unread or self._parked:
            return
        try:
            data = self._sock.recv()
        except BlockingIOError:
            self._see_whether_begun()
            if self.state is not WAITING:
                return
            if self._fresh:
                self._fresh = False
                self._set_deadline(FIRST)
            else:
                self.close()
        except OSError:
            self.close()
        else:
            if data:
                self.unread = data
                self._resume_later()
            else:
                self.close()

    def linger(self) -> None:
        if self.state is CLOSED:
            return
        self.unread = b""
        try:
            if not self._broken and not self._sock.say_goodbye():
                # The client is slow, and the end of its response is still here.
                self._begin_lingering(0.0)
                self._flush_later()
                self._set_deadline(self.engine.send_timeout or LINGER_IN_DRAIN)
                return
        except OSError:
            self.close()
            return
        self._linger_raw()

    def _linger_raw(self) -> None:
        """Everything was said: wait for the client's end, and do not even decrypt what it still sends."""
        if type(self._sock) is TlsSocket:
            self._sock = self._sock.raw
        super().linger()

    def close(self) -> None:
        # What is no TlsSocket any more has said it.
        if self.state not in (CLOSED, LINGERING, HANDSHAKE) and not self._broken and type(self._sock) is TlsSocket:
            try:
                if not self._sock.say_goodbye() and self.state is not SERVING:
                    self._begin_lingering(0.0)
                    self._flush_later()
                    self._set_deadline(self.engine.send_timeout or LINGER_IN_DRAIN)
                    return
            except OSError:
                pass
        super().close()


def _described(tls: ssl.SSLObject) -> dict[str, Any]:
    """What environ says of the connection, under the names that Apache's mod_ssl gave it."""
    cipher = tls.cipher()
    described: dict[str, Any] = {
        "wsgi.url_scheme": "https",
        "HTTPS": "on",
        "SSL_PROTOCOL": tls.version() or "",
        "SSL_CIPHER": cipher[0] if cipher else "",
        "SSL_CLIENT_VERIFY": "NONE",
    }
    certificate = tls.getpeercert(binary_form=True)
    if certificate:
        facts = tls.getpeercert() or {}
        described["SSL_CLIENT_VERIFY"] = "SUCCESS"
        described["SSL_CLIENT_CERT"] = ssl.DER_cert_to_PEM_cert(certificate)
        described["SSL_CLIENT_S_DN"] = _name(facts.get("subject", ()))
        described["SSL_CLIENT_I_DN"] = _name(facts.get("issuer", ()))
        described["SSL_CLIENT_M_SERIAL"] = facts.get("serialNumber", "")
        described["SSL_CLIENT_V_END"] = facts.get("notAfter", "")
    return described


_SHORT = {
    "commonName": "CN",
    "countryName": "C",
    "localityName": "L",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "stateOrProvinceName": "ST",
}


def _name(parts: Any) -> str:
    """A distinguished name as RFC 4514 writes it: the most specific part first, reserved characters escaped."""
    shown = []
    for part in reversed(parts):
        pairs = []
        for name, value in part:
            value = "".join("\\" + one if one in ',+"\\<>;=' else one for one in value)
            value = "\\" + value if value[:1] in ("#", " ") else value
            # PEP 3333: text of environ holds bytes as latin-1.
            pairs.append(f"{_SHORT.get(name, name)}={value}".encode().decode("latin-1"))
        shown.append("+".join(pairs))
    return ",".join(shown)
