"""Every option of the server, declared once.

The flag, the key in a file, the environment variable, the check and the help of an option all follow from its one
`Option` in `declared/`; so do the Gunicorn options that are taken but mean nothing, from one `Foreign` each. To add an
option is to add an entry; nothing else in the package lists them.

An option's effect says what a release does with a new value: "start" needs another start, "release" counts for the
generations that begin from then on, and "always" also for those that already live, and for the master itself.
"""

from __future__ import annotations

from collections.abc import Mapping

from reuseport.options.declared import clients, generations, master
from reuseport.options.option import ENVIRONMENT as ENVIRONMENT
from reuseport.options.option import FILE as FILE
from reuseport.options.option import FLAG as FLAG
from reuseport.options.option import Foreign, Option

OPTIONS: tuple[Option, ...] = (*generations.OPTIONS, *clients.OPTIONS, *master.OPTIONS)

_NO_ASGI = "is a worker for ASGI; reuseport serves WSGI applications"

FOREIGN: tuple[Foreign, ...] = (
    Foreign(
        ("-k", "--worker-class"),
        "means nothing here: every worker runs requests in greenlets on gevent's loop",
        refused_values={"uvicorn": _NO_ASGI, "asgi": _NO_ASGI, "aiohttp": _NO_ASGI},
    ),
    Foreign(("--worker-connections",), "means nothing here: a worker has no fixed number of connections"),
    Foreign(("--worker-tmp-dir",), "means nothing here: workers report through shared memory, not through files"),
    Foreign(("--reuse-port",), "means nothing here: every socket is opened with SO_REUSEPORT", takes_value=False),
    Foreign(("--no-sendfile",), "means nothing here: there is no such way of sending to avoid", takes_value=False),
    Foreign(("--initgroups",), "means nothing here: --user always brings its groups along", takes_value=False),
    Foreign(
        ("-R", "--enable-stdio-inheritance"),
        "means nothing here: standard output and error are always inherited",
        takes_value=False,
    ),
    Foreign(("--log-syslog",), "means nothing here: say --log-file syslog, and --access-log syslog", takes_value=False),
    Foreign(("--log-syslog-to",), "means nothing here: say --log-file syslog:/PATH or syslog://HOST:PORT"),
    Foreign(
        ("-D", "--daemon"),
        "is refused: leave the background to what supervises services (a systemd unit, a container)",
        takes_value=False,
        refused=True,
    ),
    Foreign(("--reload-engine",), "means nothing here: --reload uses inotify, and polls where there is none"),
    Foreign(("--ssl-version",), "means nothing here: TLS 1.2 and later is spoken"),
    Foreign(("--ciphers",), "is refused: the system's OpenSSL decides (its CipherString can)", refused=True),
    Foreign(("--do-handshake-on-connect",), "means nothing here: no handshake blocks", takes_value=False),
    Foreign(("--suppress-ragged-eofs",), "means nothing here: a cut connection is always seen", takes_value=False),
    Foreign(("--paste", "--paster"), "is refused: name the application as MODULE:factory()", refused=True),
)

BY_NAME: Mapping[str, Option] = {option.name: option for option in OPTIONS}
