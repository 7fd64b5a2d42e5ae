"""What a supervisor is told, what it says in the environment, the sockets it passes, and files that are touched."""

from __future__ import annotations

import codecs
import os
import socket
import subprocess
import traceback
from contextlib import closing
from pathlib import Path

import pytest

from reuseport.core.model import DRAINING, LOADING, SERVING, STANDBY, Cluster, Generation, Release
from reuseport.master import unit
from reuseport.master.notify import STATUS, Said, status_line, what_to_say
from reuseport.master.passed import STORED, VARIABLES, Supervision, sockets_of, take
from reuseport.master.slots import Passed, SlotError, Slots
from reuseport.master.touched import Touched

PID = 4711


def cluster(stopping: str = "", pending: bool = False, probation: float = 0.0, **states: str) -> Cluster:
    """cluster(g1=SERVING, g2=LOADING): generations by their states."""
    release = Release({"label": "v"}, probation=probation)
    generations = {int(n[1:]): Generation(int(n[1:]), release, 2, state) for n, state in states.items()}
    return Cluster(generations, max(generations, default=0), stopping=stopping, pending=release if pending else None)


def told(cluster: Cluster, before: Said, asked: int = 0, now: float = 100.0) -> tuple[Said, list[str]]:
    said, words = what_to_say(cluster, asked, before.status, before, now)
    return said, [word.partition("=")[0] for word in words]


SERVES = Said(ready=True)


def test_ready_is_said_once_and_not_before_a_generation_serves():
    said, words = told(cluster(g1=LOADING), Said())
    assert words == []
    said, words = told(cluster(g1=SERVING), said)
    assert words == ["READY"]
    assert told(cluster(g1=SERVING), said) == (said, [])


def test_a_replaced_first_boot_is_no_release():
    said, words = told(cluster(g2=LOADING), Said(), asked=1)
    assert words == []
    assert told(cluster(g2=SERVING), said, asked=1)[1] == ["READY"]


@pytest.mark.parametrize("after", [cluster(g1=SERVING), cluster(g1=DRAINING, g2=SERVING)])
def test_a_release_begins_and_ends_whatever_comes_of_it(after):
    said, words = told(cluster(g1=SERVING, g2=LOADING), SERVES, asked=1)
    assert words == ["RELOADING"]
    assert told(cluster(g1=SERVING, g2=LOADING), said, asked=1)[1] == []
    said, words = told(after, said, asked=1)
    assert words == ["READY"]
    assert told(after, said, asked=1)[1] == []


def test_a_refused_release_begins_and_ends_at_once():
    said, words = told(cluster(g1=SERVING), SERVES, asked=1)
    assert words == ["RELOADING", "READY"]
    assert told(cluster(g1=SERVING), said, asked=1)[1] == []


def test_a_release_asked_for_while_another_boots_begins_anew():
    said, _ = told(cluster(g1=SERVING, g2=LOADING), SERVES, asked=1)
    said, words = told(cluster(g1=SERVING, g3=LOADING), said, asked=2)
    assert words == ["RELOADING"]
    assert told(cluster(pending=True, g1=SERVING), said, asked=2)[1] == []
    assert told(cluster(g3=SERVING), said, asked=2)[1] == ["READY"]


def test_a_release_ends_with_its_probation():
    said, _ = told(cluster(g1=SERVING, g2=LOADING), SERVES, asked=1)
    on_probation = cluster(probation=200.0, g1=STANDBY, g2=SERVING)
    said, words = told(on_probation, said, asked=1, now=100.0)
    assert words == []
    assert told(on_probation, said, asked=1, now=201.0)[1] == ["READY"]


def test_the_first_generation_is_ready_in_spite_of_its_probation():
    assert told(cluster(probation=200.0, g1=SERVING), Said())[1] == ["READY"]


def test_stopping_is_the_last_word():
    said, words = told(cluster(stopping="graceful", g1=DRAINING), SERVES)
    assert words == ["STOPPING"]
    assert told(cluster(stopping="graceful", g1=DRAINING), said, asked=3)[1] == []


def test_the_time_of_a_release_is_in_the_same_datagram_and_so_is_the_status():
    _, words = what_to_say(cluster(g1=SERVING, g2=LOADING), 1, "text", SERVES, 12.5)
    assert words == ["RELOADING=1\nMONOTONIC_USEC=12500000\nSTATUS=text"]
    assert what_to_say(cluster(g1=SERVING), 0, "text", SERVES._replace(status="text"), 12.5)[1] == []
    assert what_to_say(cluster(g1=SERVING), 0, "new", SERVES._replace(status="text"), 12.5)[1] == ["STATUS=new"]


def test_a_status_line_is_one_line_and_bounded():
    many = cluster(g1=DRAINING, g2=DRAINING, g3=SERVING)
    line = status_line(many, lambda n: (n - 1, ["job 'export' of acme"]))
    assert line == (
        "generation 3 (v) serves; generation 2 (v) drains: 1 request, job 'export' of acme; "
        "generation 1 (v) drains: job 'export' of acme"
    )
    assert status_line(cluster(g1=DRAINING), lambda n: (0, [])) == "generation 1 (v) is leaving"
    evil = status_line(many, lambda n: (0, ["job \nREADY=1\n", "ü" * 1000]))
    assert "\n" not in evil
    assert len(evil.encode()) <= STATUS


# --- the environment ------------------------------------------------------------------------------------------------


def test_everything_is_taken_out_of_the_environment_also_what_is_somebody_elses():
    environ = {**dict.fromkeys(VARIABLES, "1"), "HOME": "/"}
    take(environ, PID)
    assert environ == {"HOME": "/"}


def test_what_is_addressed_to_this_process():
    environ = {
        "NOTIFY_SOCKET": "@abstract",
        "WATCHDOG_USEC": "2500000",
        "WATCHDOG_PID": str(PID),
        "LISTEN_PID": str(PID),
        "LISTEN_FDS": "3",
        "LISTEN_FDNAMES": "web:admin",
        "FDSTORE": "16",
    }
    assert take(environ, PID) == Supervision("@abstract", 2.5, ((3, "web"), (4, "admin"), (5, "")), True)


@pytest.mark.parametrize(
    "environ",
    [
        {"LISTEN_PID": "1", "LISTEN_FDS": "3"},
        {"LISTEN_FDS": "3"},
        {"WATCHDOG_PID": "1", "WATCHDOG_USEC": "5"},
        {"WATCHDOG_USEC": "soon"},
        {"NOTIFY_SOCKET": "relative"},
        {"FDSTORE": "0"},
    ],
)
def test_what_is_not_for_this_process_means_nothing(environ):
    assert take(dict(environ), PID) == Supervision()


def test_a_socket_out_of_the_store_shows_that_there_is_one():
    """systemd before 254 sets no $FDSTORE."""
    environ = {"LISTEN_PID": str(PID), "LISTEN_FDS": "2", "LISTEN_FDNAMES": "web:reuseport-slot"}
    assert take(dict(environ), PID).store
    assert not take({**environ, "LISTEN_FDNAMES": "web:admin"}, PID).store
    assert not take({**environ, "LISTEN_PID": "1"}, PID).store


@pytest.mark.parametrize(
    ("cgroups", "asked"),
    [
        ("0::/system.slice/shop.service\n", "shop.service"),
        ("0::/system.slice/system-shop.slice/shop@1.service/main\n", "shop@1.service"),
        ("12:pids:/x.service\n1:name=systemd:/system.slice/shop.service\n0::/system.slice/y.service\n", "shop.service"),
        ("2:pids:/x.service\n1:name=systemd:/\n0::/system.slice/shop.service\n", "shop.service"),
        ("0::/user.slice/user-7.slice/user@7.service/app.slice/shop.service\n", "--user shop.service"),
        ("0::/user.slice/user-7.slice/user@7.service/app.slice/run-1.scope\n", None),
        ("0::/\n", None),
        ("", None),
    ],
)
def test_the_unit_whose_store_is_asked_for(cgroups, asked):
    found = unit.question(cgroups)
    if asked is None:
        assert found is None
    else:
        *user, name = asked.split()
        assert found == ["systemctl", *user, "show", "--property=FileDescriptorStoreMax", "--", name]


def test_systemd_s_answer():
    answers = {"FileDescriptorStoreMax=512\n": True, "FileDescriptorStoreMax=0\n": False, "": False, "Failed\n": False}
    for text, expected in answers.items():
        assert unit.is_above_zero(text) == expected


def test_a_start_without_an_answer_of_systemd_stores_nothing(monkeypatch):
    started, asked = {"SYSTEMD_EXEC_PID": str(PID)}, []
    outcome: object = "FileDescriptorStoreMax=7\n"

    def run(command, timeout, **more):
        asked.append(timeout)
        if isinstance(outcome, Exception):
            raise outcome
        return subprocess.CompletedProcess(command, 0, outcome)

    monkeypatch.setattr(unit.subprocess, "run", run)
    monkeypatch.setattr(unit, "question", lambda cgroups: ["systemctl"])
    assert unit.keeps_descriptors(started, PID)
    assert asked == [unit.PATIENCE], "a manager that hangs holds up no start"
    assert not unit.keeps_descriptors({}, PID), "systemd has not started this process"
    assert not unit.keeps_descriptors({"SYSTEMD_EXEC_PID": "1"}, PID), "but its parent, perhaps"
    for outcome in ("", FileNotFoundError("systemctl"), subprocess.TimeoutExpired("systemctl", 5)):  # noqa: B007
        assert not unit.keeps_descriptors(started, PID)
    monkeypatch.setattr(unit, "question", lambda cgroups: None)
    outcome = "FileDescriptorStoreMax=7\n"
    assert not unit.keeps_descriptors(started, PID)


def test_a_number_that_is_none_is_refused():
    with pytest.raises(SlotError, match="LISTEN_FDS"):
        take({"LISTEN_PID": str(PID), "LISTEN_FDS": "many"}, PID)


# --- passed sockets -------------------------------------------------------------------------------------------------


def listening(family: int = socket.AF_INET, where: object = ("127.0.0.1", 0)) -> socket.socket:
    sock = socket.socket(family)
    sock.bind(where)
    sock.listen()
    return sock


def passed(sock: socket.socket, name: str = "web") -> Passed:
    return sockets_of(Supervision(sockets=((os.dup(sock.fileno()), name),)))[0]


def test_an_abstract_socket_has_no_address():
    with (
        listening(socket.AF_UNIX, f"\0reuseport-unit-{os.getpid()}") as sock,
        pytest.raises(SlotError, match="absolute"),
    ):
        passed(sock)


def test_stored_slots_join_the_one_that_a_unit_passed():
    with listening() as sock:
        first = passed(sock)
        before = Slots([first.address], 16, 0, [first])
        before.bind()
        assert before.open(3) == (before.slots[1:], "")
        kept = before.storable()
        assert [slot.index for slot in kept] == [1, 2]
        again = [passed(slot.socket, STORED) for slot in kept] + [passed(sock)]
        after = Slots([first.address], 16, 0, again)
        after.bind()
        assert after.count == 3
        assert len(after.storable()) == 2
        assert after.slots[0].socket.getsockname() == sock.getsockname()
        before.close()
        after.close()


def test_a_stored_slot_whose_address_is_not_wanted_any_more_is_closed():
    with listening() as sock:
        stored = passed(sock, STORED)
        slots = Slots(["127.0.0.1:0"], 16, 0, [stored])
        slots.bind()
        assert stored.socket.fileno() == -1
        assert stored.address not in slots.addresses
        slots.close()


def test_what_an_earlier_masters_workers_have_handed_over_is_no_second_slot():
    with listening() as sock:
        one = passed(sock)
        slots = Slots([one.address], 16, 0, [one])
        slots.adopt(one.address, 0, False, os.dup(sock.fileno()))
        slots.bind()
        assert slots.count == 1
        slots.close()


def test_a_passed_unix_socket_is_known_by_either_of_its_paths(tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "var").symlink_to("run")
    with listening(socket.AF_UNIX, str(tmp_path / "run" / "web")) as sock:
        slots = Slots([f"unix:{tmp_path}/var/web"], 16, 0, [passed(sock)])
        slots.bind()
        assert slots.addresses == [f"unix:{tmp_path}/run/web"]
        slots.close()
    assert (tmp_path / "run" / "web").exists()


def test_an_ipv6_only_socket_gets_only_such_beside_it():
    try:
        sock = socket.socket(socket.AF_INET6)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(("::", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    with closing(sock):
        sock.listen()
        one = passed(sock)
        slots = Slots([one.address], 16, 0, [one])
        slots.bind()
        new, error = slots.open(2)
        assert error == ""
        assert new[0].socket.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1
        slots.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_where_no_socket_can_be_opened_beside_a_passed_one_it_says_what_it_takes():
    reading, writing = os.pipe()
    with listening() as sock:
        slots = Slots([(one := passed(sock)).address], 16, 0, [one])
        slots.bind()
        codecs.lookup("ascii")  # that user may not be able to read the interpreter's own modules
        pid = os.fork()
        if not pid:
            try:
                os.setuid(65534)  # the kernel lets only the user who opened the first (socket(7), SO_REUSEPORT)
                new, error = slots.open(2)
                os.write(writing, f"{len(new)} {error}".encode())
            except BaseException:  # noqa: BLE001 - the child must not go on as a second pytest
                os.write(writing, traceback.format_exc().encode())
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        text = os.read(reading, 4096).decode()
        slots.close()
    assert text.startswith("0 LISTEN_FDS:")
    assert "ReusePort=yes" in text
    assert one.address in text


# --- touched files --------------------------------------------------------------------------------------------------


def test_a_touch_counts_from_the_first_look_on(tmp_path: Path):
    file, acts, troubles = tmp_path / "restart.txt", [], []
    file.touch()
    name = str(file)
    touched = Touched(lambda: name, acts.append, lambda level, text: troubles.append(text))
    touched.look()
    assert acts == []
    os.utime(file, (5, 5))
    touched.look()
    touched.look()
    assert acts == [name]
    file.unlink()
    touched.look()
    assert len(acts) == 1
    file.touch()
    touched.look()
    assert len(acts) == 2
    assert troubles == []


def test_another_name_in_the_configuration_is_no_touch(tmp_path: Path):
    (tmp_path / "there").touch()
    names, acts = [""], []
    touched = Touched(lambda: names[0], acts.append, lambda level, text: None)
    names[0] = str(tmp_path / "there")
    touched.look()
    touched.look()
    assert acts == []
    os.utime(tmp_path / "there", (5, 5))
    touched.look()
    assert len(acts) == 1


def test_a_file_that_cannot_be_looked_at_is_said_once(tmp_path: Path):
    (tmp_path / "loop").symlink_to("loop")
    troubles = []
    touched = Touched(lambda: str(tmp_path / "loop"), lambda path: None, lambda level, text: troubles.append(text))
    touched.look()
    touched.look()
    assert len(troubles) == 1
