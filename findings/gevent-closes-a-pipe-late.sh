#!/usr/bin/env bash
# gevent (26.9.0; since 25.8.1): os.close of a pipe returns before the descriptor is closed.
#
# A good guess: after os.close(fd) the descriptor is closed, as close(2) says. With gevent's patches and a hub, os.close
# leaves that to a watcher which runs after the loop's next event. A loop that waits for the end of this very pipe has no
# other event. So it waits until a timer or another descriptor wakes it.
#
# multiprocessing meets this with the start method spawn: Process.join(timeout) waits for the end of a pipe whose
# writing end the parent has closed by os.close. The child ends at once, and join still takes the whole timeout.
#
# Exit status 0: seen as described. 1: the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check gevent==26.9.0 2>/dev/null
cat > "$folder/late.py" <<'PYTHON'
import sys

from gevent import monkey

monkey.patch_all()
import os
import select
import time

import gevent

gevent.sleep(0)  # from now on there is a hub
reading, writing = os.pipe()
os.close(writing)
poll = select.poll()
poll.register(reading, select.POLLIN)
began = time.monotonic()
found = poll.poll(1500)
seconds = time.monotonic() - began
print(f"Python {sys.version.split()[0]}, gevent {gevent.__version__}")
print("expected: poll tells the end of the pipe within 0.1 s")
print(f"seen: {found} after {seconds:.1f} s")
sys.exit(0 if seconds > 1 else 1)
PYTHON
"$folder/venv/bin/python" "$folder/late.py"
