"""Signals that make a process write down what it is at. Real-time ones: the application may use USR1 and USR2.

STACK_SIGNAL has a handler in C, which writes the Python lines that every thread of a worker is at, whatever the
interpreter is doing. A process that is not ready yet writes them to standard error, and ends: it took too long.

The other two are for whoever asks, and disturb nobody: a system call that waits goes on where it can (SA_RESTART,
signal(7)). SNAPSHOT_SIGNAL has a handler in Python, which knows of greenlets, requests and jobs, but runs only when the
interpreter can. LINES_SIGNAL has one in C again, for when it cannot. Whoever sends them looks first whether they are
caught (SigCgt, proc_pid_status(5)): to a process that is not ready yet, or has no such handler, they would be the end.
"""

import signal

STACK_SIGNAL = signal.SIGRTMIN + 5
SNAPSHOT_SIGNAL = signal.SIGRTMIN + 7  # the one between them is a deadline's (reuseport/deadlines.py)
LINES_SIGNAL = signal.SIGRTMIN + 8

BODY = "body"  # in a snapshot, the kind of a request whose body is still being buffered
