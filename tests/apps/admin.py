"""A Django site in one file: its admin, with sessions and users in SQLite, and static files by a view of its own."""

from __future__ import annotations

import os
from pathlib import Path

import django
from django.conf import settings
from django.core.management import call_command

DATABASE = os.environ["TEST_DATABASE"]


def make(version: str):
    settings.configure(
        DEBUG=False,
        SECRET_KEY="for tests only",
        ALLOWED_HOSTS=["127.0.0.1"],
        ROOT_URLCONF=__name__,
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": DATABASE}},
        INSTALLED_APPS=[
            "django.contrib.admin",
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "django.contrib.sessions",
            "django.contrib.messages",
            "django.contrib.staticfiles",
        ],
        MIDDLEWARE=[
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.middleware.csrf.CsrfViewMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
            "django.contrib.messages.middleware.MessageMiddleware",
        ],
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "APP_DIRS": True,
                "OPTIONS": {
                    "context_processors": [
                        "django.template.context_processors.request",
                        "django.contrib.auth.context_processors.auth",
                        "django.contrib.messages.context_processors.messages",
                    ]
                },
            }
        ],
        STATIC_URL="/static/",
        PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
        DEFAULT_AUTO_FIELD="django.db.models.AutoField",
    )
    django.setup()
    if not Path(DATABASE).exists():
        from django.contrib.auth.models import User
        from django.db import connections

        call_command("migrate", verbosity=0)
        User.objects.create_superuser("root", "root@example.com", "secret")
        connections.close_all()  # nothing open is left to the fork

    from django.contrib import admin
    from django.contrib.staticfiles.views import serve
    from django.core.wsgi import get_wsgi_application
    from django.http import HttpResponse
    from django.urls import path, re_path

    globals()["urlpatterns"] = [
        path("admin/", admin.site.urls),
        path("version", lambda request: HttpResponse(version)),
        re_path(r"^static/(?P<path>.+)$", serve, {"insecure": True}),
    ]
    return get_wsgi_application()
