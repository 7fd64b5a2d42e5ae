"""Which files a generation remembers, and when it says that one of them has changed."""

from __future__ import annotations

import os
import sys
from types import ModuleType

import pytest

from reuseport.worker import forksafety
from reuseport.worker.forksafety import Witness


def touch(path, text="one"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "name",
    ["views.py", "shop/views.py", "a/b/c/d/late.py", "migrations/0001_initial.py", "envelope/mail.py", "lib/pdf.py"],
)
def test_a_file_that_nothing_has_imported_yet(tmp_path, name):
    path = touch(tmp_path / name)
    witness = Witness(str(tmp_path))
    assert witness.changed() == ""
    touch(path, "another")
    assert witness.changed() == str(path)
    assert witness.changed() == "", "it is told once"


def test_a_file_that_has_gone(tmp_path):
    path = touch(tmp_path / "late.py")
    witness = Witness(str(tmp_path))
    path.unlink()
    assert witness.changed() == str(path)


@pytest.mark.parametrize(
    "name",
    [
        ".git/hooks/pre.py",
        ".venv/lib/python3.11/site-packages/flask/app.py",
        "venv/lib/python3.11/site-packages/flask/app.py",
        "node_modules/gyp/gyp.py",
        "shop/__pycache__/views.py",
        "vendor/site-packages/one.py",
        "usr/lib/python3/dist-packages/one.py",
        "notes.txt",
    ],
)
def test_a_file_that_the_application_does_not_import_by_itself(tmp_path, name):
    path = touch(tmp_path / name)
    witness = Witness(str(tmp_path))
    touch(path, "another")
    assert witness.changed() == ""


@pytest.mark.parametrize("mark", ["env/pyvenv.cfg", "conda/conda-meta/history"])
def test_an_environment_of_any_name_is_left_out(tmp_path, mark):
    touch(tmp_path / mark)
    path = touch(tmp_path / mark.partition("/")[0] / "bin" / "tool.py")
    witness = Witness(str(tmp_path))
    touch(path, "another")
    assert witness.changed() == ""


def test_an_application_whose_directory_is_itself_an_environment(tmp_path):
    touch(tmp_path / "pyvenv.cfg")
    path = touch(tmp_path / "shop" / "views.py")
    witness = Witness(str(tmp_path))
    touch(path, "another")
    assert witness.changed() == str(path)


def test_a_link_is_not_followed_out_of_the_application_nor_round_in_circles(tmp_path):
    path = touch(tmp_path / "outside" / "media.py")
    touch(tmp_path / "app" / "shop.py")
    (tmp_path / "app" / "media").symlink_to(path.parent)
    (tmp_path / "app" / "again").symlink_to(tmp_path / "app")
    witness = Witness(str(tmp_path / "app"))
    touch(path, "another")
    assert witness.changed() == ""


def test_other_directories_that_it_imports_from(tmp_path):
    path = touch(tmp_path / "src" / "late.py")
    witness = Witness(str(tmp_path / "app"), str(tmp_path / "src"))
    touch(path, "another")
    assert witness.changed() == str(path)


def test_an_imported_module_counts_however_large_the_directory_is(tmp_path, monkeypatch):
    monkeypatch.setattr(forksafety, "ENTRIES", 0)
    path = touch(tmp_path / "deep" / "shop.py")
    module = ModuleType("test_witness_shop")
    module.__file__ = str(path)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    witness = Witness(str(tmp_path))
    touch(path, "another")
    assert witness.changed() == str(path)


def test_a_large_directory_costs_a_bounded_number_of_looks(tmp_path, monkeypatch):
    monkeypatch.setattr(forksafety, "ENTRIES", 30)
    monkeypatch.setattr(forksafety, "FILES", 10)
    near = touch(tmp_path / "near.py")
    for number in range(40):
        touch(tmp_path / "media" / f"{number:02}.py")
        touch(tmp_path / f"d{number:02}" / "one.py")
    looked = []
    stat = os.stat
    monkeypatch.setattr(forksafety.os, "stat", lambda path: looked.append(path) or stat(path))
    witness = Witness(str(tmp_path))
    assert len(looked) <= 10
    monkeypatch.undo()
    touch(near, "another")
    assert witness.changed() == str(near), "the uppermost files come first"


def test_a_look_soon_after_another_is_left_out_where_that_was_asked_for(tmp_path):
    path = touch(tmp_path / "late.py")
    witness = Witness(str(tmp_path))
    touch(path, "another")
    assert witness.changed(rest=3600) == ""
    assert witness.changed() == str(path)


def test_a_directory_that_cannot_be_read(tmp_path):
    assert Witness(str(tmp_path / "nowhere")).changed() == ""
