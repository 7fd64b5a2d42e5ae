"""What an application registers with the server.

Outside a server these do nothing but remember the function, so that tests and shells can import the application.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from reuseport import values

F = TypeVar("F", bound=Callable[[], Any])
G = TypeVar("G", bound=Callable[[int], Any])

start_hooks: list[Callable[[], Any]] = []
drain_hooks: list[Callable[[], Any]] = []
exit_hooks: list[Callable[[int], Any]] = []
# This worker accepts nothing new, and leaves when its requests and jobs have ended. In a job's process: its generation
# does.
draining = False


def on_start(function: F) -> F:
    """Decorator: call the function, without arguments, in each worker before it is ready, and in each job's process
    before the job.

    The place for what must not be shared by a fork: connection pools, background greenlets, caches to be warmed. The
    functions run in the order of their registration. An exception fails the release. TypeError for what cannot be
    called.
    """
    values.function(function, "what reuseport.on_start registers")
    start_hooks.append(function)
    return function


def on_drain(function: F) -> F:
    """Decorator: call the function, without arguments and in a greenlet of its own, when this worker begins to drain.

    The place to end what would never end by itself, such as a stream of events; `reuseport.draining` says the same to
    who would rather ask, and also in the process of a job, where no such function is called. An exception is logged,
    and changes nothing about the drain. TypeError for what cannot be called.
    """
    values.function(function, "what reuseport.on_drain registers")
    drain_hooks.append(function)
    return function


def on_child_exit(function: G) -> G:
    """Decorator: call the function with the pid of each process of the application that has ended: a worker, a job's
    process or a zygote, of any generation, and however it ended.

    One worker that serves calls it, in a greenlet of its own, soon after the exit. The pid may be another process's by
    then. A call is lost if that worker ends before it, or if the master dies; so clear up at a start, too. An
    exception is logged. TypeError for what cannot be called.
    """
    values.function(function, "what reuseport.on_child_exit registers")
    exit_hooks.append(function)
    return function
