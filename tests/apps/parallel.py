"""What applications do with multiprocessing: each function uses one part of it and returns what a child process has.

`context` is what `multiprocessing.get_context` returns.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor


def double(number: int) -> int:
    return 2 * number


def of_this_process() -> dict:
    """What a child process has of the server. It imports nothing of it to find out."""
    monkey = sys.modules.get("gevent.monkey")
    main = sys.modules["__main__"]
    return {
        "pid": os.getpid(),
        "patched": bool(monkey and monkey.saved),
        "server": sorted({"gevent", "reuseport.zygote", "reuseport.worker.main"} & set(sys.modules)),
        "main": os.path.basename(getattr(main, "__file__", None) or ""),
    }


def put(queue) -> None:
    queue.put(of_this_process())


def executor(context) -> dict:
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        assert list(pool.map(double, range(5))) == [0, 2, 4, 6, 8]
        return pool.submit(of_this_process).result()


def pool(context) -> dict:
    with context.Pool(2) as pool:
        assert pool.map(double, range(5)) == [0, 2, 4, 6, 8]
        return pool.apply(of_this_process)


def manager(context) -> dict:
    with context.Manager() as manager:
        queue, kept = manager.Queue(), manager.dict()
        process = context.Process(target=put, args=(queue,))
        process.start()
        kept["found"] = queue.get()
        process.join()
        return kept["found"]


def queue(context) -> dict:
    queue = context.Queue()
    process = context.Process(target=put, args=(queue,))
    process.start()
    found = queue.get()
    process.join(60)
    assert process.exitcode == 0
    return found


def command(context) -> dict:
    """`subprocess`, which knows no start methods."""
    code = "import json, parallel; print(json.dumps(parallel.of_this_process()))"
    path = os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])
    output = subprocess.check_output([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path})
    return json.loads(output)


def use(name: str, method: str) -> dict:
    """Call one of these by its name, with a start method."""
    return globals()[name](multiprocessing.get_context(method))
