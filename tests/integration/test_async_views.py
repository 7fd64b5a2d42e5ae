"""asyncio within requests: `asyncio.run`, Flask's and Django's async views, several of them at the same time."""

from __future__ import annotations

import pytest
from harness import PATIENCE

pytest.importorskip("flask")
pytest.importorskip("django")

APP = """
import asyncio
import os
import time
from basic import enter, is_open

async def wait(name):
    enter(name)
    while not is_open(name):
        await asyncio.sleep(0.01)
    time.sleep(0.01)  # what should not be in a coroutine, and is
    assert asyncio.current_task() is not None
    await asyncio.gather(asyncio.sleep(0.01), asyncio.to_thread(time.sleep, 0.01))
    return name

# Flask
import flask
flask_app = flask.Flask("shop")

@flask_app.get("/flask")
async def view():
    return await wait("flask")

# Django, with what an async view calls of the ORM
from django.conf import settings
settings.configure(
    SECRET_KEY="x", ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__,
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
)
import django
django.setup()
from asgiref.sync import sync_to_async
from django.core.wsgi import get_wsgi_application
from django.db import connection
from django.http import HttpResponse
from django.urls import path

def ask():
    with connection.cursor() as cursor:
        return cursor.execute("select 42").fetchone()[0]

async def django_view(request):
    name = await wait("django")
    return HttpResponse(f"{name} {await sync_to_async(ask)()}")

urlpatterns = [path("django", django_view), path("ordinary", lambda request: HttpResponse(f"ordinary {ask()}"))]
django_app = get_wsgi_application()

def application(environ, start_response):
    where = environ["PATH_INFO"].strip("/")
    if where in ("django", "ordinary"):
        return django_app(environ, start_response)
    if where == "flask":
        return flask_app(environ, start_response)
    answer = asyncio.run(wait("run"))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [answer.encode()]
"""


def test_requests_run_event_loops_side_by_side(serve):
    server = serve(workers=1)
    server.write("one", APP)
    server.start()
    expected = {"run": "run", "flask": "flask", "django": "django 42"}
    for name in expected:
        server.gate(name).open()
        assert server.get(f"/{name}").status == 200, "once alone, so that everything is imported"
        server.gate(name).close()
    asked = [(name, server.get_later(f"/{name}")) for name in [*expected] * 3]
    for name in expected:
        server.gate(name).await_entered(1 + 3)
    ordinary = server.get("/ordinary")
    assert (ordinary.status, ordinary.body) == (200, b"ordinary 42"), "it has no loop, so Django lets it ask"
    for name in expected:
        server.gate(name).open()
    answers = [(name, request.result(PATIENCE)) for name, request in asked]
    assert [(answer.status, answer.body.decode()) for _, answer in answers] == [
        (200, expected[name]) for name, _ in answers
    ]
