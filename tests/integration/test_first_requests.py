"""Django's URLconf, which Django imports at its first request, is imported with the application."""

from __future__ import annotations

import pytest

pytest.importorskip("django")

WSGI = """
import os
import basic
from django.conf import settings
from django.core.wsgi import get_wsgi_application

settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF="urls", SECRET_KEY="x")
inner = get_wsgi_application()
serve = basic.make({version!r})

def application(environ, start_response):
    return (inner if environ["PATH_INFO"] == "/page" else serve)(environ, start_response)
"""
URLS = """
import os
from django.http import JsonResponse
from django.urls import path

IMPORTED_BY = os.getpid()
urlpatterns = [path("page", lambda request: JsonResponse({"by": IMPORTED_BY, "pid": os.getpid()}))]
"""


def write(server, version: str, urls: str) -> None:
    directory = server.write(version, code=WSGI.format(version=version))
    (directory / "urls.py").write_text(urls)


def test_the_zygote_imports_it_and_a_broken_one_fails_the_release(serve):
    server = serve()
    write(server, "one", URLS)
    server.start()
    zygote = server.status().current["zygote"]["pid"]
    page = server.get("/page").json
    assert page["by"] == zygote and page["pid"] in server.status().pids()
    write(server, "two", "import no_such_module")
    outcome = server.release()
    assert outcome.exit == 1
    assert "importing Django's ROOT_URLCONF, urls: ModuleNotFoundError" in outcome.err
    assert server.get("/page").json["by"] == zygote
    write(server, "three", URLS)
    assert server.release("--wait", "drained").exit == 0
    assert server.cli("rollback").exit == 0
    assert server.get("/page").json["by"] == zygote, "it stood by, with what it had imported"


def test_it_can_be_left_to_the_first_request(serve):
    server = serve("--lazy-imports", "keep", workers=1)
    write(server, "one", URLS)
    server.start()
    page = server.get("/page").json
    assert page["by"] == page["pid"]
