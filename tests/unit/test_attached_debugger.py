"""The debugger that attaches to a process gets a socket that waits without gevent."""

from __future__ import annotations

import socket
import sys
from types import ModuleType

import pytest

from reuseport.worker import debugger


def test_pdb_is_changed_when_it_is_imported(monkeypatch):
    changed: list[ModuleType] = []
    monkeypatch.setattr(debugger, "_change", changed.append)
    monkeypatch.setattr(sys, "meta_path", [debugger._Finder(), *sys.meta_path])
    monkeypatch.delitem(sys.modules, "pdb", raising=False)
    import pdb

    assert changed == [pdb]
    assert pdb.__spec__ is not None and pdb.__spec__.loader is pdb.__loader__
    assert not isinstance(pdb.__loader__, debugger._Changing)
    assert not any(isinstance(one, debugger._Finder) for one in sys.meta_path)
    assert pdb.Pdb


def test_its_socket_connects_as_the_real_one():
    plain = debugger._PlainSocket("socket")
    assert plain.AF_INET is socket.AF_INET
    with socket.create_server(("127.0.0.1", 0)) as server:
        with plain.create_connection(("localhost", server.getsockname()[1])) as client:
            client.sendall(b"x")
            with server.accept()[0] as accepted:
                assert accepted.recv(1) == b"x"
        port = server.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        plain.create_connection(("127.0.0.1", port))
