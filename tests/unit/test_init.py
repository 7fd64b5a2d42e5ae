"""`reuseport init`: what is printed says what was said to it, and whoever reads it reads what was meant."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from reuseport.cli.init import compose, docker, grafana, kubernetes, logrotate, nginx, prometheus, systemd
from reuseport.cli.init.described import Described
from reuseport.cli.main import COMMANDS, main
from reuseport.master.metrics import HISTOGRAM, INFO, METRICS
from reuseport.options import load
from reuseport.version import __version__

CHECKOUT = Path(__file__).parent.parent.parent


def described(words: tuple[str, ...], cwd: str = "/", user: str = "shop", **environ: str) -> Described:
    return Described(load(words, environ, cwd), words, ("/venv/bin/reuseport",), user)


# --- systemd ----------------------------------------------------------------------------------------------------------


def made(*words: str, **how: str) -> list[str]:
    return systemd.text(described(words, **how)).splitlines()


def value(lines: list[str], key: str) -> str:
    return next(line.partition("=")[2] for line in lines if line.startswith(f"{key}="))


def test_the_command_line_is_the_one_that_was_typed():
    lines = made("shop:app", "-b", "0.0.0.0:8000", "--env", 'A="$b" 100%\\')
    assert value(lines, "ExecStart") == (
        '/venv/bin/reuseport serve shop:app -b 0.0.0.0:8000 --env "A=\\"$$b\\" 100%%\\\\"'
    )
    assert value(lines, "ExecReload") == "/venv/bin/reuseport release --wait ready --run-dir /run/reuseport/shop"
    assert value(lines, "Type") == "notify"
    assert value(lines, "KillMode") == "process"


def test_directories_are_the_units_where_no_option_names_them():
    lines = made("shop:app")
    assert value(lines, "RuntimeDirectory") == value(lines, "StateDirectory") == "reuseport/shop"
    assert value(lines, "RuntimeDirectoryMode") == "0700"
    lines = made("shop:app", "--run-dir", "/srv/run", "--state-dir", "/srv/state")
    assert "--run-dir /srv/run" in value(lines, "ExecReload")
    assert not any(line.startswith(("RuntimeDirectory", "StateDirectory")) for line in lines)


def test_a_linked_working_directory_stays_the_link(tmp_path: Path):
    (tmp_path / "1").mkdir()
    (tmp_path / "current").symlink_to("1")
    current = str(tmp_path / "current")
    assert value(made("shop:app", cwd=current), "Environment") == f"PWD={current}"
    assert not any(line.startswith("Environment=") for line in made("shop:app", cwd=str(tmp_path / "1")))


def test_a_unit_works_in_the_applications_directory(tmp_path: Path):
    """Not in the one in which somebody printed it, and what was relative there means what it meant."""
    here, there = tmp_path / "here", tmp_path / "current"
    here.mkdir(), there.mkdir()
    (here / "reuseport.toml").write_text("workers = 3\n")
    words = ("shop:app", "--chdir", "../current", "--log-file=log", "-e", "A=-b", "--no-reload", "--pid", "/run/x.pid")
    lines = made(*words, cwd=str(here), REUSEPORT_CERTFILE="cert.pem")
    assert value(lines, "WorkingDirectory") == str(here / "../current")
    typed = value(lines, "ExecStart").split()[2:]
    variables = dict(line.removeprefix("Environment=").split("=", 1) for line in lines if "=REUSEPORT_" in line)
    read = load(typed, variables, value(lines, "WorkingDirectory"))
    assert f"Environment=PWD={here / '../current'}" in lines, "it may be a link where the unit runs"
    assert (read.workers, read.log_file, read.certfile) == (3, str(here / "log"), str(here / "cert.pem"))
    assert (read.env, read.pid, read.chdir) == ({"A": "-b"}, "/run/x.pid", str(here / "../current"))


def test_a_unit_whose_file_has_relative_paths_stays_where_they_begin(tmp_path: Path):
    (tmp_path / "reuseport.toml").write_text('log_file = "logs/shop.log"\n')
    lines = made("shop:app", "--chdir", "/srv/shop", cwd=str(tmp_path))
    assert value(lines, "WorkingDirectory") == str(tmp_path)
    assert "relative paths in the configuration begin there" in lines[lines.index(f"WorkingDirectory={tmp_path}") - 1]
    lines = made("shop:app", cwd=str(tmp_path))
    assert value(lines, "WorkingDirectory") == str(tmp_path)
    assert "--chdir names another" in lines[lines.index(f"WorkingDirectory={tmp_path}") - 1]


@pytest.mark.parametrize(
    ("words", "directories"),
    [
        ((), "reuseport/shop"),
        (("--log-file", "/srv/shop/log"), "reuseport/shop"),
        (("--log-file", "/var/log/shop/server.log"), "shop"),
        (("--log-file", "/var/log/shop/a.log", "--access-log", "/var/log/web/shop/b.log"), "shop web/shop"),
        (("--log-file", "journald", "--access-log", "/dev/stdout"), "reuseport/shop"),
    ],
)
def test_a_unit_makes_the_directories_of_its_logs(words, directories):
    assert value(made("shop:app", *words), "LogsDirectory") == directories


def test_a_log_that_the_units_user_could_not_make():
    assert any("Only root can make files in /var/log" in line for line in made("shop:app", "--log-file", "/var/log/x"))
    assert not any("Only root" in line for line in made("shop:app", "--log-file", "/var/log/x", user="root"))


@pytest.mark.skipif(not shutil.which("perl"), reason="needs perl")
def test_needrestart_leaves_the_unit_alone():
    """needrestart evaluates its configuration as Perl, and looks for a pattern that fits the unit's name."""
    line = next(line for line in made("shop:app", "-n", "a.b") if "$nrconf" in line).removeprefix("#").strip()
    ask = "our %nrconf = (override_rc => { qr(^dbus) => 0 }); eval <STDIN>; die $@ if $@;"
    ask += 'for my $unit (@ARGV) { print grep({ $unit =~ /$_/ } keys %{$nrconf{override_rc}}) ? "off" : "on", "\\n" }'
    words = ["perl", "-e", ask, "a.b.service", "axb.service", "a.b.service.d"]
    done = subprocess.run(words, input=line, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["off", "on", "on"]


def test_variables_that_said_something_are_said_again():
    lines = made("shop:app", REUSEPORT_WORKERS="3", WEB_CONCURRENCY="5", HOME="/root")
    assert [line for line in lines if line.startswith("Environment=")] == ["Environment=REUSEPORT_WORKERS=3"]


def test_who_it_runs_as():
    assert value(made("shop:app"), "User") == "shop"
    assert not any(line.startswith("User=") for line in made("shop:app", user="root"))
    assert not any(line.startswith("User=") for line in made("shop:app", "--user", "nobody"))
    assert value(made("shop:app", "-b", ":80"), "AmbientCapabilities") == "CAP_NET_BIND_SERVICE"
    assert not any("CAP_" in line for line in made("shop:app", "-b", ":80", user="root"))


def test_two_units_that_take_over_from_each_other_share_a_directory_that_ends_with_neither():
    assert value(made("shop:app"), "RuntimeDirectoryPreserve") == "restart"
    assert value(made("shop:app", "--takeover", "if-running"), "RuntimeDirectoryPreserve") == "yes"


def test_it_waits_for_as_long_as_a_boot_may_take():
    assert value(made("shop:app", "--boot-timeout", "10m", "--probation", "60"), "TimeoutStartSec") == "690"


# --- nginx ------------------------------------------------------------------------------------------------------------


def proxy(*words: str) -> str:
    return nginx.text(described(("shop:app", *words)))


def test_the_documented_configuration_is_the_printed_one():
    assert proxy() == (CHECKOUT / "docs" / "nginx.conf").read_text(), "reuseport init nginx shop:app > docs/nginx.conf"


@pytest.mark.parametrize(
    ("bind", "server"),
    [
        ("0.0.0.0:80", "127.0.0.1:80"),
        ("[::]:80", "[::1]:80"),
        ("10.0.0.1:80", "10.0.0.1:80"),
        ("unix:/run/shop.sock", "unix:/run/shop.sock"),
        ("unix:/run/a shop.sock", '"unix:/run/a shop.sock"'),
    ],
)
def test_nginx_knows_where_to_go(bind: str, server: str):
    assert f"    server {server};" in proxy("-b", bind).splitlines()


def test_nginx_prefers_the_unix_socket():
    assert "server unix:/run/shop.sock;" in proxy("-b", ":80", "-b", "unix:/run/shop.sock")


def test_nginx_gives_up_idle_connections_first():
    assert "keepalive_timeout 60s;" in proxy()
    assert "keepalive_timeout 8s;" in proxy("--keep-alive", "10")
    assert "keepalive" not in proxy("--keep-alive", "0")


def test_nginx_speaks_tls_to_what_speaks_it():
    assert "proxy_pass https://shop;" in proxy("--certfile", "c.pem")
    assert "proxy_pass http://shop;" in proxy("--certfile", "c.pem", "-b", "unix:/run/shop.sock")


@pytest.mark.parametrize("words", [(), ("--certfile", "c.pem"), ("-b", "unix:/run/shop.sock")])
def test_nginx_repeats_nothing(words: tuple[str, ...]):
    assert "\n        proxy_next_upstream off;\n" in proxy(*words)
    assert ("idle TLS connections" in proxy(*words)) == ("--certfile" in words)


def test_nginx_takes_bodies_as_large_as_the_server_does():
    assert "client_max_body_size 0;" in proxy()
    assert f"client_max_body_size {512 << 20};" in proxy("--limit-request-body", "512M")


def test_nginx_gives_requests_the_id_that_the_server_takes():
    assert "proxy_set_header X-Trace $request_id;" in proxy("--request-id", "pass", "--request-id-header", "X-Trace")
    assert "$request_id" not in proxy()


def test_nginx_sets_the_tenants_header():
    """A client that could set it would be whichever tenant it likes."""
    text = proxy("--tenant", "header:X-Org", "-n", "my-shop.2")
    assert "\n        proxy_set_header X-Org $tenant_of_my_shop_2;\n" in text
    assert "\nmap $host $tenant_of_my_shop_2 {\n    default '';\n" in text
    for rule in ("host", "cookie:org", "shop.tenants:of"):
        assert "tenant_of" not in proxy("--tenant", rule)


@pytest.mark.parametrize("name", ["1shop", "2", "Shop_2", "9-to-5.shop", "host"])
def test_the_tenants_variable_is_no_capture_for_any_name_of_the_server(name):
    """nginx reads $1shop as the capture $1 and the text "shop", so all customers would be one tenant."""
    text = proxy("--tenant", "header:X-Org", "-n", name)
    [variable] = re.findall(r"map \$host \$(\S+) {", text)
    assert re.fullmatch("[a-z_][a-z0-9_]*", variable)
    assert f"proxy_set_header X-Org ${variable};" in text
    assert f"(?<{variable}>" not in text


def uncommented(text: str, *starts: str) -> str:
    """The text with the comments that begin with these words as lines of their own."""
    lines = text.splitlines()
    for start in starts:
        assert any(line.lstrip("# ").startswith(start) for line in lines), start
    return "\n".join(line.lstrip("# ") if line.lstrip("# ").startswith(starts) else line for line in lines)


@pytest.mark.skipif(not shutil.which("nginx"), reason="needs nginx")
@pytest.mark.parametrize("sample", [False, True], ids=["as it is", "with TLS and tenants"])
def test_nginx_takes_what_is_printed(tmp_path: Path, sample: bool):
    text = proxy("--tenant", "header:X-Tenant", "--request-id", "make")
    if sample:
        before, _, after = text.partition("#server {")
        server, _, rest = after.partition("#}")
        text = before + "server {" + server.replace("\n#", "\n") + "}" + rest
        text = text.replace("\n    listen 80;", "", 1)
        text = uncommented(text, "listen 443", "ssl_", "acme.", "~^")
        found = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=True).stderr
        version = tuple(map(int, re.findall(r"\d+", found)[:3]))
        text = uncommented(text, "http2 on") if version >= (1, 25, 1) else text.replace("443 ssl;", "443 ssl http2;")
        key, certificate = tmp_path / "privkey.pem", tmp_path / "fullchain.pem"
        make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        make += ["-subj", "/CN=shop.example", "-keyout", str(key), "-out", str(certificate)]
        subprocess.run(make, capture_output=True, check=True)
        text = text.replace("/etc/letsencrypt/live/shop.example", str(tmp_path))
    text = re.sub(r"listen (80|443)", rf"listen unix:{tmp_path}/\1.sock", text.replace("*:80", "80"))
    path = tmp_path / "nginx.conf"
    logs = f"pid {tmp_path}/pid; error_log {tmp_path}/log;"
    path.write_text(f"{logs} events {{}} http {{ access_log off; {text} }}")
    done = subprocess.run(["nginx", "-t", "-q", "-p", str(tmp_path), "-c", str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


# --- logrotate --------------------------------------------------------------------------------------------------------


def rotation(*words: str, user: str = "shop") -> str:
    return logrotate.text(described(("shop:app", *words), user=user))


def test_every_file_is_rotated_once():
    text = rotation("--log-file", "/var/log/shop.log", "--access-log", "/var/log/shop.log")
    assert text.count("/var/log/shop.log") == 1
    assert rotation("--log-file", "a.log", "--access-log", "-").count(".log") == 1


def test_the_master_is_told_of_the_rotation():
    assert 'kill -USR1 "$(cat /run/reuseport/shop/master.pid)"' in rotation("--log-file", "a.log")
    assert "/srv/run/master.pid" in rotation("--log-file", "a.log", "--run-dir", "/srv/run")
    assert "$(cat '/run/a b.pid')" in rotation("--log-file", "a.log", "--pid", "/run/a b.pid")


def test_whose_the_new_file_is():
    assert "su shop shop" in rotation("--log-file", "a.log")
    text = rotation("--log-file", "a.log", "--user", "nobody", user="root")
    assert "create 0640 nobody nogroup" in text or "create 0640 nobody nobody" in text
    assert "su " not in text, "a master that is root's takes no signal from anybody else"


# --- containers -------------------------------------------------------------------------------------------------------


def image(*words: str, **how: str) -> dict[str, str]:
    """Each instruction's last arguments."""
    text = docker.text(described(words, **how)).replace("\\\n", "")
    return dict(line.split(" ", 1) for line in text.splitlines() if re.match("[A-Z]+ ", line))


def deployment(*words: str, **how: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The pod's specification, and its container's."""
    one, service = yaml.safe_load_all(kubernetes.text(described(words, **how)))
    assert one["kind"] == "Deployment" and service["kind"] == "Service"
    pod = one["spec"]["template"]
    assert one["spec"]["selector"]["matchLabels"] == pod["metadata"]["labels"] == service["spec"]["selector"]
    return pod["spec"], pod["spec"]["containers"][0]


@pytest.mark.parametrize(
    ("words", "mounts"),
    [
        (("--env-file", ".env"), "-v ./.env:/srv/shop/.env:ro"),
        (
            ("--env-file=-.env", "--env-file", "/app/my env", "--env-file", "/etc/shop"),
            "-v ./.env:/srv/shop/.env:ro -v './my env:/app/my env:ro'",
        ),
        (("--env-file", ".env", "--chdir", "site"), "-v ./site/.env:/srv/shop/site/.env:ro"),
        (("--env-file", ".env", "--chdir", "/srv/code"), "-v ./.env:/srv/code/.env:ro"),
        (("--env-file", "/etc/shop", "--env-file=-../x"), None),
        ((), None),
    ],
)
def test_files_of_secrets_that_an_image_would_copy(words, mounts):
    text = docker.text(described(("shop:app", *words), cwd="/app"))
    assert (".dockerignore" in text) == (mounts is not None)
    if mounts:
        assert f"#     docker run {mounts} ...\nCOPY . .\n" in text


def test_an_image_runs_what_was_typed_without_a_shell():
    made = image("shop:app", "-e", 'A="$b"')
    assert json.loads(made["CMD"]) == ["reuseport", "serve", "shop:app", "-e", 'A="$b"', "-b", "0.0.0.0:8000"]
    assert made["STOPSIGNAL"] == "SIGTERM"
    assert made["USER"] == "10001:10001"
    assert json.loads(made["HEALTHCHECK"].partition("CMD ")[2]) == ["reuseport", "status", "--check"]
    assert made["WORKDIR"] == "/srv/shop"


def test_an_image_listens_where_it_was_said():
    made = image("shop:app", "-b", ":80")
    assert json.loads(made["CMD"])[3:] == ["-b", ":80"]
    assert made["EXPOSE"] == "80"


@pytest.mark.parametrize(
    ("said", "listens", "published"),
    [
        (["127.0.0.1:8000"], ["0.0.0.0:8000"], "127.0.0.1:8000:8000"),
        (["localhost:8000"], ["0.0.0.0:8000"], "127.0.0.1:8000:8000"),
        (["127.1.2.3:80"], ["0.0.0.0:80"], "127.1.2.3:80:80"),
        (["[::1]:8000"], ["[::]:8000"], "[::1]:8000:8000"),
        (["10.0.0.1:8000"], ["0.0.0.0:8000"], "10.0.0.1:8000:8000"),
        (["127.0.0.1:8000", "[::1]:8000"], ["0.0.0.0:8000"], "127.0.0.1:8000:8000"),
        (["127.0.0.1:80", "unix:/run/shop.sock"], ["0.0.0.0:80", "unix:/run/shop.sock"], "127.0.0.1:80:80"),
        (["shop.example:8000"], ["0.0.0.0:8000"], "8000:8000"),
    ],
)
@pytest.mark.parametrize("source", ["flag", "variable", "file"])
def test_a_container_listens_where_others_reach_it(tmp_path, said, listens, published, source):
    """A container has a loopback interface of its own, and none of the machine's addresses."""
    words, environ = ("shop:app", "-w", "3"), {}
    if source == "flag":
        words += tuple(word for one in said for word in ("--bind", one))
    elif source == "variable":
        environ = {"REUSEPORT_BIND": ",".join(said)}
    else:
        (tmp_path / "reuseport.toml").write_text(f"bind = {json.dumps(said)}\n")
    how = {"cwd": str(tmp_path), **environ}
    made = image(*words, **how)
    port = published.rpartition(":")[2]
    assert made["EXPOSE"] == port
    command = json.loads(made["CMD"])[2:]
    wanted = load([word for one in listens for word in ("-b", one)], {}, "/").bind
    assert load(command, environ, str(tmp_path)).bind == wanted
    assert command[:3] == ["shop:app", "-w", "3"]
    service = yaml.safe_load(compose.text(described(words, **how)))["services"]["shop"]
    assert service["ports"] == [published]
    _, container = deployment(*words, **how)
    assert container["ports"][0]["containerPort"] == int(port)
    assert load(container["command"][2:], environ, str(tmp_path)).bind == wanted


SOCKET_ALONE = "Only unix sockets are bound"
SOCKET_TOO = "A unix socket is bound, too"


@pytest.mark.parametrize(
    ("binds", "remark"),
    [
        (["unix:/run/shop/s.sock"], SOCKET_ALONE),
        (["0.0.0.0:80", "unix:/run/shop/s.sock"], SOCKET_TOO),
        (["unix:/run/shop/s.sock", "127.0.0.1:80"], SOCKET_TOO),
        (["0.0.0.0:80"], ""),
    ],
)
def test_the_directory_of_a_socket_needs_a_volume(binds, remark):
    app = described(("shop:app", *(word for one in binds for word in ("-b", one))))
    for text in (docker.text(app), compose.text(app)):
        assert [one for one in (SOCKET_ALONE, SOCKET_TOO) if one in text] == [remark][: bool(remark)]
    yaml.safe_load(compose.text(app))


def test_a_container_of_which_nothing_but_a_socket_is_reached():
    words = ("shop:app", "-b", "unix:/run/shop/shop.sock")
    assert "EXPOSE" not in image(*words)
    assert "ports" not in yaml.safe_load(compose.text(described(words)))["services"]["shop"]


@pytest.mark.parametrize(
    ("words", "account", "commands"),
    [
        (("--user", "shop"), (10001, 10001), ["groupadd 10001 shop", "useradd 10001 10001 shop"]),
        (("--user", "shop", "--group", "crew"), (10001, 10001), ["groupadd 10001 crew", "useradd 10001 10001 shop"]),
        (("--group", "shop"), (10001, 10001), ["groupadd 10001 shop", "useradd 10001 10001 app"]),
        (("--user", "1000"), (1000, 1000), ["groupadd 1000 app", "useradd 1000 1000 app"]),
        (("--user", "www-data"), (33, 33), []),
        (("--user", "nobody"), (65534, 65534), []),
        (("--user", "shop", "--group", "www-data"), (10001, 33), ["useradd 10001 33 shop"]),
        (("--user", "games"), (5, 60), []),
        (("--user", "news"), (9, 9), []),
        (("--user", "_apt"), (42, 65534), []),
        (("--user", "sync"), (4, 65534), []),
        (("--user", "adm"), (10001, 4), ["useradd 10001 4 adm"]),
        (("--user", "shop", "--group", "staff"), (10001, 50), ["useradd 10001 50 shop"]),
    ],
)
def test_a_container_has_the_user_that_the_options_name(tmp_path, words, account, commands):
    """As that user the master changes to no other, so the same file serves with and without a container."""
    uid, gid = account
    names = {"--user": "user", "--group": "group"}
    text = "".join(f"{names[flag]} = {json.dumps(name)}\n" for flag, name in zip(words[::2], words[1::2], strict=True))
    (tmp_path / "reuseport.toml").write_text(text)
    how = {"cwd": str(tmp_path)}
    for made in (image("shop:app", *words), image("shop:app", **how)):
        assert made["USER"] == f"{uid}:{gid}"
    lines = docker.text(described(("shop:app",), **how)).replace("\\\n", "").splitlines()
    (run,) = [line for line in lines if "install -d" in line]
    *accounts, directory = run.removeprefix("RUN ").split(" && ")
    options = re.compile(r" --(system|non-unique|no-create-home|gid|uid)")
    assert [" ".join(options.sub("", one).split()) for one in accounts] == commands
    assert directory.strip() == f"install -d -o {uid} -g {gid} /run/reuseport"
    service = yaml.safe_load(compose.text(described(("shop:app",), **how)))["services"]["shop"]
    assert f"/run/reuseport:uid={uid},gid={gid},mode=0755" in service["tmpfs"]
    _, container = deployment("shop:app", **how)
    context = container["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"]) == account


def test_where_the_code_lies_in_an_image():
    assert image("shop:app", "--chdir", "/opt/shop/current", cwd="/home/me")["WORKDIR"] == "/opt/shop/current"
    assert image("shop:app", "--chdir", "src", cwd="/home/me")["WORKDIR"] == "/srv/shop"


def test_variables_are_said_again_in_an_image():
    lines = docker.text(described(("shop:app",), REUSEPORT_ENV='A="$b"', REUSEPORT_WORKERS="3")).splitlines()
    assert r'ENV REUSEPORT_ENV="A=\"\$b\""' in lines
    assert "ENV REUSEPORT_WORKERS=3" in lines
    assert "ENV REUSEPORT_RUN_DIR=/run/reuseport/shop" in lines


@pytest.mark.parametrize(
    ("words", "seconds"),
    [((), 3600), (("--job-timeout", "2h"), 7260), (("--graceful-timeout", "5m", "--job-timeout", "2h"), 330)],
)
def test_a_stop_gets_as_long_as_it_may_take(words: tuple[str, ...], seconds: int):
    service = yaml.safe_load(compose.text(described(("shop:app", *words))))["services"]["shop"]
    assert service["stop_grace_period"] == f"{seconds}s"
    pod, _ = deployment("shop:app", *words)
    assert pod["terminationGracePeriodSeconds"] == seconds + 10, "and the delay before it"
    pod, _ = deployment("shop:app", *words, "--stop-delay", "60")
    assert pod["terminationGracePeriodSeconds"] == seconds + (60 if words else 0)


def test_a_composed_container_can_write_where_it_must():
    service = yaml.safe_load(compose.text(described(("shop:app", "-b", ":80"))))["services"]["shop"]
    assert service["ports"] == ["80:80"]
    assert "/run/reuseport:uid=10001,gid=10001,mode=0755" in service["tmpfs"]


def test_a_pods_readiness_is_what_the_server_says():
    _, container = deployment("shop:app")
    command = container["command"]
    assert command[-4:] == ["--health-path", "/healthz", "--stop-delay", "10"]
    assert container["readinessProbe"]["httpGet"] == {"path": "/healthz", "port": "http", "scheme": "HTTP"}
    _, container = deployment("shop:app", "--health-path", "/up", "--stop-delay", "3", "--certfile", "c.pem")
    assert container["command"][2:] == [
        *("shop:app", "--health-path", "/up", "--stop-delay", "3", "--certfile", "c.pem", "-b", "0.0.0.0:8000")
    ]
    assert container["readinessProbe"]["httpGet"] == {"path": "/up", "port": "http", "scheme": "HTTPS"}


def test_a_pods_command_line_is_taken_by_serve():
    _, container = deployment("shop:app", "-e", "A=$(B)")
    words = [word.replace("$$", "$") for word in container["command"]]  # as the kubelet reads it
    settings = load(words[2:], {}, "/")
    assert (settings.env["A"], settings.health_path, settings.stop_delay) == ("$(B)", "/healthz", 10.0)
    assert "resources" in container
    assert "resources" not in deployment("shop:app", "-w", "3")[1]


def test_a_name_that_kubernetes_does_not_take():
    _, container = deployment("shop:app", "-n", "My_Shop.")
    assert container["name"] == "my-shop"


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "init: what for?"),
        (["dockr"], "init: nothing is known for 'dockr'; did you mean docker?"),
        (["upstart"], "init: nothing is known for 'upstart'; there are systemd, "),
        (["logrotate", "shop:app"], "there is nothing to rotate"),
        (["nginx", "shop:app", "-b", "127.0.0.1:0"], "nginx must know the port"),
        (["nginx", "shop:app", "--proxy-protocol", "v2"], "leave out --proxy-protocol"),
        (["docker", "shop:app", "--user", "root"], "--user: the image runs nothing as root"),
        (["kubernetes", "shop:app", "--group", "0"], "--group: the image runs nothing as root"),
        (["docker", "shop:app", "-b", ":0"], "-b: a container needs a port that others know"),
        (["kubernetes", "shop:app", "-b", "unix:/run/shop.sock"], "-b: a Service needs a TCP port"),
        (["docker", "shop:app", "--run-dir", "/run/a\nb"], "a line break, which a Dockerfile cannot hold"),
        (["systemd"], "init: which application?"),
        (["systemd", "shop:app", "--workres", "3"], "did you mean --workers"),
        (["systemd", "shop:app", "--env", "A=b\nc"], "a line break"),
    ],
)
def test_mistakes(capsys, words, message):
    assert main(["init", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze (apt: systemd)")
def test_systemd_finds_nothing_wrong_with_it(tmp_path: Path, capsys):
    assert main(["init", "systemd", "shop:app", "-b", ":80", "--user", "nobody", "--env", "A=$b 100% \\"]) == 0
    path = tmp_path / "shop.service"
    path.write_text(capsys.readouterr().out)
    done = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, check=False)
    # It also loads the machine's own units; only what it says of this one counts.
    assert [line for line in done.stderr.splitlines() if "shop.service" in line] == []


@pytest.mark.parametrize(
    ("origin", "installs"),
    [
        (None, f'pip install --no-cache-dir "reuseport=={__version__}"'),
        (
            {"url": "https://example.org/r.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
            "git+https://example.org/r.git@abc",
        ),
        ({"url": "https://example.org/r.whl", "archive_info": {}}, '"reuseport @ https://example.org/r.whl"'),
        ({"url": "file:///srv/my%20clone", "dir_info": {}}, "pip wheel --no-deps --wheel-dir . /srv/my clone"),
        ({"url": "file:///srv/clone", "dir_info": {}}, f'"/tmp/reuseport-{__version__}-py3-none-any.whl"'),
    ],
)
def test_the_image_gets_the_server_from_where_this_one_came(monkeypatch, capsys, origin, installs):
    recorded = SimpleNamespace(read_text=lambda name: origin and json.dumps(origin))
    monkeypatch.setattr("importlib.metadata.distribution", lambda name: recorded)
    assert main(["init", "docker", "shop:app"]) == 0
    assert installs in capsys.readouterr().out


# --- Prometheus and Grafana -------------------------------------------------------------------------------------------


def rules(*words: str) -> dict[str, Any]:
    return yaml.safe_load(prometheus.text(described(("shop:app", *words))))


def metric_names(expressions: str) -> set[str]:
    return set(re.findall(r"\breuseport_\w+", expressions))


KNOWN = {metric.name + ("_info" if metric.kind == INFO else "") for metric in METRICS}
KNOWN |= {f"{metric.name}_bucket" for metric in METRICS if metric.kind == HISTOGRAM}


def test_alerts_are_about_metrics_that_exist_and_say_what_to_do():
    [group] = rules()["groups"]
    assert metric_names(json.dumps([one["expr"] for one in group["rules"]])) <= KNOWN
    alerts = [one for one in group["rules"] if "alert" in one]
    assert len({one["alert"] for one in alerts}) == len(alerts) >= 12
    for one in alerts:
        assert 'job="shop"' in one["expr"], one
        assert one["labels"]["severity"] in ("critical", "warning", "info")
        assert one["annotations"]["summary"].endswith(".")
        commands = re.findall(r"`reuseport (\w+)", one["annotations"]["description"])
        assert set(commands) <= set(COMMANDS), one


def test_what_is_scraped_is_where_the_metrics_are():
    for said, target, remark in (
        ("10.0.0.1:9100", "10.0.0.1:9100", ""),
        ("[fd00::1]:9100", "[fd00::1]:9100", ""),
        (":9100", "localhost:9100", "another machine"),
        ("unix:/run/metrics.sock", "127.0.0.1:9100", "needs --metrics 127.0.0.1:9100"),
        ("", "127.0.0.1:9100", "needs --metrics 127.0.0.1:9100"),
    ):
        text = prometheus.text(described(("shop:app", *(["--metrics", said] if said else []))))
        assert f'targets: ["{target}"]' in text, text[:600]
        assert remark in text[: text.index("groups:")]


def test_limits_of_alerts_follow_from_the_options():
    def of(alert: str, *words: str) -> dict[str, Any]:
        return next(one for one in rules(*words)["groups"][0]["rules"] if one.get("alert") == alert)

    assert of("ReuseportDrainTakesLong")["expr"].endswith("> 14400")
    assert of("ReuseportDrainTakesLong", "--job-timeout", "1h", "--job-grace", "30")["expr"].endswith("> 3630")
    assert of("ReuseportReleaseTakesLong", "--boot-timeout", "10m")["for"] == "660s"


def test_a_dashboard_shows_metrics_that_exist_in_panels_that_do_not_overlap():
    board = json.loads(grafana.text(described(("shop:app", "--name", "shop.eu"))))
    assert board["title"] == "reuseport: shop.eu"
    assert board["templating"]["list"][1]["current"]["value"] == "shop.eu"
    panels = board["panels"]
    assert len({one["id"] for one in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for one in panels:
        place = one["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken
        assert all(x < 24 for x, _ in cells)
        taken |= cells
        for target in one["targets"]:
            assert metric_names(target["expr"]) <= KNOWN
            assert 'job="$job",instance=~"$instance"' in target["expr"]


# --- static files -----------------------------------------------------------------------------------------------------


def printed(capsys, *words: str) -> str:
    assert main(["init", "nginx", "shop:app", *words]) == 0
    return capsys.readouterr().out


def test_nginx_serves_no_files_unless_it_is_told(capsys):
    assert "alias" not in printed(capsys) and "Cache-Control" not in printed(capsys)


@pytest.mark.parametrize("words", [("--static", "/srv/shop/static/"), ("--static=/static/=/srv/shop/static",)])
def test_a_shared_directory_of_static_files(capsys, words):
    text = printed(capsys, *words)
    assert "    location /static/ {\n        alias \"/srv/shop/static/\";" in text
    assert "--static /static/=/srv/shop/static" in text.splitlines()[0]
    assert "map $uri $static_cache {" in text


def test_static_files_by_release(capsys):
    text = printed(capsys, "--static", "/srv/releases/{release}/dist", "--static", "/media/=/srv/media", "-b", ":81")
    assert 'location ~ "^/static/(?<release>[A-Za-z0-9][A-Za-z0-9._-]*)/(?<file>.+)$" {' in text
    assert 'alias "/srv/releases/$release/dist/$file";' in text
    assert 'location /media/ {\n        alias "/srv/media/";' in text
    assert "server 127.0.0.1:81;" in text


@pytest.mark.parametrize(
    ("target", "words", "message"),
    [
        ("systemd", ["--static", "/srv/static"], "--static is for init nginx: systemd serves no files"),
        ("nginx", ["--static"], "--static needs [URL=]DIR"),
        ("nginx", ["--static="], "--static: the value is empty"),
        ("nginx", ["--static", "--workers", "2"], "--static needs [URL=]DIR"),
        ("nginx", ["--static", "static"], "an absolute path"),
        ("nginx", ["--static", "static=/srv/static"], "'static' must begin and end with a slash"),
        ("nginx", ["--static", "/a b/=/srv/static"], "must begin and end with a slash"),
        ("nginx", ["--static", "/srv/$static"], "cannot hold '$'"),
        ("nginx", ["--static", "/srv/{rel}/static"], "cannot hold '{}'"),
        ("nginx", ["--static", "/srv/r-{release}/static"], "one whole component"),
        ("nginx", ["--static", "/srv/{release}/{release}"], "stands once"),
        ("nginx", ["--static", "/srv/releases/{release}"], "a directory within each release"),
        ("nginx", ["--static", "/srv/releases/{release}/"], "a directory within each release"),
        ("nginx", ["--static", "/srv/releases/{release}/."], "a directory within each release"),
        ("nginx", ["--static", "/srv/releases/{release}/static/.."], "a directory within each release"),
        ("nginx", ["--static", "/=/srv/x"], "/ is the application's"),
        ("nginx", ["--static", "/=/srv/{release}/x"], "/ is the application's"),
        ("nginx", ["--static", "/srv/x", "--static", "/static/=/srv/y"], "/static/ is named twice"),
        ("nginx", ["--static", "/m/=/srv/{release}/x", "--static", "/m/=/srv/x"], "/m/ is named twice"),
        ("nginx", ["--static", "/srv/a\nb"], "a line break"),
        ("nginx", ["--static", "/nonexistent/current/static"], "/nonexistent/current leads to one version"),
        ("nginx", ["--chdir", "/srv/app/current", "--static", "/srv/app/current"], "/srv/app/current leads to one"),
    ],
)
def test_a_place_of_static_files_that_cannot_be(capsys, target, words, message):
    assert main(["init", target, "shop:app", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_link_that_a_release_flips_is_no_place_of_static_files(capsys, tmp_path: Path):
    (tmp_path / "v1" / "static").mkdir(parents=True)
    (tmp_path / "live").symlink_to("v1")
    (tmp_path / "current").mkdir()
    words = ["nginx", "shop:app", "--chdir", str(tmp_path / "live"), "--static"]
    assert main(["init", *words, f"{tmp_path}/live/static"]) == 2
    assert f"{tmp_path}/live leads to one version" in capsys.readouterr().err
    assert main(["init", *words, f"{tmp_path}/v1/static"]) == 0
    assert main(["init", *words, f"{tmp_path}/current/static"]) == 0, "it is no link"
