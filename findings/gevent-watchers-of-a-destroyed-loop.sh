#!/usr/bin/env bash
# gevent 26.9.0 with libev, CPython 3.11: a new default loop counts the watchers of the one that was destroyed.
#
# A good guess: hub.destroy(destroy_loop=True) frees the loop, and the next hub begins with a loop without watchers.
# Seen: activecnt of the next default loop is the number of watchers that were active when the last one was destroyed.
# Nothing can stop them any more. So a loop that has nothing to wait for does not notice it: gevent raises no LoopExit
# where it would in a fresh process.
# The reason: the default loop of libev is one static structure, and ev_loop_destroy leaves its count as it is.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check gevent==26.9.0 greenlet==3.5.6 2>/dev/null
cat > "$folder/loop.py" <<'PYTHON'
import gevent

first = gevent.get_hub()
timers = [first.loop.timer(60) for _ in range(3)]
for timer in timers:
    timer.start(print)
first.destroy(destroy_loop=True)
second = gevent.get_hub()
print("another loop:", second.loop is not first.loop, "active:", second.loop.activecnt)
PYTHON
seen=$("$folder/venv/bin/python" "$folder/loop.py" 2>/dev/null)
echo "$seen"
[ "$seen" = "another loop: True active: 3" ]
