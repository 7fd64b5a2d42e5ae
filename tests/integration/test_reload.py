"""--reload: saving a file releases, however an editor saves it."""

from __future__ import annotations

import os
import shutil

import pytest
from harness import NotReached, wait_for

# An import of a module in a package of its own, so that there is more than one directory.
CODE = """\
import basic
import shop.prices
VERSION = shop.prices.VERSION
inner = basic.make(VERSION)
def application(environ, start_response):
    if environ["PATH_INFO"] == "/late":
        import late.views
        start_response("200 OK", [])
        return [late.views.TEXT]
    return inner(environ, start_response)
"""


# Of a sitecustomize.py: as where the user has no instances left.
# A script that is the command line: the master runs without sitecustomize.
WITHOUT_INOTIFY = """\
import ctypes, sys
class Without(ctypes.CDLL):
    def inotify_init1(self, flags):
        ctypes.set_errno(24)
        return -1
ctypes.CDLL = Without
from reuseport.cli.main import main
sys.argv = ["reuseport", *sys.argv[3:]]
sys.exit(main(sys.argv[1:]))
"""

SECOND = 1_700_000_000


class Project:
    def __init__(self, server) -> None:
        self.server = server
        self.directory = server.write("project", whole=CODE)
        for package in ("shop", "late", "templates"):
            (self.directory / package).mkdir()
        self.prices = self.directory / "shop" / "prices.py"
        self.save(self.prices, version("one"))

    @staticmethod
    def save(path, text: str) -> None:
        """As most editors do: written beside, and renamed. All of it in the same second, as far as anybody can see."""
        new = path.with_name(f".{path.name}.new")
        new.write_text(text)
        os.utime(new, (SECOND, SECOND))
        new.rename(path)

    def start(self, *options: str):
        self.server.options = ("--reload", *options)
        self.server.start()
        return self

    def await_generation(self, number: int, name: str) -> None:
        self.server.settle(number)
        assert self.server.get().version == name


def version(name: str) -> str:
    return f"VERSION = {name!r}\n"


@pytest.fixture
def project(serve) -> Project:
    # Bytecode would be written by anybody but --reload itself.
    return Project(serve(env={"PYTHONDONTWRITEBYTECODE": ""}))


def test_a_saved_file_releases(project):
    project.start()
    project.await_generation(1, "one")
    assert "--reload is for development" in project.server.log.read_text()
    project.save(project.prices, version("two"))
    project.await_generation(2, "two")
    project.prices.write_text(version("xyz"))  # in place
    project.await_generation(3, "xyz")
    assert f"{project.prices} has changed: releasing (--reload)" in project.server.log.read_text()


def test_a_file_with_a_mistake_in_it_changes_nothing_until_it_is_saved_again(project):
    project.start()
    project.save(project.prices, "VERSION = 'two\n")
    wait_for(lambda: "generation 2 failed" in project.server.log.read_text(), "the failure")
    log = project.server.log.read_text()
    assert "SyntaxError" in log and "prices.py" in log
    project.await_generation(1, "one")
    project.save(project.prices, version("three"))
    project.await_generation(3, "three")


def test_a_mistake_in_a_directory_that_nothing_was_imported_from_before(project):
    project.start()
    (project.directory / "new").mkdir()
    broken = project.directory / "new" / "module.py"
    broken.write_text("1 +\n")
    project.save(project.prices, version("two") + "import new.module\n")
    wait_for(lambda: "generation 2 failed" in project.server.log.read_text(), "the failure")
    project.save(broken, "1 + 1\n")
    project.await_generation(3, "two")


def test_the_newest_save_wins_while_another_boots(project):
    project.start()
    project.save(project.prices, version("two") + "basic = __import__('basic')\nbasic.pass_gate('import')\n")
    project.server.gate("import").await_entered()
    project.save(project.prices, version("three"))
    project.await_generation(3, "three")
    assert "generation 2 gives way to a newer release" in project.server.log.read_text()


def test_what_a_worker_imports_late_counts(project):
    views = project.directory / "late" / "views.py"
    views.write_text("TEXT = b'early'\n")
    project.start("-w", "1")
    server = project.server
    assert server.get("/late").body == b"early"
    # The worker tells of it within a turn of its loop, and a release waits for a quiet moment after each save.
    number = iter(range(10**6))

    def heard() -> bool:
        project.save(views, f"TEXT = b'late {next(number)}'\n")
        try:
            return server.wait(lambda s: s.numbers != [1], within=1.0)
        except NotReached:
            return False

    wait_for(heard, "a save is noticed")
    wait_for(lambda: server.get("/late").body.startswith(b"late"), "the new text")


def test_other_files_count_where_it_is_said(project):
    project.start("--reload-extra-file", "templates", "--reload-extra-file", "shop.toml")
    (project.directory / "readme.txt").write_text("no")
    (project.directory / "templates" / "index.html").write_text("yes")
    project.await_generation(2, "one")
    (project.directory / "shop.toml").write_text("yes")
    project.await_generation(3, "one")


def test_a_directory_that_is_replaced_is_watched_again(project):
    project.start()
    shutil.copytree(project.directory / "shop", project.directory / "shop.new")
    (project.directory / "shop.new" / "prices.py").write_text(version("two"))
    (project.directory / "shop").rename(project.directory / "shop.old")
    (project.directory / "shop.new").rename(project.directory / "shop")
    project.server.wait(lambda s: s.is_settled() and s.serving > 1, "a release")
    wait_for(lambda: project.server.get().version == "two", "the new version")
    before = project.server.settle().serving
    project.save(project.prices, version("three"))
    project.server.wait(lambda s: s.is_settled() and s.serving > before, "a release")
    assert project.server.get().version == "three"


def test_without_inotify_files_are_looked_at(project):
    script = project.server.root / "without_inotify.py"
    script.write_text(WITHOUT_INOTIFY)
    project.server.flags = (str(script),)
    project.start()
    assert "no inotify (Too many open files)" in project.server.log.read_text()
    project.save(project.prices, version("two"))
    project.await_generation(2, "two")
    os.utime(project.prices)
    project.await_generation(3, "two")
