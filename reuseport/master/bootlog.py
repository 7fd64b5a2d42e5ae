"""What a generation prints until it is ready.

It goes to a file, not to a pipe into the master, whose death would break it. The master follows the file into its own
log while the boot lasts, and shows the end of it to whoever asked for a release that failed.
"""

from __future__ import annotations

import contextlib
import os

NEWS = 1 << 20  # bytes of it that are copied at once
TAIL = 65536  # bytes of it that an asker is shown


class BootLog:
    def __init__(self, path: str) -> None:
        self.path = path
        self._offset = 0
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    def open(self) -> int:
        """A descriptor to print to."""
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def news(self) -> bytes:
        """What has been printed since the last call."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self._offset)
                data = file.read(NEWS)
        except FileNotFoundError:
            return b""
        self._offset += len(data)
        return data

    def tail(self) -> str:
        """The end of what has been printed."""
        try:
            with open(self.path, "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
                return file.read().decode(errors="replace")
        except FileNotFoundError:
            return ""

    def remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
