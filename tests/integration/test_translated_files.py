"""`reuseport translate` runs a real file, and `serve --check-config` is content with what comes out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CONFIG = """\
import multiprocessing
import ssl
import threading
from there import NAME  # from the working directory, as Gunicorn has it

print("what it prints is no part of the answer")
threading.Thread(target=threading.Event().wait).start()  # and does not hold it
wsgi_app = "shop:app"
workers = multiprocessing.cpu_count() * 2 + 1
worker_class = "gthread"
threads = 4
timeout = 120
proc_name = NAME
cert_reqs = ssl.CERT_REQUIRED
raw_env = ["DJANGO_SETTINGS_MODULE=shop.settings"]
statsd_host = "localhost:8125"
Workers = 7
unknown = object()

def post_fork(server, worker):
    pass
"""


def reuseport(directory: Path, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("REUSEPORT_", "GUNICORN"))}
    command = [sys.executable, "-m", "reuseport", *words]
    environ = {**plain, "PYTHONPATH": os.pathsep.join(sys.path), **environ}
    return subprocess.run(command, cwd=directory, env=environ, capture_output=True, text=True, timeout=60, check=False)


def test_what_comes_out_can_be_served(tmp_path: Path) -> None:
    (tmp_path / "there.py").write_text("NAME = 'shop'")
    (tmp_path / "gunicorn.conf.py").write_text(CONFIG)
    done = reuseport(tmp_path, "translate", GUNICORN_CMD_ARGS="--timeout 60")
    assert (done.returncode, done.stderr) == (0, "")
    assert "timeout = 60\n" in done.stdout and "threads = 4\n" in done.stdout
    assert "post_fork has another form: a function in the application that is @reuseport.on_start" in done.stdout
    (tmp_path / "out.toml").write_text(done.stdout)
    checked = reuseport(tmp_path, "serve", "-c", "out.toml", "--check-config")
    assert (checked.returncode, checked.stderr) == (0, "nothing in the configuration of shop is refused\n")
    typed = reuseport(tmp_path, "translate", "--", "gunicorn", "-c", "gunicorn.conf.py", "-w", "3", "other:app")
    assert 'app = "other:app"\n' in typed.stdout and "workers = 3\n" in typed.stdout


def test_a_file_that_cannot_be_run(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("workers = 3\nimport nowhere\n")
    done = reuseport(tmp_path, "translate", "bad.py")
    assert (done.returncode, done.stdout) == (1, "")
    assert "line 2, in <module>" in done.stderr
    assert done.stderr.endswith("reuseport: bad.py cannot be run: ModuleNotFoundError: No module named 'nowhere'\n")
    (tmp_path / "bad.py").write_text("import os; os._exit(3)")
    assert "bad.py cannot be run: it ended with status 3" in reuseport(tmp_path, "translate", "bad.py").stderr
    done = reuseport(tmp_path, "translate", "there.py")
    assert (done.returncode, done.stderr) == (1, "reuseport: there is no file there.py\n")
    assert reuseport(tmp_path, "translate", "-w", "4").returncode == 2
