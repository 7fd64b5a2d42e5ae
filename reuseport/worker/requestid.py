"""A request's id: taken from the client, or made, and given to the application, the logs and the client.

It is what joins a line of a proxy's log, one of ours and one of the application's. A client may say anything there, so
only what is short and plain counts; anything else is as if there were none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any
from uuid import uuid4

from .response import Response

KEY = "reuseport.request_id"
PLAIN = re.compile(r"[A-Za-z0-9._~:/+=@$-]{1,128}")


def with_request_id(base: type[Response], header: str, make: bool) -> type[Response]:
    """A response class that deals with ids. `make`: one is made where the client has given none that counts."""
    key = "HTTP_" + header.upper().replace("-", "_")
    lower = header.lower()

    class Identified(base):  # type: ignore[misc, valid-type]
        __slots__ = ("request_id",)

        def __init__(self, connection: Any, environ: dict[str, Any], keep_alive: bool, body: Any) -> None:
            super().__init__(connection, environ, keep_alive, body)
            said = environ.get(key)
            if said is None or not PLAIN.fullmatch(said):
                said = uuid4().hex if make else None
            environ[KEY] = self.request_id = said

        def start_response(
            self, status: str, headers: Iterable[tuple[str, str]], exc_info: Any = None, /
        ) -> Callable[[bytes], None]:
            headers = list(headers)
            write = super().start_response(status, headers, exc_info)
            if self.request_id is not None and all(name.lower() != lower for name, _ in headers):
                self._lines.append(f"{header}: {self.request_id}\r\n".encode())
            return write

    return Identified
