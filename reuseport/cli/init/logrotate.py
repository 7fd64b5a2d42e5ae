"""How the log and the access log are rotated."""

from __future__ import annotations

import grp
import pwd
import shlex

from reuseport.cli.init.described import Described, one_line_only
from reuseport.ipc.rundir import RunDir
from reuseport.options import OptionError, logplace


def text(app: Described) -> str:
    settings = app.settings
    said = [path for path in (settings.log_file, settings.access_log) if path]
    paths = [path for path in said if logplace.parse(path).kind == logplace.FILE]
    if not paths:
        raise OptionError(
            "init: there is nothing to rotate: neither --log-file nor --access-log names a file, and what goes to "
            "standard output and error belongs to the supervisor"
        )
    owner = settings.user or app.user
    owners = f"{owner} {settings.group or _group_of(owner)}"
    pid_file = shlex.quote(one_line_only(settings.pid or RunDir(app.run_dir).pid, "such a file"))
    names = "\n".join(f'"{one_line_only(path, "such a file")}"' for path in dict.fromkeys(paths))
    su = "" if app.as_root else f"    # The master's user, who also owns the directory of the logs.\n    su {owners}\n"
    return f"""\
{names}
{{
    daily
    rotate 14
    missingok
    notifempty
    compress
    # A worker may write its last line into the old file a moment after it was told of the new one.
    delaycompress
{su}    # The master opens the new file and passes it to every process, so this owner need not be able to write to it.
    create 0640 {owners}
    # One signal for all of them: the master tells every worker, draining ones too.
    sharedscripts
    postrotate
        test ! -e {pid_file} || kill -USR1 "$(cat {pid_file})"
    endscript
}}
"""


def _group_of(user: str) -> str:
    """A user's own group; one that is not known here is taken to have a group of its name."""
    try:
        return grp.getgrgid(pwd.getpwnam(user).pw_gid).gr_name
    except KeyError:
        return user
