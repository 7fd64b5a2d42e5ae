#!/bin/sh
# Dramatiq: a worker that shuts down goes on fetching messages, which wait for its longest running message.
#
# Versions: dramatiq 2.2.1 on Python 3.11 (2026-11).
# A good guess: after SIGTERM a worker only finishes what runs, and leaves new messages to other workers.
# Seen: Worker.stop() stops the threads that work before the threads that fetch. Until the running message has ended, the
# latter take up to `prefetch` (two for each thread) new messages from the broker. They go back to the queue when the
# running message has ended, which may be hours later. Other workers of the queue do not see them until then.
# Way out: one thread for each process, and dramatiq_queue_prefetch=1: then a busy process fetches nothing.
#
# Exits with 0 if this is still so, with 1 if it is not.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check dramatiq==2.2.1
cat > "$dir/try.py" <<'PY'
import sys
import threading
import time

import dramatiq
from dramatiq.brokers.stub import StubBroker

broker = StubBroker()
dramatiq.set_broker(broker)
running, end, done = threading.Event(), threading.Event(), threading.Event()


@dramatiq.actor
def long():
    running.set()
    end.wait()


@dramatiq.actor
def short():
    done.set()


worker = dramatiq.Worker(broker, worker_threads=1, worker_timeout=100)
worker.start()
long.send()
running.wait(10)
stopping = threading.Thread(target=worker.stop)
stopping.start()
while not all(thread.running is False for thread in worker.workers):
    time.sleep(0.01)
short.send()
deadline = time.monotonic() + 5
while broker.queues["default"].qsize() and time.monotonic() < deadline:
    time.sleep(0.01)
fetched = not broker.queues["default"].qsize()
print(f"dramatiq {dramatiq.__version__}: the stopping worker has fetched the new message: {fetched}; done: {done.is_set()}")
end.set()
stopping.join(10)
sys.exit(0 if fetched and not done.is_set() else 1)
PY
"$dir/venv/bin/python" "$dir/try.py"
