"""What a generation prints until it is ready.

It goes to a file, not to a pipe into the master, whose death would break it. The master follows the file into its own
log while the boot lasts, and shows the end of it to whoever asked for a release that failed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any

from reuseport.core.model import BOOTING, ENDING, Cluster
from reuseport.ipc.logline import LOGGED
from reuseport.ipc.rundir import RunDir
from reuseport.ipc.shortage import SHORTAGE
from reuseport.master import lending, reserve
from reuseport.master.loop import Loop

FOLLOW = 0.1  # seconds between two looks at what a booting generation prints
NEWS = 1 << 20  # bytes of it that are copied at once
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
TAIL = 65536  # bytes of it that an asker is shown


class BootLog:
    def __init__(self, path: str, offset: int = 0) -> None:
        self.path = path
        self.offset = offset  # bytes that have been copied

    def open(self) -> tuple[int, int]:
        """Two descriptors to print to: standard output and error.

        The second one is opened by another name of the file, which then is removed. So a process can tell through which
        of the two its application has opened /dev/stdout or /dev/stderr (`ipc/streams.py`).
        """
        output = os.open(self.path, os.O_CREAT | _FLAGS, 0o600)
        name = f"{self.path}.errors"
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)  # a master died between the next two lines
            try:
                os.link(self.path, name)
            except OSError:  # a file system without hard links
                return output, fcntl.fcntl(output, fcntl.F_DUPFD_CLOEXEC, 5)
            try:
                return output, os.open(name, _FLAGS)
            finally:
                os.unlink(name)
        except OSError:
            os.close(output)
            raise

    def news(self, rest: bool) -> bytes:
        """The lines since the last call that are not in the log yet; with the `rest`, also one that has not ended yet.

        Without a descriptor to read them by they come with a later call.
        """
        data = _read(self.path, NEWS, self.offset)
        if not rest and len(data) < NEWS:
            data = data[: data.rfind(b"\n") + 1]
        self.offset += len(data)
        if LOGGED in data:
            lines = [line.partition(LOGGED) for line in data.splitlines(True)]
            # What comes before the mark is of the application, which has not ended its line.
            data = b"".join(text + b"\n" if mark and text else text for text, mark, _ in lines)
        return data

    def tail(self) -> str:
        """The end of what has been printed."""
        return _read(self.path, TAIL, -TAIL).replace(LOGGED, b"").decode(errors="replace")

    def remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)


def _read(path: str, size: int, offset: int) -> bytes:
    """b"" where there is no file, or no descriptor for it: nobody is refused an answer for that."""
    try:
        return reserve.read(path, size, offset)
    except FileNotFoundError:
        return b""
    except OSError as error:
        if error.errno not in SHORTAGE:
            raise
        return b""


class BootLogs:
    """Those of all generations that live. `copy(generation, data)` gets what they print, for the master's own log."""

    def __init__(
        self, run_dir: RunDir, loop: Loop, cluster: Callable[[], Cluster], copy: Callable[[int, bytes], None]
    ) -> None:
        self._run_dir = run_dir
        self._loop = loop
        self._cluster = cluster
        self._copy = copy
        self._by_generation: dict[int, BootLog] = {}
        self._following = False

    def clear(self) -> None:
        """Remove what an earlier master has left: who has survived it prints elsewhere by now."""
        for path in Path(self._run_dir.base).glob("boot-*.log*"):
            path.unlink(missing_ok=True)

    def begin(self, generation: int) -> BootLog:
        """The generation's, followed for as long as it boots."""
        self._forget_all_but(self._cluster().generations)
        self.copy_news()
        # A zygote that is started again gets a new one: what the first has printed is over.
        boot_log = self._by_generation[generation] = BootLog(self._run_dir.boot_log(generation))
        boot_log.remove()
        if not self._following:
            self._following = True
            self._loop.later(FOLLOW, self._follow)
        return boot_log

    def estate(self, lend: Callable[[int], int]) -> dict[str, Any]:
        """What the master goes on with behind an exec: how far each has been copied."""
        return {"offsets": {number: one.offset for number, one in self._by_generation.items()}}

    def inherit(self, left: Mapping[str, Any]) -> None:
        for number, offset in left["offsets"].items():
            self._by_generation[int(number)] = BootLog(self._run_dir.boot_log(int(number)), offset)
        self._follow()

    def tail(self, generation: int) -> str:
        """The end of what a generation has printed; "" where there is nothing."""
        boot_log = self._by_generation.get(generation)
        return boot_log.tail() if boot_log else ""

    def refusal(self, generation: int) -> str:
        """Why the interpreter of a generation cannot run the server's code, if that is what it has said last; or ""."""
        return lending.refusal(self.tail(generation))

    def copy_news(self, rest: bool = True) -> None:
        for generation, boot_log in self._by_generation.items():
            if news := boot_log.news(rest):
                self._copy(generation, news)

    def remove(self) -> None:
        self._forget_all_but(())

    def _forget_all_but(self, living: Container[int]) -> None:
        for number in [n for n in self._by_generation if n not in living]:
            self._by_generation.pop(number).remove()

    def _follow(self) -> None:
        self._following = any(
            g.state in BOOTING or g.state == ENDING or (g.zygote and not g.zygote.loaded)
            for g in self._cluster().generations.values()
        )
        self.copy_news(rest=not self._following)
        if self._following:
            self._loop.later(FOLLOW, self._follow)
