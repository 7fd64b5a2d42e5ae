"""What an application registers with the server.

Outside a server these do nothing but remember the function, so that tests and shells can import the application.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[[], Any])

start_hooks: list[Callable[[], Any]] = []


def on_start(function: F) -> F:
    """Decorator: call the function, without arguments, in each worker before it is ready.

    The place for what must not be shared by a fork: connection pools, background greenlets, caches to be warmed. The
    functions run in the order of their registration. An exception fails the release.
    """
    start_hooks.append(function)
    return function
