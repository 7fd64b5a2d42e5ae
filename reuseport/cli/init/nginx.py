"""nginx in front: an upstream and a server, for http { }."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from reuseport.cli.init import static
from reuseport.cli.init.described import Described, one_line_only
from reuseport.options import OptionError
from reuseport.options.address import Address
from reuseport.options.kinds import parse_tenant

# What a release does to TLS connections, in the comment on proxy_next_upstream.
CLOSES = """ But it closes idle TLS connections: a request that nginx sends at that moment is answered 502. An address
        # without TLS has no such moment."""
SITE = "shop.example"  # stands for the site's own name
KEPT = 32  # idle connections to reuseport that each nginx worker keeps
IDLE = 60  # seconds at most that nginx keeps one


def text(app: Described, files: Sequence[static.Static] = ()) -> str:
    settings = app.settings
    if settings.proxy_protocol != "off":
        raise OptionError(
            "init: nginx's proxy for HTTP sends no PROXY header; leave out --proxy-protocol, X-Forwarded-For says it"
        )
    address = _nearest(app.addresses)
    scheme = "https" if settings.certfile and not address.path else "http"
    more = [word for one in files for word in (static.OPTION.flag, f"{one.url}={one.directory}")]
    typed = one_line_only(shlex.join([*app.words, *more]), "a comment")
    number = settings.request_id != "off"
    closes = CLOSES if scheme == "https" else ""
    # A name with a digit in front would be a capture: nginx reads $1shop as $1 and the text "shop".
    variable = "$tenant_of_" + re.sub(r"[^a-z0-9_]", "_", app.name.lower())
    header = _tenant_header(settings.tenant)
    return f"""\
# nginx in front of reuseport, inside http {{ }}. Printed by: reuseport init nginx {typed}

upstream {app.name} {{
    server {_server(address)};
{_kept(settings.keep_alive)}
}}
{static.caching(files)}
# A WebSocket wants to be upgraded. For every other request Connection is empty: with a word in it nginx would close
# behind each request.
map $http_upgrade $connection_upgrade {{
    default upgrade;
    ''      '';
}}
{_tenant_map(variable, header) if header else ""}
server {{
    listen 80;
    # The names of the site. nginx takes the first server of an address for every other name.
    server_name {SITE};

    # With a certificate: these lines in the place of the line that listens, and the last server, which redirects.
    #     listen 443 ssl;
    #     http2 on;       # before nginx 1.25.1 (nginx -v): listen 443 ssl http2;
    #     ssl_certificate     /etc/letsencrypt/live/{SITE}/fullchain.pem;
    #     ssl_certificate_key /etc/letsencrypt/live/{SITE}/privkey.pem;
    #     ssl_protocols       TLSv1.2 TLSv1.3;

    # As --limit-request-body; 0 is no limit. nginx's own, 1 MiB, would refuse uploads.
    client_max_body_size {settings.limit_request_body};
{static.locations(files)}
    location / {{
        proxy_pass {scheme}://{app.name};

        proxy_http_version 1.1;
        proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Connection $connection_upgrade;

        # Who asks, and how. reuseport believes the peers in --forwarded-allow-ips; what a client says in the other
        # fields of this kind must not get through.
        proxy_set_header Host $host;
        proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        proxy_set_header X-Forwarded-Proto $scheme;
        proxy_set_header X-Forwarded-Protocol "";
        proxy_set_header X-Forwarded-Ssl "";
        proxy_set_header Forwarded "";
{_request_id(settings.request_id_header) if number else ""}{_sets_tenant(variable, header) if header else ""}
        # nginx's default sends a GET, PUT or DELETE again when its worker dies: once over each kept connection, and
        # once more. proxy_next_upstream_tries does not bound that. A release breaks no connection, so nothing needs
        # it.{closes}
        proxy_next_upstream off;

        # Longer than any request works without a word, and any WebSocket is silent; reuseport sets no limit.
        proxy_read_timeout 1h;
    }}
}}

#server {{
#    listen *:80;
#    server_name {SITE};
#    return 308 https://$host$request_uri;
#}}
"""


def _tenant_header(rule: str) -> str:
    """The header that names the tenant; "" where it is no header."""
    kind, argument = parse_tenant(rule) if rule else ("", "")
    return argument if kind == "header" else ""


def _tenant_map(variable: str, header: str) -> str:
    return f"""
# Whose a request is (--tenant header:{header}), here by the name of the site. Write your own rule: a line for each
# tenant, or a pattern. An empty value is no tenant.
map $host {variable} {{
    default '';
    # acme.{SITE} acme;
    # ~^(?<tenant>[a-z0-9-]+)\\.shop\\.example$ $tenant;
}}
"""


def _sets_tenant(variable: str, header: str) -> str:
    return f"""
        # In the place of what the client says: with a {header} of its own it would choose the tenant that it is.
        proxy_set_header {header} {variable};
"""


def _request_id(header: str) -> str:
    return f"""
        # One id in the logs of both.
        proxy_set_header {header} $request_id;
"""


def _kept(keep_alive: float) -> str:
    if keep_alive <= 1:
        return "    # With this --keep-alive reuseport closes each connection, so there are none to keep."
    idle = int(min(IDLE, keep_alive * 0.8)) or 1
    return f"""
    # Connections to reuseport are kept. At a release they move to the new version; nginx does not notice.
    keepalive {KEPT};

    # Less than reuseport's --keep-alive ({keep_alive:g} s), so that an idle connection is always closed by nginx. The
    # other way round nginx could send a request just when reuseport closes, which becomes a 502.
    keepalive_timeout {idle}s;"""


def _nearest(addresses: list[Address]) -> Address:
    """A unix socket, where there is one: nobody but the machine's own users can reach it."""
    address = next((one for one in addresses if one.path), addresses[0])
    if not address.path and not address.port:
        raise OptionError("init: nginx must know the port, and --bind says 0: any that is free")
    return address


def _server(address: Address) -> str:
    """How to reach it from this machine, written for nginx."""
    if address.path:
        path = one_line_only(f"unix:{address.path}", "nginx.conf")
        return '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"' if set(path) & set(" ;{}\"'\\$") else path
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)
    return f"[{host}]:{address.port}" if ":" in host else f"{host}:{address.port}"
