"""What is taken for a WSGI application, and what is said of everything else that people name by mistake."""

from __future__ import annotations

import functools
import os
import sys

import pytest

from reuseport.worker import application


class Framework:
    def __call__(self, environ, start_response):
        return []


class Asynchronous:
    async def __call__(self, scope, receive, send): ...


class Iterated:
    """As in PEP 3333: each request is an instance."""

    def __init__(self, environ, start_response): ...


def plain(environ, start_response):
    return []


def decorated(inner):
    @functools.wraps(inner)
    def outer(environ, start_response):
        return inner()

    return outer


@pytest.mark.parametrize(
    "app",
    [
        plain,
        Framework(),
        Framework().__call__,
        Iterated,
        functools.partial(lambda prefix, environ, start_response: [], "/"),
        decorated(list),
        lambda *args: [],
        lambda environ, start_response, more=None: [],
        {}.__class__.fromkeys,  # in C
    ],
)
def test_what_can_serve_is_taken(app):
    application.check(app, "it", "it()")


async def coroutine(scope, receive, send): ...


async def coroutine_of_two(environ, start_response): ...


def factory(config=None): ...


def factory_of_two(config=None, debug=False): ...


@pytest.mark.parametrize(
    ("app", "why"),
    [
        (5, "it is no WSGI application: int is not callable"),
        (coroutine, "it is an ASGI application, and"),
        (coroutine_of_two, "it is an ASGI application, and"),
        (Asynchronous(), r"it is an ASGI application \(Asynchronous\), and"),
        (Framework, r"seems to make one: m:it\(\), with \(\), calls it"),
        (factory, r"seems to make one: m:it\(\)"),
        (factory_of_two, r"seems to make one: m:it\(\)"),
        (lambda environ: [], "it cannot be called with environ and start_response"),
        (lambda a, b, c: [], "it cannot be called with environ and start_response"),
    ],
)
def test_what_cannot_serve_is_refused(app, why):
    with pytest.raises(application.LoadError, match=why):
        application.check(app, "it", "m:it()")


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write the files of an application, in a directory that becomes the working one."""
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name, text=""):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize(
    "text",
    [
        "def make(): return print",
        "import functools\n@functools.cache\ndef make(): return print",
        "def with_settings(f): return lambda *args, **kwargs: f(*args, **kwargs)\n"
        "@with_settings\ndef make(): return print",
    ],
)
def test_a_factory_may_be_cached_or_decorated(module, text):
    module("shop.py", text)
    assert application.load("shop:make()", False) is print
    assert application.load("shop:make", True) is print


@pytest.mark.parametrize(
    ("text", "name", "why"),
    [
        ("def app(environ, start_response): ...", "shop", "has no 'application'; did you mean shop:app?"),
        ("def create_app(): ...", "shop:app", "did you mean shop:create_app()?"),
        ("def make_app(): ...", "shop", "did you mean shop:make_app()?"),
        ("def aplication(e, s): ...", "shop:application", "did you mean shop:aplication?"),
        ("", "shop:app", "has no 'app'"),
        ("def app(environ, start_response): ...", "shop:app()", "leave out the () behind it"),
        ("def app(): return 5", "shop:app()", "what 'app' returned is no WSGI application: int"),
        ("def app(): ...", "shop:app", "shop:app(), with (), calls it"),
    ],
)
def test_a_wrong_name_is_told_with_the_right_one(module, text, name, why):
    module("shop.py", text)
    with pytest.raises(application.LoadError) as error:
        application.load(name, False)
    assert why in str(error.value)


def test_a_factory_is_called(module):
    module("shop.py", "def create_app(config=None):\n    return lambda environ, start_response: []\n")
    assert callable(application.load("shop:create_app()", False))
    assert callable(application.load("shop:create_app", True))


def test_a_module_that_is_not_there_is_looked_for_where_packages_lie(module):
    module("src/shop/wsgi.py")
    with pytest.raises(application.LoadError, match=r"no module 'shop' in .*; it lies in src: --pythonpath src"):
        application.load("shop.wsgi:app", False)
    with pytest.raises(application.LoadError, match=f"in {os.getcwd()} or elsewhere on sys.path; --chdir says where"):
        application.load("nosuch", False)
