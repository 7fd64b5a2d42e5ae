"""A scheduler, which may run only once: it beats until it is told to stop, and takes its time over the last beat."""

import signal
import time

from tasks import note

stopped = []
signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))

note("beats")
while not stopped:
    time.sleep(0.02)
time.sleep(1)
note("beat no more", signals=len(stopped))
