#!/bin/sh
# sentry-sdk 2.75.0: a forked child holds its first event if the parent has sent one.
#
# A good guess: the SDK notices the fork, starts its thread again, and sends the event.
# What happens: it starts the thread, but the queue's condition still lists the parent's waiting thread. The first put
# wakes that one, which does not exist in the child. The event is sent with the next event, or at a flush.
# Exit status: 0 while this is so.
set -eu
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
python3 -m venv "$home/venv"
"$home/venv/bin/pip" install --quiet --disable-pip-version-check sentry-sdk==2.75.0
"$home/venv/bin/python" - <<'PYTHON'
import os, sys, threading, time
import sentry_sdk
from sentry_sdk.transport import HttpTransport

sent, wrote = os.pipe()  # what arrives, from every process

class Transport(HttpTransport):
    def _send_request(self, body, headers, *more, **named):
        os.write(wrote, b"%d\n" % os.getpid())

sentry_sdk.init(dsn="http://key@127.0.0.1:9/1", transport=Transport, default_integrations=False)
sentry_sdk.capture_message("parent")
sentry_sdk.flush(5)
assert os.read(sent, 100) == b"%d\n" % os.getpid()
while not any("sentry" in thread.name for thread in threading.enumerate()):
    time.sleep(0.01)
time.sleep(0.5)  # the thread waits for its next event
child = os.fork()
if not child:
    os.set_blocking(sent, False)
    def arrived():
        try:
            return os.read(sent, 100).count(b"\n")
        except BlockingIOError:
            return 0
    sentry_sdk.capture_message("first")
    time.sleep(3)
    first = arrived()
    sentry_sdk.capture_message("second")
    time.sleep(3)
    print("events sent 3 s after the child's first:", first, "and 3 s after its second:", arrived())
    sys.stdout.flush()
    os._exit(0 if first == 0 else 1)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
sys.stdout.flush()
os._exit(status)
PYTHON
