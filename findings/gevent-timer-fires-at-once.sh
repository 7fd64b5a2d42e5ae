#!/usr/bin/env bash
# gevent (26.9.0): a one-shot loop timer that is started again fires at once.
#
# A good guess: `timer = loop.timer(0.2)` waits 0.2 s after each `timer.start(callback)`. In fact libev keeps what is left
# of a timer's time when the timer fires or is stopped, and gevent's start() does not set the time again. After the timer
# has fired nothing is left. So a pause that uses one timer twice does not pause, and a loop that waits for a shortage to
# end (no file descriptors, a full pipe) uses a whole CPU from its second pause on.
#
# The remedy: a new timer for each wait, or a repeating one (loop.timer(0.2, 0.2)) that its callback stops.
#
# Exit status 0: seen as described. 1: the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check gevent==26.9.0 2>/dev/null
cat > "$folder/timer.py" <<'PYTHON'
import sys
import time

import gevent
from gevent.event import Event

timer = gevent.get_hub().loop.timer(0.2)


def wait():
    fired = Event()
    began = time.monotonic()
    timer.stop()
    timer.start(fired.set)
    fired.wait()
    return time.monotonic() - began


first, second = wait(), wait()
print(f"Python {sys.version.split()[0]}, gevent {gevent.__version__}")
print("expected: both waits take 0.2 s")
print(f"seen: {first:.3f} s, then {second:.3f} s")
sys.exit(0 if first > 0.1 and second < 0.1 else 1)
PYTHON
"$folder/venv/bin/python" "$folder/timer.py"
