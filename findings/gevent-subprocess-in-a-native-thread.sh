#!/bin/sh
# gevent 26.9.0: behind monkey.patch_all() no program can be started from a native thread.
#
# A good guess: gevent's thread pool is for code that must not hold the loop up, and a program's end is awaited there as
# anywhere else.
# What happens: subprocess.run raises TypeError, "child watchers are only available on the default loop". In a greenlet of
# the main thread the same call works, and other greenlets go on meanwhile.
# Exit status: 0 while this is so.
set -eu
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
python3 -m venv "$home/venv"
"$home/venv/bin/pip" install --quiet --disable-pip-version-check gevent==26.9.0
"$home/venv/bin/python" - <<'PYTHON'
from gevent import monkey
monkey.patch_all()
import os, subprocess
import gevent

def run():
    try:
        return subprocess.run(["echo", "yes"], capture_output=True, check=True).stdout.decode().strip()
    except TypeError as error:
        return f"TypeError: {error}"

in_greenlet = gevent.spawn(run).get()
in_thread = gevent.get_hub().threadpool.apply(run)
print("in a greenlet:", in_greenlet)
print("in a native thread:", in_thread, flush=True)
os._exit(0 if in_greenlet == "yes" and "default loop" in in_thread else 1)
PYTHON
