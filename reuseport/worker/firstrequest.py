"""What a framework imports at its first request, imported with the application instead.

Django reads its URLconf, and with it all views, at the first request. Where each worker imports them for itself, the
workers share none of that memory, and the first request of each waits: for seconds where the application is large, and
after a rollback, which warms nothing up, in all workers at once. A mistake there passes the release, and every request
is answered with 500.
"""

from __future__ import annotations

import sys


def urlconf() -> str:
    """The name of the URLconf that Django will import (ROOT_URLCONF); "" where this is no application of Django's."""
    django = sys.modules.get("django.conf")
    if django is None or "django.core.handlers.wsgi" not in sys.modules or not django.settings.configured:
        return ""
    found = getattr(django.settings, "ROOT_URLCONF", None) or ""
    return found if isinstance(found, str) else getattr(found, "__name__", "")


def import_urlconf() -> None:
    """Import it. Raises what its import raises."""
    _ = sys.modules["django.urls"].get_resolver().url_patterns
