"""What decides about a release before and after it: room for it, its history, its probation."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest

from reuseport.core.model import SERVING, STANDBY, Cluster, Generation, Release, Zygote
from reuseport.master.history import FILE, KEPT, History
from reuseport.master.recipe import FROM_FILES, differs_on_disk, for_history, release_of
from reuseport.master.releases import ENOUGH, Releases, compare
from reuseport.master.room import free_memory, refusal
from reuseport.options import OptionError, Settings, load
from reuseport.options.checks import find_interpreter

GIB = 1 << 30


def test_there_is_room_where_nothing_speaks_against_it():
    assert refusal(["generation 1 is serving"], 0) == ""
    assert refusal(["generation 1 is serving"], 2) == ""
    assert refusal(["generation 1 is serving"], 0, needed=GIB, free=GIB) == ""
    assert refusal(["generation 1 is serving"], 0, needed=GIB, free=None) == ""


def test_a_refusal_names_the_figures_the_option_and_what_is_there():
    text = refusal(["generation 1 is draining", "generation 2 is serving"], 2)
    assert "3 generations" in text and "--max-generations" in text and "generation 1 is draining" in text
    text = refusal(["generation 2 is serving"], 0, needed=2 * GIB, free=GIB)
    assert "2,048 MiB" in text and "1,024 MiB" in text and "--no-check-memory" in text


def machine(root, available_kib: int, group: str = "", **limits: int | str):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 99999999 kB\nMemAvailable: {available_kib} kB\n")
    (root / "proc/self/cgroup").write_text(f"0::/{group}\n")
    place = root / "sys/fs/cgroup" / group
    place.mkdir(parents=True)
    for name, value in limits.items():
        (place / name.replace("_", ".")).write_text(f"{value}\n")
    return str(root)


def test_free_memory_is_what_the_machine_says(tmp_path):
    assert free_memory(machine(tmp_path, 4096)) == 4 << 20


def test_free_memory_is_what_the_cgroup_leaves(tmp_path):
    stat = f"anon 1\ninactive_file {1 << 20}"
    root = machine(tmp_path, 1 << 20, "app", memory_max=8 << 20, memory_current=6 << 20, memory_stat=stat)
    assert free_memory(root) == 3 << 20


def test_a_cgroup_without_a_limit_takes_nothing_away(tmp_path):
    root = machine(tmp_path, 4096, "app", memory_max="max", memory_current=6 << 20, memory_stat="")
    assert free_memory(root) == 4 << 20


def test_nobody_knows_where_proc_does_not_say(tmp_path):
    assert free_memory(str(tmp_path)) is None


def released(number: int, outcome: str = "serving") -> dict:
    return {"event": "release", "number": number, "outcome": outcome, "source": 0, "release": {"recipe": {}}}


def test_a_history_is_read_again(tmp_path):
    history = History(str(tmp_path))
    assert history.last == 0 and history.served() == {}
    history.add(released(7))
    history.add(released(8, "failed"))
    again = History(str(tmp_path))
    assert again.last == 8 and list(again.served()) == [7]
    assert "release" not in again.shown()[0]


def test_what_was_taken_back_is_nothing_to_go_back_to(tmp_path):
    history = History(str(tmp_path))
    history.add(released(1))
    history.add(released(2))
    history.add({"event": "taken back", "number": 2, "error": "errors"})
    assert list(history.served()) == [1] and history.last == 2


def test_torn_and_strange_lines_are_passed_over(tmp_path):
    whole = json.dumps(released(3))
    (tmp_path / FILE).write_text(f'{whole}\n[]\n{{"event": "of another version"}}\n{whole[:20]}')
    assert [line["number"] for line in History(str(tmp_path)).lines] == [3]


def test_a_line_behind_a_torn_one_is_not_lost_with_it(tmp_path):
    (tmp_path / FILE).write_text(json.dumps(released(3))[:20])
    History(str(tmp_path)).add(released(4))
    assert History(str(tmp_path)).last == 4


def test_a_long_history_is_cut_when_a_master_starts(tmp_path):
    (tmp_path / FILE).write_text("".join(json.dumps(released(n)) + "\n" for n in range(1, KEPT + 100)))
    assert len(History(str(tmp_path)).lines) == KEPT // 2
    again = History(str(tmp_path))
    assert len(again.lines) == KEPT // 2 and again.last == KEPT + 99


@pytest.mark.parametrize(
    ("before", "after", "worse"),
    [
        ((1000, 0), (1000, 40), False),
        ((1000, 0), (1000, 60), True),
        ((1000, 200), (1000, 240), False),
        ((1000, 200), (1000, 260), True),
        ((0, 0), (100, 6), True),
        ((0, 0), (ENOUGH - 1, ENOUGH - 1), False),
        ((0, 0), (0, 0), False),
    ],
)
def test_more_errors_than_before_are_a_verdict(before, after, worse):
    assert bool(compare(before, after, 0.05)) == worse


def test_a_verdict_says_both_shares():
    assert "12.0% of its 100 answers" in compare((1000, 1), (100, 12), 0.05)


def of(directory, python: str = "", source: int = 0) -> Release:
    interpreter = find_interpreter(load(["shop:app", "--python", python or sys.executable], {}, "/"), str(directory))
    return Release({"directory": str(directory), "interpreter": interpreter}, source=source)


@pytest.fixture
def current(tmp_path):
    for version in ("1", "2"):
        (tmp_path / version / "src").mkdir(parents=True)
    (tmp_path / "current").symlink_to("2")
    return tmp_path / "current"


def configured(chdir, *more: str) -> Settings:
    return load(["shop:app", "--chdir", str(chdir), "--python", sys.executable, *more], {}, "/")


def test_what_is_on_disk_may_be_the_version_that_serves(current):
    one, two = current.parent / "1", current.parent / "2"
    assert differs_on_disk(configured(current), of(two)) == ""
    assert differs_on_disk(configured(current), of(two), of(one)) == ""
    assert differs_on_disk(configured(two), of(two), of(one)) == ""


def test_a_link_that_still_leads_to_another_version_is_told_with_what_flips_it(current):
    one, two = current.parent / "1", current.parent / "2"
    text = differs_on_disk(configured(current), of(one))
    assert f"{current} still leads to {two}" in text and f"loaded from {one}" in text
    subprocess.run(["sh", "-ec", text.partition("To change that: ")[2]], check=True)
    assert current.resolve() == one and sorted(path.name for path in current.parent.iterdir()) == ["1", "2", "current"]


def test_a_link_within_the_path_is_told_without_a_command(current):
    text = differs_on_disk(configured(current / "src"), of(current.parent / "1" / "src"))
    assert f"{current / 'src'} still leads to {current.parent / '2' / 'src'}" in text and "ln -s" not in text


def test_another_directory_in_the_configuration_is_told(current):
    one, two = current.parent / "1", current.parent / "2"
    text = differs_on_disk(configured(two), of(one))
    assert text.startswith(f"--chdir is {two}") and str(one) in text


def test_versions_in_one_directory_are_told(current):
    text = differs_on_disk(configured(current), of(current.parent / "2"), of(current.parent / "2"))
    assert f"the files in {current.parent / '2'} are as they were" in text


def test_a_link_to_another_environment_is_told(current):
    """As --python /srv/venv/bin/python."""
    for name in ("a", "b"):
        (current.parent / name).mkdir()
        (current.parent / name / "python").symlink_to(sys.executable)
    venv = current.parent / "venv"
    venv.symlink_to("a")
    served = of(current.parent / "2", str(venv / "python"))
    settings = configured(current, "--python", str(venv / "python"))
    assert differs_on_disk(settings, served) == ""
    venv.unlink()
    venv.symlink_to("b")
    text = differs_on_disk(settings, served)
    assert f"--python leads to {current.parent / 'b' / 'python'}" in text
    assert f"runs on {current.parent / 'a' / 'python'}" in text


@pytest.mark.parametrize("stands_by", [True, False])
def test_a_rollback_reads_files_only_where_nothing_of_the_version_is_loaded(tmp_path, stands_by):
    """Generation 3 is version 1 again. Workers are forked from its zygote, and companions must get the same values."""
    settings = load(["app:app", "--env-file=.env"], {}, str(tmp_path))
    (tmp_path / ".env").write_text("A=then\n")
    first = release_of(settings)
    history = History(str(tmp_path))
    for number, source in ((1, 0), (2, 0), (3, 1), (4, 0)):
        release = asdict(replace(first, recipe=for_history(first.recipe), source=source))
        history.add({"event": "release", "number": number, "outcome": "serving", "source": source, "release": release})
    generations = {4: Generation(4, first, 1, state=SERVING)}
    if stands_by:
        generations[3] = Generation(3, replace(first, source=1), 1, state=STANDBY, zygote=Zygote(7, loaded=True))
    nothing = SimpleNamespace()
    releases = Releases(
        settings, {}, history, nothing, nothing, lambda: Cluster(generations), print, print, nothing, nothing
    )
    (tmp_path / ".env").write_text("A=now\n")
    back = releases._earlier(1)
    assert (back.source, back.recipe[FROM_FILES]) == (1, {"A": "then" if stands_by else "now"})
    (tmp_path / ".env").unlink()
    if stands_by:
        assert releases._earlier(1).recipe == back.recipe
    else:
        with pytest.raises(OptionError, match="no such file"):
            releases._earlier(1)
