"""The signal that makes a worker write down what every one of its threads is doing, in Python lines.

A process that is not ready yet writes it to standard error, and ends: it took too long.

A real-time signal: the application may have uses of its own for USR1 and USR2.
"""

import signal

STACK_SIGNAL = signal.SIGRTMIN + 5
