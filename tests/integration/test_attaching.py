"""`python -m pdb -p PID` on an idle worker."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from harness import PATIENCE

CAP_SYS_PTRACE = 19  # capabilities(7)


def may_attach() -> bool:
    """Whether this process may attach to one that is no descendant of it (ptrace(2), ptrace_scope)."""
    try:
        scope = int(Path("/proc/sys/kernel/yama/ptrace_scope").read_text())
    except FileNotFoundError:
        scope = 0
    (effective,) = re.findall(r"^CapEff:\s*(\w+)", Path("/proc/self/status").read_text(), re.M)
    return scope == 0 or (scope < 3 and bool(int(effective, 16) >> CAP_SYS_PTRACE & 1))


@pytest.mark.skipif(not may_attach(), reason="the kernel lets a user attach to descendants only (Yama)")
@pytest.mark.skipif(sys.version_info < (3, 14), reason="Python 3.14 can attach (PEP 768)")
@pytest.mark.parametrize("options", [(), ("--threads", "2")], ids=["greenlets", "threads"])
def test_it_looks_into_a_worker_which_serves_on(serve, options):
    server = serve(*options, workers=1).start()
    pid = server.get().pid
    words = [sys.executable, "-m", "pdb", "-p", str(pid), "-c", "p 'pid', __import__('os').getpid()", "-c", "q"]
    found = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE)
    assert f"('pid', {pid})" in found.stdout, (found, server.log_end())
    assert server.get().pid == pid
