"""The run directory: which files a master that starts removes."""

from __future__ import annotations

from reuseport.ipc.rundir import RunDir


def test_what_the_dead_have_left_is_removed_and_nothing_else(tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    for name in ("7.door", "8.door", "stacks-7.2.txt", "snapshot-7.j99.json.new", "lines-8.1.txt", "notes-7.2.txt"):
        (work / name).touch()
    (work / "6.door").mkdir()  # by the workers' user
    asked = []
    RunDir(str(tmp_path)).clear_up(lambda who: asked.append(who) or who.startswith("8."))
    assert {path.name for path in work.iterdir()} == {"6.door", "8.door", "lines-8.1.txt", "notes-7.2.txt"}
    assert sorted(asked) == ["6.0", "7.0", "7.2", "7.j99", "8.0", "8.1"]
