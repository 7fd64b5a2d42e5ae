"""`reuseport.serve(app, ...)`: the server inside a plain `python server.py`.

The process that calls it is replaced in place by the master (exec, same pid), since a master must have neither gevent
nor the application in it. Each generation's zygote then patches, runs the same script again up to this very call, and
finds the application in its argument. So `kill -HUP` of a plain script brings its new code too.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

from reuseport import options, startup
from reuseport.ipc import standard
from reuseport.ipc.inherited import SIGNALS, UPGRADE_VARIABLE
from reuseport.options import Settings

VARIABLE = "REUSEPORT_EMBEDDED"


class EmbeddingError(RuntimeError):
    """`serve` was called where a server cannot be started from; the message says what would do."""


def serve(app: str | Callable[..., Any], **keywords: Any) -> NoReturn:
    """Serve `app` until the process is stopped; never returns.

    `app` is a WSGI callable, or a string as for the command line ("module:app"). The keywords are the options of
    `reuseport serve` with underscores: bind="127.0.0.1:8000", workers=4, warmup=["/"], … in seconds and bytes.
    Raises OptionError for an option that does not exist or cannot have that value, and EmbeddingError where the
    caller is no script that could be run again: at a prompt, from standard input or `-c`, in another thread, or in a
    child process of multiprocessing.
    """
    _refuse_children_of_multiprocessing(app)
    _inside_a_generation(app, keywords)
    settings = options.from_keywords(app if isinstance(app, str) else None, **keywords)
    if threading.current_thread() is not threading.main_thread():
        raise EmbeddingError("reuseport.serve replaces the process, so only the main thread can call it")
    extra: dict[str, Any] = {} if isinstance(app, str) else {"script": _script()}
    extra["flags"] = [f for f in subprocess._args_from_interpreter_flags() if f != "-P"]
    os.environ[VARIABLE] = json.dumps({"settings": settings.to_json(), "extra": extra})
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # closed when the script was started
            stream.flush()
    # An exec resets handlers: a HUP that comes before the master's own stand would end it.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    os.execve(
        sys.executable,
        [sys.executable, "-P", *extra["flags"], "-m", "reuseport.embed"],
        startup.environment(startup.recovered(os.environ)),
    )


def _refuse_children_of_multiprocessing(app: Any) -> None:
    """EmbeddingError in a child process of multiprocessing, before that child replaces itself by another master.

    A child made by spawn or forkserver imports the parent's script again, as `__mp_main__` ("Safe importing of main
    module" in Python's documentation of multiprocessing). billiard and loky use the same name.
    """
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_globals.get("__name__") == "__mp_main__" and frame.f_code.co_name == "<module>":
            raise EmbeddingError(
                f"{frame.f_code.co_filename}, line {frame.f_lineno}: a child process of multiprocessing imports this "
                'script again, and so calls reuseport.serve. Put the call below `if __name__ == "__main__":`'
            )
    multiprocessing = sys.modules.get("multiprocessing")
    if multiprocessing is not None and multiprocessing.parent_process() is not None and not isinstance(app, str):
        raise EmbeddingError(
            "reuseport.serve(callable) runs the calling script again for each release, and that script would start "
            'this child process again. Call it in the script\'s own process, or pass the application as "module:app"'
        )


def _inside_a_generation(app: Any, keywords: dict[str, Any]) -> None:
    """In a zygote, or in a worker that imports for itself, go on as that; never returns then."""
    zygote_module = sys.modules.get("reuseport.zygote")
    if zygote_module is None:
        return
    zygote = zygote_module.Zygote.current
    if zygote is not None:
        workers = options.from_keywords(None, **keywords).workers if "workers" in keywords else None
        zygote_module.live(zygote.captured(app, workers))
    if sys.modules["reuseport.worker.forked"].is_child():
        raise EmbeddingError("reuseport.serve was called in a process that the application has forked from a server's")
    worker_module = sys.modules["reuseport.worker.main"]
    if worker_module.Worker.current is not None:
        if worker_module.Worker.current.engine is not None:
            raise EmbeddingError("reuseport.serve was called by an application that is being served already")
        worker_module.captured(worker_module.Worker.current, app)


def _script() -> dict[str, Any]:
    """How to run the caller again. EmbeddingError where that is not possible."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name != "__main__":  # that is the __main__.py of a directory
        module = spec.name.removesuffix(".__main__")
        return {"module": module, "argv": sys.argv}
    path = getattr(main, "__file__", None)
    if not path or not os.path.isfile(path):
        raise EmbeddingError(
            "reuseport.serve(callable) runs the calling script again for each release, and there is none: not at a "
            'prompt, from standard input or with -c. Put it into a file, or pass the application as "module:app"'
        )
    return {"path": os.path.join(options.working_directory(os.environ), path), "argv": sys.argv}


def main() -> int:
    """The master that `serve` has become."""
    standard.fill()
    startup.begin_anew()
    if problem := startup.unfit_for_a_master():
        sys.stderr.write(f"reuseport: {problem}\n")
        return 1
    if UPGRADE_VARIABLE in os.environ:
        from reuseport.master.entrance import resume

        return resume()
    said = json.loads(os.environ.pop(VARIABLE))
    settings = Settings.from_json(said["settings"])
    problems = options.check(settings, needs_app="script" not in said["extra"])
    for line in (*settings.remarks, *options.overlooked(settings), *problems):
        sys.stderr.write(f"reuseport: {line}\n")
    if problems:
        return 1
    from reuseport.master.entrance import run

    return run(settings, said["extra"])


if __name__ == "__main__":
    sys.exit(main())
