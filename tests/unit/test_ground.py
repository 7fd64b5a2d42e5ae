"""What a zygote is before it imports: another user, who must be able to read what it imports from."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from reuseport.worker import application, ground


def test_what_the_user_cannot_read_of_the_virtual_environment(tmp_path, monkeypatch):
    """Root sees that it is there. For the user nothing is, and each package would seem to be missing."""
    packages = tmp_path / "venv/lib/python3/site-packages"
    packages.mkdir(parents=True)
    hidden = False

    def become(uid: int, gid: int) -> None:
        nonlocal hidden
        hidden = True

    real = os.path.isdir
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(ground.user, "become", become)
    monkeypatch.setattr(ground.user, "rename", lambda environment, uid, said: None)
    monkeypatch.setattr(os.path, "isdir", lambda path: real(path) and not (hidden and str(packages) in str(path)))
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(packages))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    monkeypatch.setattr(sys, "path", [*sys.path, str(packages), str(tmp_path / "venv/not-there")])
    with pytest.raises(application.LoadError, match=f"--user: uid 12 cannot read {packages}, which it must import"):
        ground.become((12, 12), "/", {}, {})
    hidden = False
    monkeypatch.setattr(os, "access", lambda path, mode: True)
    ground.become((12, 12), "/", {}, {})



LATE = """
import time
from reuseport.worker import ground

def waits_for_nothing():
    ground.exit_after(0.01, "This takes too long.")
    while True:  # a signal just before a long wait would be handled after it
        time.sleep(0.01)

ground.C_CODE = 600
waits_for_nothing()
"""


def test_a_process_that_takes_too_long_tells_where_it_is():
    outcome = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True)
    assert outcome.returncode == 1
    assert outcome.stderr.startswith("This takes too long.\n") and "in waits_for_nothing" in outcome.stderr
