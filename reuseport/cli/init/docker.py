"""A Dockerfile. `compose` and `kubernetes` print what runs its image, and share what is said here of the container."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shlex
import sys
from urllib.parse import unquote, urlsplit

from reuseport.cli.init.container import account, address, has_socket, remark, words
from reuseport.cli.init.described import MARGIN, Described, one_line_only, quoted, sequence
from reuseport.version import __version__

RUN = "/run/reuseport"  # what holds the run directory


UNREACHED = """\
# Only unix sockets are bound: no port is exposed. Their directory must be a volume that the proxy mounts as well."""
SOCKET_TOO = """
# A unix socket is bound, too. Its directory must be a volume that the proxy mounts as well."""


def text(app: Described) -> str:
    variables = {"REUSEPORT_RUN_DIR": run_dir(app), **dict(app.variables())}
    environment = "\n".join(f"ENV {name}={_value(value)}" for name, value in variables.items())
    who, outside = account(app), address(app)
    port = f"EXPOSE {outside.port}{SOCKET_TOO if has_socket(app) else ''}" if outside else UNREACHED
    made = " \\\n    && ".join([*who.made(), f"install -d -o {who.uid} -g {who.gid} {RUN}"])
    return f"""\
FROM python:{sys.version_info.major}.{sys.version_info.minor}-slim

# The application's own user. Nothing here needs root, and the number is what `runAsNonRoot` looks at.
RUN {made}

{_install()}

WORKDIR {_value(_home(app))}
{_copied_secrets(app)}COPY . .
# Now, because the user may not write it, and each start would compile everything again.
RUN python -m compileall -q .

# The run directory is where `docker exec CONTAINER reuseport status` looks for the master.
{environment}
# The log goes to standard error; what the application prints must not wait in a buffer, either.
ENV PYTHONUNBUFFERED=1

USER {who.uid}:{who.gid}
{port}

# `docker stop` drains: requests and jobs are finished first. Docker kills after 10 s unless it is given more time
# (docker run --stop-timeout, stop_grace_period in compose.yaml).
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=10s --start-period={int(app.settings.boot_timeout + MARGIN)}s \\
    CMD ["reuseport", "status", "--check"]

# As an array: with a shell in between, the signal would go to the shell. The master is process 1, and buries every
# orphan in the container: no `--init` is needed.
{remark(app)}CMD {sequence(command(app))}

# A release is a new image, and so a new container. The other way is a directory of releases from outside:
#     docker run -v /srv/shop:/srv/shop -e REUSEPORT_CHDIR=/srv/shop/current ...
# and then, when `current` leads elsewhere, docker exec CONTAINER reuseport release, or docker kill -s HUP CONTAINER.
# Mount the directory that `current` lies in: a mounted link stays what it led to.
"""


def command(app: Described, *more: str) -> tuple[str, ...]:
    """What the container runs."""
    return ("reuseport", "serve", *words(app), *more)


def run_dir(app: Described) -> str:
    """A directory of its own in one that may be a mount, which belongs to somebody else."""
    return app.settings.run_dir if app.says("run_dir") else f"{RUN}/{app.name}"


def _home(app: Described) -> str:
    """Where the code lies in the image. A relative --chdir lies in it there as it does here."""
    here = os.path.join(app.settings.origin.cwd, "")
    absolute = app.says("chdir") and not os.path.join(app.settings.chdir, "").startswith(here)
    return app.settings.chdir if absolute else f"/srv/{app.name}"


def _copied_secrets(app: Described) -> str:
    """A warning of the files of --env-file that lie in the directory that is copied; "" where none does."""
    here, home = app.settings.origin.cwd, _home(app)
    said = [path.removeprefix("-") for path in app.settings.env_file]
    # A --chdir from outside has in the image what is copied from here.
    base = here if home == app.settings.chdir else app.settings.chdir
    copied = {os.path.relpath(os.path.join(base, path), here): path for path in said}
    copied = {name: path for name, path in copied.items() if name.partition("/")[0] != ".."}
    if not copied:
        return ""
    mounts = " ".join(
        "-v " + shlex.quote(f"./{name}:{path if os.path.isabs(path) else os.path.join(home, name)}:ro")
        for name, path in copied.items()
    )
    names = one_line_only(", ".join(copied), "a Dockerfile")
    return f"""\
# COPY would put {names} of --env-file into the image, and all who have the image can read that.
# Put each such file into .dockerignore, and mount it:
#     docker run {mounts} ...
"""


def _install() -> str:
    """What the directory that this runs in says about its dependencies."""
    before, requirement = _server()
    server = quoted(requirement)
    if os.path.exists("requirements.txt"):
        return f"""\
{before}# Before the code: a change of the code alone then installs nothing.
COPY requirements.txt /tmp/
RUN pip install --no-cache-dir {server} -r /tmp/requirements.txt"""
    return f"""\
{before}# Add what the application needs: there was no requirements.txt when this file was printed.
RUN pip install --no-cache-dir {server}"""


def _server() -> tuple[str, str]:
    """What is told to pip for this very reuseport, and what has to stand before that.

    pip writes down what was not installed from an index (packaging.python.org, "Recording the Direct URL Origin").
    """
    try:
        found = importlib.metadata.distribution("reuseport").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        found = None
    origin = json.loads(found) if found else {}
    url = str(origin.get("url", ""))
    if vcs := origin.get("vcs_info"):
        return "", f"reuseport @ {vcs['vcs']}+{url}@{vcs['commit_id']}"
    if not url.startswith("file:"):
        return "", f"reuseport @ {url}" if url else f"reuseport=={__version__}"
    wheel = f"reuseport-{__version__}-py3-none-any.whl"
    path = one_line_only(unquote(urlsplit(url).path), "a Dockerfile")
    before = f"""\
# The server: it came from a directory here, and from no package index. Make its wheel first, beside this file:
#     pip wheel --no-deps --wheel-dir . {path}
COPY {wheel} /tmp/
"""
    return before, f"/tmp/{wheel}"


def _value(value: str) -> str:
    """A value of ENV or WORKDIR, in which $ would begin a variable."""
    text = one_line_only(value, "a Dockerfile")
    if text and not set(text) & set(" \t\"'\\$"):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$") + '"'
