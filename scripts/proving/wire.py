"""A response of HTTP/1.1, read byte by byte and with suspicion. Pure: bytes go in, nothing is read from anywhere.

Written for the clients instead of using http.client, because the accounting needs to know exactly how an answer broke
off: before its first byte, within its head, or within its body.
"""

from __future__ import annotations


class Malformed(Exception):
    """The server said something that is not HTTP."""


class Response:
    """One response. Feed it what arrives; it is `complete` when its body is, and `rest` is what came after."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = bytearray()
        self.complete = False
        self.started = False
        self.rest = b""
        self._buffer = bytearray()
        self._left: int | None = None  # of the body or of the chunk; None: until the connection ends
        self._state = "head"

    def feed(self, data: bytes) -> None:
        self.started = self.started or bool(data)
        self._buffer += data
        while not self.complete and self._step():
            pass
        if self.complete:
            self.rest = bytes(self._buffer)

    def end(self) -> None:
        """The connection ended: which completes a response without a length, and no other."""
        if self._state == "body" and self._left is None:
            self.complete = True

    @property
    def broken(self) -> str:
        """How it broke off, if the connection ended here."""
        if not self.started:
            return "closed before any answer"
        return "closed within the head" if self._state == "head" else "truncated"

    @property
    def closes(self) -> bool:
        """Whether the connection ends with this response."""
        framed = self._left is not None or self._state in ("chunk", "chunk data", "trailer")
        return "close" in self.headers.get("connection", "").lower() or not framed

    def number(self, header: str) -> int:
        """An integer header, or -1."""
        value = self.headers.get(header, "")
        return int(value) if value.isdigit() else -1

    def _step(self) -> bool:
        """Take one thing out of the buffer; False if it is not there yet."""
        if self._state == "head":
            return self._head()
        if self._state == "body":
            if self._left is None:
                self.body += self._buffer
                self._buffer.clear()
                return False
            self._take_body()
            self.complete = self._left == 0
            return False
        if self._state == "chunk data":
            self._take_body()
            if self._left or len(self._buffer) < 2:
                return False
            if self._buffer[:2] != b"\r\n":
                raise Malformed("a chunk longer than it said")
            del self._buffer[:2]
            self._state = "chunk"
            return True
        line = self._line()
        if line is None:
            return False
        if self._state == "trailer":
            self.complete = not line
            return bool(line)
        try:
            self._left = int(line.split(b";")[0], 16)
        except ValueError:
            raise Malformed(f"not a chunk's size: {line[:40]!r}") from None
        self._state = "chunk data" if self._left else "trailer"
        return True

    def _head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        first, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
        del self._buffer[: end + 4]
        version, _, status = first.partition(" ")
        if not version.startswith("HTTP/1.") or not status[:3].isdigit():
            raise Malformed(f"not a status line: {first[:60]!r}")
        self.status = int(status[:3])
        if self.status < 200:  # 100 Continue and its like announce the real one
            return True
        for line in lines:
            name, _, value = line.partition(":")
            self.headers[name.lower()] = value.strip()
        if "chunked" in self.headers.get("transfer-encoding", "").lower():
            self._state = "chunk"
        else:
            self._state = "body"
            length = self.headers.get("content-length")
            if length is not None and not length.isdigit():
                raise Malformed(f"not a length: {length[:40]!r}")
            self._left = None if length is None else int(length)
            self.complete = self._left == 0
        return True

    def _take_body(self) -> None:
        assert self._left is not None
        piece = self._buffer[: self._left]
        self.body += piece
        self._left -= len(piece)
        del self._buffer[: len(piece)]

    def _line(self) -> bytes | None:
        end = self._buffer.find(b"\r\n")
        if end < 0:
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line
