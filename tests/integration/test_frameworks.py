"""Real frameworks under a real master, asked by real clients, with a release in between that their sessions outlive."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import urlencode

import pytest
from harness import APPS

FRAME = "import frames\napplication = frames.{frame}_app({version!r})\n"
# Its mistake lies behind the first request, as in a urls.py. Django in production prints no exception.
COLD = {
    "django": """
import django.conf, django.urls, django.core.wsgi, types
def view(request):
    return {}["stock"]
urls = types.ModuleType("urls")
urls.urlpatterns = [django.urls.path("", view)]
django.conf.settings.configure(DEBUG=False, ALLOWED_HOSTS=["*"], ROOT_URLCONF=urls, SECRET_KEY="-")
application = django.core.wsgi.get_wsgi_application()
""",
    "flask": """
import flask
application = flask.Flask("cold")
@application.get("/")
def view():
    return {}["stock"]
""",
}
ADMIN = "import admin\napplication = admin.make({version!r})\n"


@pytest.mark.parametrize("frame", ["flask", "falcon", "bottle"])
def test_a_framework_through_a_release(serve, frame):
    pytest.importorskip(frame)
    urllib3 = pytest.importorskip("urllib3")
    server = serve(workers=1)
    server.write("one", whole=FRAME.format(frame=frame, version="one"))
    server.start()
    with urllib3.HTTPConnectionPool(*server.address.split(":"), maxsize=1, retries=False) as pool:
        for version in ("one", "two"):
            assert pool.request("GET", "/greet?who=you").json() == {"version": version, "who": "you"}
            assert pool.request("POST", "/greet", json={"a": [1, "ü"]}).json() == {"got": {"a": [1, "ü"]}}
            assert pool.request("PUT", "/upload", body=bytes(300_000)).json() == {"length": 300_000}
            pieces = iter([b"x" * 5000] * 20)
            assert pool.request("PUT", "/upload", body=pieces, chunked=True).json() == {"length": 100_000}
            assert pool.request("GET", "/stream").data == b"onetwothree"
            assert pool.request("GET", "/file").data == (APPS / "frames.py").read_bytes()
            assert pool.request("GET", "/none").status == 404
            assert pool.request("HEAD", "/greet").data == b""
            if version == "one":
                server.write("two", whole=FRAME.format(frame=frame, version="two"))
                server.renew()
        assert pool.num_connections == 1  # kept through all of it, the release included


def test_the_asker_of_a_release_gets_the_traceback_of_a_failed_warm_up(serve, tmp_path):
    """Of whichever framework, and wherever the log goes."""
    server = serve("--warmup", "/", "--log-file", str(tmp_path / "log"), workers=1).start()
    for frame, code in COLD.items():
        pytest.importorskip(frame)
        server.write(frame, whole=code)
        outcome = server.release()
        assert outcome.exit == 1
        assert outcome.err.count("KeyError: 'stock'") == 1, (frame, outcome.err)
        assert re.search(r'app.py", line \d+, in view', outcome.err)


def token(text: str) -> str:
    return re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', text)[1]


def test_djangos_admin_through_a_release(serve, tmp_path):
    pytest.importorskip("django")
    requests = pytest.importorskip("requests")
    server = serve(workers=2, env={"TEST_DATABASE": str(tmp_path / "site.sqlite")})
    server.write("one", whole=ADMIN.format(version="one"))
    server.start()
    url = f"http://{server.address}"
    with requests.Session() as session:
        page = session.get(f"{url}/admin/", timeout=20)
        assert page.url.endswith("/admin/login/?next=/admin/")
        form = {"username": "root", "password": "secret", "next": "/admin/"}
        assert session.post(page.url, data=form, timeout=20).status_code == 403
        assert session.post(page.url, data={**form, "csrfmiddlewaretoken": "forged"}, timeout=20).status_code == 403
        # Chunked, as some proxies send it: Django reads nothing without a length.
        body = urlencode({**form, "csrfmiddlewaretoken": token(page.text)}).encode()
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        page = session.post(page.url, data=iter([body[:30], body[30:]]), headers=kind, timeout=20)
        assert "Site administration" in page.text

        style = re.search(r'href="(/static/admin/css/base[^"]*\.css)"', page.text)[1]
        import django

        file = Path(django.__file__).parent / "contrib/admin/static" / style.removeprefix("/static/")
        assert session.get(url + style, timeout=20).content == file.read_bytes()

        add = f"{url}/admin/auth/user/add/"
        form = session.get(add, timeout=20).text  # fetched from the old version, sent to the new one
        server.write("two", whole=ADMIN.format(version="two"))
        server.renew()
        assert session.get(f"{url}/version", timeout=20).text == "two"
        fields = {"username": "ada", "password1": "lovelace-1815", "password2": "lovelace-1815"}
        fields["usable_password"] = "true"
        page = session.post(add, data={**fields, "csrfmiddlewaretoken": token(form)}, timeout=20)
        assert page.status_code == 200 and "was added successfully" in page.text
        assert "ada" in session.get(f"{url}/admin/auth/user/", timeout=20).text


DAV = """\
import os
from wsgidav.wsgidav_app import WsgiDAVApp
application = WsgiDAVApp({
    "provider_mapping": {"/": os.environ["TEST_SHARE"]},
    "simple_dc": {"user_mapping": {"*": True}},
    "lock_storage": True, "property_manager": True, "verbose": 1,
    "http_authenticator": {"accept_basic": True, "accept_digest": False, "default_to_digest": False},
})
"""


@pytest.mark.skipif(not shutil.which("litmus"), reason="needs litmus (Debian: apt install litmus)")
def test_webdav_by_litmus(serve, tmp_path):
    pytest.importorskip("wsgidav")
    server = serve(workers=1, env={"TEST_SHARE": str(tmp_path)})
    server.write("one", whole=DAV)
    server.start()
    done = subprocess.run(
        ["litmus", "-k", f"http://{server.address}/"], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    failed = [line for line in done.stdout.splitlines() if "FAIL" in line]
    summaries = re.findall(r"summary for `(\w+)': of (\d+) tests run: (\d+) passed", done.stdout)
    assert {name for name, *_ in summaries} >= {"basic", "copymove", "props", "locks", "http"}, (
        done.stdout + done.stderr
    )
    # What fails under every server is wsgidav's own: the same litmus against its cheroot says so.
    assert failed == [], failed


def asked(url: str, command: str) -> subprocess.CompletedProcess[str]:
    words = {
        "curl": ["curl", "-sS", "--fail", url, url, url],
        "ab": ["ab", "-q", "-k", "-n", "2000", "-c", "20", url],
        "wrk": ["wrk", "-t1", "-c20", "-d1s", url],
    }
    return subprocess.run(words[command], capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize("command", ["curl", "ab", "wrk"])
def test_a_client_on_the_command_line(server, command):
    if not shutil.which(command):
        pytest.skip(f"needs {command}")
    done = asked(f"http://{server.address}/", command)
    assert done.returncode == 0, done.stderr
    if command == "ab":
        assert re.search(r"Failed requests: +0\n", done.stdout) and "Non-2xx" not in done.stdout, done.stdout
        assert re.search(r"Keep-Alive requests: +2000\n", done.stdout), done.stdout
    elif command == "wrk":
        assert "Socket errors" not in done.stdout and "Non-2xx" not in done.stdout, done.stdout
    else:
        assert done.stdout.count('"version"') == 3
