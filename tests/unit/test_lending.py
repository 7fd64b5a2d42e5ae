"""The packages that a release's interpreter takes from the server's environment, and its refusals."""

from __future__ import annotations

import configparser
import importlib
import json
import sys
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from reuseport import bootstrap
from reuseport.bootstrap import WANTED, Lender, Unusable
from reuseport.ipc import packages
from reuseport.ipc.inherited import ZYGOTE_VARIABLE
from reuseport.master import lending

CHECKOUT = Path(__file__).resolve().parents[2]
HERE = EXTENSION_SUFFIXES[0]


def package(directory: Path, name: str, text: str = "") -> Path:
    """A package or, with dots, one in a namespace; its __init__.py."""
    path = directory.joinpath(*name.split("."), "__init__.py")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def distribution(directory: Path, name: str, version: str, *requires: str) -> None:
    info = directory / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    head = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    (info / "METADATA").write_text(head + "".join(f"Requires-Dist: {one}\n" for one in requires))


@pytest.fixture
def own(tmp_path, monkeypatch) -> Iterator[Path]:
    """The release's environment, empty, in place of that of the tests."""
    directory = tmp_path / "own"
    directory.mkdir()
    monkeypatch.setattr(sys, "path", [str(directory), *(p for p in sys.path if p.endswith(("lib-dynload", VERSION)))])
    frozen = [one for one in sys.meta_path if getattr(one, "__module__", "").startswith("_frozen")]
    monkeypatch.setattr(sys, "meta_path", frozen)
    modules = dict(sys.modules)
    for name in modules:
        if name.partition(".")[0] in {one.partition(".")[0] for one in WANTED}:
            del sys.modules[name]
    importlib.invalidate_caches()
    yield directory
    for name in set(sys.modules) - set(modules):
        del sys.modules[name]
    sys.modules.update(modules)


VERSION = f"python3.{sys.version_info.minor}"


def server(directory: Path, *names: str, suffix: str = HERE) -> dict:
    """The server's environment, which has these packages, as the master tells of it."""
    places = {}
    for name in names:
        if name != bootstrap.NAMESPACE:
            package(directory, name)
        places[name] = str(directory.joinpath(*name.split(".")[:-1]))
    return {"python": "3.99.1", "suffix": suffix, "places": places}


def test_everything_is_lent_to_an_environment_that_has_nothing(own, tmp_path):
    offered = server(tmp_path / "server", *WANTED)
    assert bootstrap.lend(offered) == list(WANTED)
    for name in ("reuseport", "gevent", "zope.event", "zope.interface"):
        assert importlib.import_module(name).__file__.startswith(str(tmp_path / "server")), name
    assert sys.path[0] == str(own) and str(tmp_path / "server") not in sys.path


def test_what_the_environment_has_is_not_lent(own, tmp_path):
    for name in WANTED:
        if name != bootstrap.NAMESPACE:
            package(own, name)
    before = list(sys.meta_path)
    assert bootstrap.lend(server(tmp_path / "server", *WANTED)) == []
    assert sys.meta_path == before


def test_only_what_is_missing_is_lent_also_within_a_namespace(own, tmp_path):
    for name in ("gevent", "greenlet", "zope.interface", "zope.own"):
        package(own, name)
    offered = server(tmp_path / "server", *WANTED)
    package(tmp_path / "server", "zope.other")
    assert bootstrap.lend(offered) == ["reuseport", "zope.event", "setproctitle"]
    assert importlib.import_module("zope.event").__file__.startswith(str(tmp_path / "server"))
    for name in ("gevent", "zope.interface", "zope.own"):
        assert importlib.import_module(name).__file__.startswith(str(own)), name
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("zope.other")


def test_nothing_else_of_the_server_s_environment_can_be_imported(own, tmp_path):
    offered = server(tmp_path / "server", *WANTED)
    package(tmp_path / "server", "its_own")
    bootstrap.lend(offered)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("its_own")


def test_modules_within_a_lent_package_are_found_and_write_no_bytecode(own, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    offered = server(tmp_path / "server", *WANTED)
    (tmp_path / "server" / "reuseport" / "inner.py").write_text("VALUE = 7\n")
    package(own, "application")
    bootstrap.lend(offered)
    assert importlib.import_module("reuseport.inner").VALUE == 7
    importlib.import_module("application")
    assert not list((tmp_path / "server").rglob("*.pyc"))
    assert list(own.rglob("*.pyc")), "the application's own is written as ever"


def test_a_directory_that_an_uninstallation_left_behind_is_no_package(own, tmp_path):
    (own / "gevent" / "__pycache__").mkdir(parents=True)
    assert not bootstrap.has("gevent")
    assert "gevent" in bootstrap.lend(server(tmp_path / "server", *WANTED))
    assert importlib.import_module("gevent").__file__.startswith(str(tmp_path / "server"))


@pytest.mark.parametrize("has", [(), ("reuseport",), ("reuseport", "gevent")])
def test_what_is_compiled_for_another_python_is_not_lent(own, tmp_path, has):
    for name in has:
        package(own, name)
    missing = "greenlet" if "gevent" in has else "gevent"
    with pytest.raises(Unusable) as error:
        bootstrap.lend(server(tmp_path / "server", *WANTED, suffix=".cpython-399-x86_64-linux-gnu.so"))
    assert f"has no {missing}, and the server's is compiled for Python 3.99.1 (cpython-399" in str(error.value)
    assert f"{sys.executable} -m pip install {missing}" in str(error.value)


def test_another_python_with_its_own_gevent_gets_the_rest_that_is_not_compiled(own, tmp_path):
    package(own, "gevent")
    package(own, "greenlet")
    lent = bootstrap.lend(server(tmp_path / "server", *WANTED, suffix=".cpython-399-x86_64-linux-gnu.so"))
    assert lent == ["reuseport", "zope", "zope.event", "zope.interface"], "setproctitle can be done without"


def test_what_neither_environment_has_is_named(own, tmp_path):
    with pytest.raises(Unusable, match=r"neither .* nor the server's environment has gevent"):
        bootstrap.lend(server(tmp_path / "server", "reuseport"))


def test_the_remedy_keeps_the_greenlet_that_the_application_has(own):
    distribution(own, "greenlet", "2.0.2")
    assert bootstrap.remedy("gevent").endswith("-m pip install gevent greenlet==2.0.2")


@pytest.mark.parametrize(
    ("own_version", "requires", "warned"),
    [
        ("2.0.2", ("greenlet>=3.2.2; platform_python_implementation == 'CPython'", "zope.event"), True),
        ("3.2.2", ("greenlet>=3.2.2",), False),
        ("3.10.0", ("greenlet>=3.2.2",), False),
        ("2.0.0", ("greenlet (>=2.0.0) ; python_version < '3.12'", "greenlet (>=3) ; python_version > '3.11'"), False),
        ("2.0.0", (), False),
    ],
)
def test_a_greenlet_older_than_the_server_s_gevent_asks_for_is_told(own, tmp_path, own_version, requires, warned):
    package(own, "greenlet")
    distribution(own, "greenlet", own_version)
    distribution(tmp_path / "server", "gevent", "99.1", *requires)
    offered = {"places": {"gevent": str(tmp_path / "server")}}
    assert bool(text := bootstrap.too_old_greenlet(["reuseport", "gevent"], offered)) is warned
    assert not warned or f"3.2.2 or newer, and the application has {own_version}: install" in text
    assert bootstrap.too_old_greenlet(["reuseport"], offered) == "", "with a gevent of its own"


@pytest.mark.parametrize("takes", [False, True])
def test_a_package_that_would_drop_the_variables_of_files_is_refused(own, monkeypatch, takes):
    for name in WANTED:
        if name != bootstrap.NAMESPACE:
            package(own, name, "__version__ = '0'\n")
    package(own, "reuseport.worker")
    entry = own / "reuseport/entry.py"
    entry.write_text("began = []\nrun = began.append\n")
    if takes:
        (own / "reuseport/worker/filevariables.py").touch()
    monkeypatch.setenv(bootstrap.SERVER_VARIABLE, json.dumps(server(own)))
    monkeypatch.setenv(ZYGOTE_VARIABLE, json.dumps({"file_variables": True}))
    if takes:
        bootstrap.start("reuseport.zygote")
        assert importlib.import_module("reuseport.entry").began == ["reuseport.zygote"]
    else:
        with pytest.raises(Unusable, match="--env-file"):
            bootstrap.start("reuseport.zygote")


def test_both_sides_name_the_variable_alike():
    assert bootstrap.ZYGOTE_VARIABLE == ZYGOTE_VARIABLE


def test_the_master_tells_where_its_packages_lie_and_imports_none(tmp_path, own, monkeypatch):
    for name in WANTED:
        if name not in (bootstrap.NAMESPACE, "gevent"):
            package(own, name)
    (own / "gevent").mkdir()
    link = tmp_path / "link"
    link.symlink_to(own)
    monkeypatch.setattr(sys, "path", [str(link), *sys.path[1:]])
    offered = json.loads(lending.environment()[bootstrap.SERVER_VARIABLE])
    assert offered["suffix"] == HERE
    assert offered["places"] == {
        **dict.fromkeys(("reuseport", "greenlet", "zope", "setproctitle"), str(own)),
        **dict.fromkeys(("zope.event", "zope.interface"), str(own / "zope")),
    }, "links are followed, and an empty directory is no package"
    assert not [name for name in sys.modules if name.partition(".")[0] in ("gevent", "greenlet", "zope")]


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("", ""),
        ("warning\nTraceback ...\nImportError: x\n", ""),
        (f"noise\n{bootstrap.PREFIX}no gevent\n", f"{bootstrap.PREFIX}no gevent"),
        (f"{bootstrap.PREFIX}quoted by the application\nImportError: x\n", ""),
        ("Unknown option: -P\nusage: python3.10\nTry `python -h'\n", "its Python is too old"),
    ],
)
def test_a_refusal_is_the_last_line_of_a_boot(output, said):
    found = lending.refusal(output)
    assert said in found and bool(said) is bool(found)


def test_packages_in_words():
    importlib.import_module("gevent")
    found = packages.used(["reuseport"])
    assert found["reuseport"]["from"] == "server" and found["greenlet"]["from"] == "application"
    assert packages.is_lent(found) and not packages.is_lent(packages.used([]))
    text = packages.in_words(found)
    assert text.startswith("the server's reuseport ") and " and the application's gevent " in text
    assert packages.in_words({}) == "" and not packages.is_lent({}), "a master of another version says nothing"


def test_the_finder_answers_for_nothing_but_what_it_lends(tmp_path):
    finder = Lender({"gevent": str(tmp_path)})
    assert finder.find_spec("json") is None and finder.find_spec("geventhttpclient") is None


# --- what setup.cfg asks for


def bounds() -> dict[tuple[str, int], str]:
    """The oldest version of each package by Python's minor version, as setup.cfg has it."""
    config = configparser.ConfigParser()
    config.read(CHECKOUT / "setup.cfg")
    found = {}
    for line in filter(None, config["options"]["install_requires"].splitlines()):
        requirement, _, marker = line.partition(";")
        name, _, version = requirement.strip().partition(">=")
        since = int(marker.rpartition(".")[2].strip('" ')) if marker else 11
        found.update({(name, minor): version for minor in range(since, 16)})
    return found


def test_the_oldest_versions_that_are_tested_are_those_that_setup_cfg_takes():
    tested = {}
    for line in (CHECKOUT / "tests" / "oldest.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        requirement, _, marker = line.partition("; ")
        name, _, version = requirement.partition("==")
        _, how, bound = marker.replace('"', "").split()
        minor = int(bound.partition(".")[2]) - (how == "<")
        tested[name, minor] = version
    for (name, minor), version in bounds().items():
        exact = tested[name, minor]
        if name == "gevent":
            assert exact == version or exact == f"{version}.0", (name, minor)
        else:
            assert bootstrap.numbers(exact) >= bootstrap.numbers(version), (name, minor)
