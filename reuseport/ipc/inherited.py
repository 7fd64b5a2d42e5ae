"""What passes through an exec, agreed between the processes before and after it, which may be of different versions."""

import signal

ZYGOTE_VARIABLE = "REUSEPORT_ZYGOTE"  # JSON: where the master's files lie, and whose zygote this is
STDOUT_COPY, STDERR_COPY = 3, 4  # the streams that everybody shares; a zygote's 1 and 2 are its boot output at first
RUN_DIR = 5  # the run directory (`RunDir.lend`)

# JSON: "state" is a descriptor of what a master leaves to the one that it becomes. With "answer", another descriptor,
# this is only a trial: say there, in JSON, whether that state could be gone on from.
UPGRADE_VARIABLE = "REUSEPORT_UPGRADE"

# What the master listens to. Blocked until its handlers stand: a HUP before that would end it.
SIGNALS = (
    signal.SIGHUP,
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGCHLD,
)
