"""`python -m pdb -p PID` on an idle worker."""

from __future__ import annotations

import subprocess
import sys

import pytest
from harness import PATIENCE


@pytest.mark.skipif(sys.version_info < (3, 14), reason="Python 3.14 can attach (PEP 768)")
@pytest.mark.parametrize("options", [(), ("--threads", "2")], ids=["greenlets", "threads"])
def test_it_looks_into_a_worker_which_serves_on(serve, options):
    server = serve(*options, workers=1).start()
    pid = server.get().pid
    words = [sys.executable, "-m", "pdb", "-p", str(pid), "-c", "p 'pid', __import__('os').getpid()", "-c", "q"]
    found = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE)
    assert f"('pid', {pid})" in found.stdout, (found, server.log_end())
    assert server.get().pid == pid
