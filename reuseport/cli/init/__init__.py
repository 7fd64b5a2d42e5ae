"""`reuseport init TARGET`: print a file that runs this application elsewhere, each line that matters with its reason.

What is said behind the target is said as to `serve`, and goes into the file, or decides what is in it. A target is a
module here with one function, `text(app)`; what they share is in `described`.
"""

from __future__ import annotations

import os
import pwd
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from reuseport.cli.init import compose, docker, grafana, kubernetes, logrotate, nginx, prometheus, static, systemd
from reuseport.cli.init.described import Described
from reuseport.options import OPTIONS, OptionError, load, working_directory
from reuseport.options.arguments import did_you_mean, one_line
from reuseport.options.manual import manual

TARGETS: Mapping[str, tuple[Callable[[Described], str], str]] = {
    "systemd": (systemd.text, "a unit, for /etc/systemd/system/NAME.service"),
    "nginx": (nginx.text, "a proxy in front, for /etc/nginx/conf.d/NAME.conf"),
    "logrotate": (logrotate.text, "how its logs are rotated, for /etc/logrotate.d/NAME"),
    "docker": (docker.text, "an image, for Dockerfile"),
    "compose": (compose.text, "a container of that image, for compose.yaml"),
    "kubernetes": (kubernetes.text, "a deployment and a service of that image, for kubectl apply -f"),
    "prometheus": (prometheus.text, "alerts, for /etc/prometheus/rules/NAME.yml"),
    "grafana": (grafana.text, "a dashboard, to be imported there"),
}

ABOUT = """\
Prints a file for the application. All options are those of `reuseport serve`; a configuration file is read now for \
what decides about the file that is printed, and again by the master itself, at each start.

{targets}

    reuseport init systemd shop:app -b 0.0.0.0:8000 --chdir /srv/shop/current > /etc/systemd/system/shop.service
    reuseport init nginx shop:app -b 127.0.0.1:8000 --static /srv/shop/shared/static > /etc/nginx/conf.d/shop.conf

Exit status: 0 it was printed; 2 wrong usage."""

TAKES = (*OPTIONS, static.OPTION)


def help_text() -> str:
    targets = "\n\n".join(f"  {name:<10} {what}" for name, (_, what) in TARGETS.items())
    usage = "reuseport init TARGET [OPTIONS] MODULE:APP"
    return manual(TAKES, usage, ABOUT.format(targets=targets), shutil.get_terminal_size().columns)


def run(argv: Sequence[str]) -> int:
    """Print the file. Raises OptionError."""
    if not argv or argv[0] not in TARGETS:
        known = f"there are {', '.join(TARGETS)}, as in: reuseport init systemd MODULE:APP"
        if not argv:
            raise OptionError(f"init: what for? {known}")
        raise OptionError(f"init: nothing is known for {argv[0]!r}{did_you_mean(argv[0], TARGETS) or '; ' + known}")
    target, *given = argv
    words, files = static.take(given)
    if files and target != "nginx":
        raise OptionError(f"init: {static.OPTION.flag} is for init nginx: {target} serves no files")
    settings = load(words, os.environ, working_directory(os.environ))
    for remark in settings.remarks:
        print(f"reuseport: {one_line(str(remark))}", file=sys.stderr)
    if settings.app is None:
        raise OptionError(f"init: which application? name it, as in: reuseport init {target} MODULE:APP")
    user = pwd.getpwuid(os.geteuid()).pw_name
    app = Described(settings, tuple(words), program(sys.executable), user)
    text, _ = TARGETS[target]
    if files:
        text = partial(nginx.text, files=static.parse_all(files, settings))
    sys.stdout.write(text(app))
    return 0


def program(python: str) -> tuple[str, ...]:
    """The words that run this very installation."""
    script = os.path.join(os.path.dirname(python), "reuseport")
    # Without the script, -P keeps the working directory out of sys.path, as the script does.
    return (script,) if os.access(script, os.X_OK) else (python, "-P", "-m", "reuseport")
