"""The ways in which a process becomes the master of its run directory. Each is a sequence, in which what fails comes
before what somebody would notice.

- A *fresh start*: nothing lives there. The addresses are bound, and the configuration is released.
- An *adoption*: a master has died there. What it left goes on as it is.
- A *takeover* (--takeover): a master lives there, which releases this configuration and then hands over. The rest is an
  adoption, but that nothing need be found out which that one has told.
- An *upgrade*: this very process has been the master before an exec, and everything is as it left it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from reuseport.core import events as ev
from reuseport.core.model import Cluster, Release
from reuseport.ipc import files, nofile
from reuseport.ipc.inherited import UPGRADE_VARIABLE
from reuseport.ipc.logline import printable
from reuseport.ipc.rundir import RunDirError
from reuseport.master import adoption, census, control, estate, passed, rehearsal, unit
from reuseport.master.bequest import TakeoverError
from reuseport.master.history import History
from reuseport.master.main import Master
from reuseport.master.passed import Supervision
from reuseport.master.processes import become_subreaper
from reuseport.master.recipe import release_of
from reuseport.master.releases import complete, recorded
from reuseport.master.roster import Remains
from reuseport.master.slots import SlotError, Slots
from reuseport.master.takeover import refuse_stranger, take_over
from reuseport.options import OptionError, Settings
from reuseport.options.arguments import one_line
from reuseport.options.identity import is_borrowed, last_name, place_of_history
from reuseport.options.settings import DEFAULT

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def run(settings: Settings, extra: dict[str, Any] | None = None) -> int:
    """Be the master until it is stopped; returns the exit status. `extra` goes into every recipe (embedding)."""
    try:
        master = begin(settings, extra or {})
    except (OptionError, RunDirError, SlotError) as error:
        sys.stderr.write(f"reuseport: {one_line(str(error))}\n")
        return 1
    except TakeoverError as error:
        sys.stderr.write(f"{printable(error.output)}reuseport: nothing was taken over: {one_line(str(error))}\n")
        return 1
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        room = "16 MB" if settings.tenant else "8 MB"
        sys.stderr.write(f"reuseport: --run-dir: {settings.run_dir}: {error.strerror}; what lies there takes {room}\n")
        return 1
    return master.run()


def begin(settings: Settings, extra: Mapping[str, Any]) -> Master:
    """A fresh start, an adoption or a takeover. Raises what `run` reports."""
    supervision = passed.take(os.environ, os.getpid())
    if supervision.notify and not supervision.store and unit.keeps_descriptors(os.environ, os.getpid()):
        supervision = supervision._replace(store=True)
    limit = _prepare_process()
    master = Master(settings, extra, supervision, estate.open_log(settings))
    master.processes.nofile = limit
    master.log_files.check(settings)
    release = complete(release_of(settings), extra)
    bequest = take_over(master, release) if settings.takeover != "no" else None

    # From here on this is the master.
    try:
        remains = _own(master)
    except RunDirError:
        refuse_stranger(settings, master.run_dir)  # which says more
        raise
    kept, samples = estate.open_state(settings, master.log.write)
    _warn_of_history(master, last_name(kept.lines))
    asked, unknown = None, False
    if remains is None and (bequest is None or bequest.bereaved):
        asked, remains, unknown = _ask_who_lives(master, kept, release)
    master.cluster = Cluster(last=kept.last)
    addresses = None
    if bequest and not bequest.bereaved:
        addresses = bequest.addresses
        remains = remains and bequest.settled(remains)
    master.slots = _slots(settings, supervision, addresses)
    if bequest:
        bequest.enter_early(master)
    master.telling.open(settings.umask or 0, bequest.scraped_at if bequest else None)
    dead = None
    if remains is None:
        with _naming(asked):
            master.slots.bind()
        dead = adoption.clear_away(master.run_dir)
    master.write_pid_file()
    master.boot_logs.clear()
    survivors = remains.adopted.survivors if remains else ()
    master.companions.take_over(survivors)
    master.open_shared(samples)
    hellos = asked.hellos if asked else master.listen()
    master.furnish(hellos, control.listen(master.run_dir.control), kept, adopting=remains is not None)
    for channel in asked.channels if asked else ():
        master.switchboard.hellos.greet(channel)
    if master.reload:
        master.reload.watch(release.recipe["directory"])

    # And begins, with what there is.
    if bequest:
        bequest.enter_counts(master)  # and only then what this one finds is added
    adopted = sorted({one.key.generation for one in survivors})
    master.releases.note("started", pid=os.getpid(), name=settings.name, adopted=adopted)
    if dead:
        jobs, board = dead
        master.losses.of_the_dead(board, jobs, survivors=())
        for one in dead:
            one.file.close()
    if remains is None:
        master.events.append(ev.ReleaseAsked(release))
    else:
        ends = bequest.ends if bequest else {}
        with _naming(asked):
            adoption.adopt(master, remains, release, ends, renew=unknown or (bequest is not None and bequest.bereaved))
    if bequest:
        bequest.enter(master)
        bequest.accept()
    return master


def go_on(left: estate.Estate) -> Master:
    """Behind the exec of an upgrade: nothing is found out or asked for anew, and what fails ends the master. So a trial
    has done the same before it (`rehearsal.py`)."""
    _prepare_process()
    with contextlib.suppress(OptionError, OSError):  # the trial has told of it, if it was so then
        left = left.renewed()
    master = Master(left.first, left.extra, left.supervision, estate.open_log(left.first, left.post))
    master.left, master.started = left, left.started
    master.lock, master.cluster = left.lock, left.cluster
    master.run_dir.hold_again(left.run_dir)
    kept, samples = estate.open_state(left.first, master.log.write, trim=False)
    master.slots = _slots(left.first, left.supervision)
    master.open_shared(samples)
    hellos, questions = left.doors()
    master.furnish(hellos, questions, kept, adopting=True)
    left.enter(master)
    return master


def resume() -> int:
    """Go on as what this process was before an exec (`upgrade`), or only try whether that could be done."""
    said = json.loads(os.environ.pop(UPGRADE_VARIABLE))
    if "answer" in said:
        return rehearsal.run(said, go_on)
    left = estate.read(said["state"])
    for fd in left.fds:
        os.set_inheritable(fd, False)
    return go_on(left).run()


def _prepare_process() -> int:
    """Make orphans below this process its children, and raise the limit of open files. Returns the limit before."""
    become_subreaper()
    return nofile.raise_limit()


def _own(master: Master) -> Remains | None:
    """Take the lock; what an earlier master has left there, None where nothing of it lives. RunDirError."""
    master.lock = master.run_dir.own(master.ids)
    lost = "it does not tell this master which processes of an earlier one live, and they are asked"
    remains = _undamaged(master, master.roster.read, master.run_dir.roster, lost)
    if remains is not None and (odds := remains.at_odds(master.first, master.ids)):
        raise RunDirError(odds)
    master.run_dir.share(*(master.ids or (None, None)))
    return remains


def _undamaged(master: Master, read: Callable[[], Remains | None], path: str, lost: str) -> Remains | None:
    """What is read, None where that is damaged: then the file is set aside, and a warning tells what is lost."""
    try:
        return read()
    except files.Damaged as error:
        files.tell_damage(path, error, master.log.write, lost, master.run_dir.named(path))
        return None


def _ask_who_lives(
    master: Master, kept: History, release: Release
) -> tuple[census.Census | None, Remains | None, bool]:
    """What an earlier master has left that no roster tells; see `census`. RunDirError."""
    run_dir = master.run_dir
    lost = "companions that it names are not looked for"
    stale = _undamaged(master, master.roster.read_stale, run_dir.stale_roster, lost)
    asked = None
    if run_dir.is_inhabited():
        asked = census.ask(run_dir, master.listen(), census.trusted(master.ids))
    elif stale is None:
        return None, None, False
    served = kept.served()

    def of_history(generation: int) -> Release | None:
        with contextlib.suppress(OptionError):
            return recorded(served[generation]) if generation in served else None
        return None

    remains, unknown = census.joined(stale, asked.heard if asked else [], of_history, release, kept.last)
    if remains is not None and (odds := remains.at_odds(master.first, master.ids)):
        raise RunDirError(odds)
    if asked and (asked.heard or asked.silent):
        text = f"no roster tells which processes of an earlier master live: {len(asked.heard)} have answered"
        if asked.silent:
            text += f", and {_pids(asked.silent)} not. `reuseport stop --orphans` ends what no master knows"
        master.log.write("warning", text)
    return asked, remains, unknown


@contextlib.contextmanager
def _naming(asked: census.Census | None) -> Iterator[None]:
    """An address may be in use by processes of an earlier master that do not answer. SlotError says so."""
    try:
        yield
    except SlotError as error:
        if asked and asked.silent:
            text = (
                f"{error}; an earlier master of this run directory has left {_pids(asked.silent)}, which do not answer"
            )
            raise SlotError(f"{text}: `reuseport stop --orphans` ends them") from None
        raise


def _pids(pids: Sequence[int]) -> str:
    return f"process{'es' if len(pids) > 1 else ''} {', '.join(map(str, pids))}"


def _warn_of_history(master: Master, owner: str) -> None:
    """The state directory may be the one that another server has left, whose versions `rollback` then goes back to."""
    if is_borrowed(master.first, owner):
        where = master.first.where(place_of_history(master.first))
        text = f'{where}: {master.first.state_dir} has the history of "{owner}", not of "{master.first.name}"'
        master.log.write("warning", f"{text}: rollback also knows the versions of that server")


def _slots(settings: Settings, supervision: Supervision, addresses: Sequence[str] | None = None) -> Slots:
    """None of which is bound yet. `addresses`: those that count whatever the settings say."""
    if settings.umask is not None:
        os.umask(settings.umask)
    given = passed.sockets_of(supervision)
    units = tuple(dict.fromkeys(one.address for one in given if not one.stored))
    # Without a word about addresses those that were passed are meant.
    said = units if units and settings.sources["bind"] == DEFAULT else settings.bind
    wanted = said if addresses is None else addresses
    return Slots(wanted, settings.backlog, settings.umask or 0, given, beside=settings.beside)
