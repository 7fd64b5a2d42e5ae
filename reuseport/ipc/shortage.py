"""Errors of system calls that mean a shortage: the same call succeeds later, when the system has room again."""

from __future__ import annotations

import errno

# No descriptors are left in the process or in the system (open(2)).
DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE})

# Also memory, processes (EAGAIN of fork(2)), socket buffers, and descriptors in flight (unix(7)).
SHORTAGE = DESCRIPTORS | {errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN, errno.ETOOMANYREFS}
