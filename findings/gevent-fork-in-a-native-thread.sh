#!/usr/bin/env bash
# gevent 26.9.0, greenlet 3.5.6, CPython 3.11: the patched os.fork in a native thread forks, and raises in the parent.
#
# A good guess: os.fork either returns twice, in the parent and in the child, or raises and has made no process.
# Seen: in a native thread of gevent's pool the parent gets TypeError, after the child has been made. The child goes on
# and exits with its own status. So code that tries again after the error makes a second child.
# The reason: in the parent, gevent starts a child watcher behind the fork, and only the main thread's loop has those.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check gevent==26.9.0 greenlet==3.5.6 2>/dev/null
cat > "$folder/fork.py" <<'PYTHON'
from gevent import monkey

monkey.patch_all()
import os

import gevent

reading, writing = os.pipe()


def fork():
    try:
        pid = os.fork()
    except TypeError as error:
        return f"parent: TypeError: {error}"
    if pid == 0:
        os.write(writing, b"child: lives\n")
        os._exit(0)
    return "parent: has a pid"


print(gevent.get_hub().threadpool.apply(fork))
print(os.read(reading, 100).decode(), end="")
PYTHON
seen=$("$folder/venv/bin/python" "$folder/fork.py" 2>/dev/null)
echo "$seen"
[ "$seen" = "parent: TypeError: child watchers are only available on the default loop
child: lives" ]
