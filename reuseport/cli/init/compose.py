"""A container of the image that `init docker` prints, for Docker Compose."""

from __future__ import annotations

from reuseport.cli.init.container import account, has_socket, published
from reuseport.cli.init.described import Described, quoted
from reuseport.cli.init.docker import RUN

UNREACHED = """\
    # Only unix sockets are bound. Mount a volume at their directory, here and in the proxy's container.
"""
SOCKET_TOO = """\
    # A unix socket is bound, too. Mount a volume at its directory, here and in the proxy's container.
"""


def text(app: Described) -> str:
    grace, why = app.grace()
    port, who = published(app), account(app)
    ports = UNREACHED
    if port:
        ports = f"    ports:\n      - {quoted(port)}\n{SOCKET_TOO if has_socket(app) else ''}"
    return f"""\
services:
  {quoted(app.name)}:
    build: .
{ports}
    # How long a stop may take until it becomes a kill, which a job does not survive; Docker's own 10 s are hardly ever
    # enough. This is {why}.
    stop_grace_period: {grace}s

    # If the master dies its container does, with every worker in it.
    restart: unless-stopped

    # Nothing is written but here.
    read_only: true
    tmpfs:
      - {quoted(f"{RUN}:uid={who.uid},gid={who.gid},mode=0755")}
      - /tmp
    cap_drop: [ALL]
    security_opt: ["no-new-privileges:true"]

    # Docker's default driver keeps the whole log for ever.
    logging:
      driver: local

    # `docker compose up --build` stops the old container before it starts the new one. To release without a gap, mount
    # a directory of releases (see the end of the Dockerfile), and:
    #     docker compose exec {app.name} reuseport release
"""
