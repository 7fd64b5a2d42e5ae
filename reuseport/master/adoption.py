"""Taking over what a master that died has left: its processes by the roster, the slots from their hellos."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from reuseport.core.model import ZYGOTE, Key, Release
from reuseport.ipc.begun import Begun
from reuseport.ipc.rundir import RunDir
from reuseport.ipc.scoreboard import Scoreboard
from reuseport.master import peers
from reuseport.master.processes import EXITED, end
from reuseport.master.roster import Remains
from reuseport.master.slots import SlotError

if TYPE_CHECKING:
    from reuseport.master.main import Master

PATIENCE = 10.0  # seconds for an earlier master's processes to hand over the slots


def adopt(
    master: Master, remains: Remains, otherwise: Release, ends: Mapping[int, str], *, renew: bool = False
) -> None:
    """Take over processes and slots. `otherwise` is released where none of them serves; with `renew`, in any case.
    `ends`: how processes have ended of which this master has heard before it was one, by pid.

    SlotError where slots do not come back, or an address is not to be had.
    """
    for pid in remains.strays:
        end(pid, remains.starts[pid])
    clear_up(master.run_dir, {one.key for one in remains.adopted.survivors})
    # How they ended is known of this master's own children, which it has had before it became one.
    gone = {key: (ends.get(pid) or master.processes.how_ended(pid)) == EXITED for key, pid in remains.gone.items()}
    for key in {process.key for process in master.processes.all()} - {one.key for one in remains.adopted.survivors}:
        master.processes.forget(key)
    owners = {master.begun.row(index).owner: index for index in master.begun.owned()}
    for one in remains.adopted.survivors:
        # A companion may be known: this master has forked it for the one that it takes over from.
        row = _row(remains.rows[one.key], owners.get(one.key))
        process = master.processes.get(one.key) or master.processes.expect(one.key, row)
        master.processes.is_running(process, one.pid, pidfd=peers.started_at(one.pid, remains.starts[one.pid]))
        # A zygote becomes the workers' user while it loads.
        foreign = master.switchboard.foreign
        if not one.key.is_companion and (one.key.number != ZYGOTE or peers.users_of(one.pid) == {foreign}):
            process.user = foreign
    master.losses.of_the_dead(master.board, master.begun, {one.row for one in master.processes.all()})
    master.quarantine.of_the_dead({one.row for one in master.processes.all()})
    master.numbers.adopt({one.key.generation for one in remains.adopted.survivors})
    master.slots.expect(remains.written)
    _await_slots(master, remains)
    master.slots.expect_no_more()
    adopted = list(master.slots.slots)
    unwanted = [address for address in master.slots.addresses if not master.slots.is_wanted(address)]
    # A master that died while it stopped had let go of them; and the addresses may be others by now.
    master.slots.bind()
    master.switchboard.announce_slots([slot for slot in master.slots.slots if slot not in adopted])
    if unwanted:
        master.log.write(
            "warning",
            f"{', '.join(unwanted)} is served on, as under the earlier master, though --bind does not name it any "
            "more: a stop and a new start let go of it",
        )
    master.events.appendleft(
        replace(remains.adopted, slots=master.slots.count, gone=gone, otherwise=otherwise, renew=renew)
    )


def _row(written: int, owned: int | None) -> int:
    """The row of a survivor: as the roster says, or as shared memory does where no roster has it."""
    return written if written >= 0 or owned is None else owned


def clear_away(run_dir: RunDir) -> tuple[Begun, Scoreboard] | None:
    """Remove what a master has left that has died with all its workers: this one counts anew. What shows which jobs
    were under way then is returned; None where nothing does."""
    dead = None
    with contextlib.suppress(FileNotFoundError):
        dead = Begun(run_dir.begun), Scoreboard(run_dir.scoreboard)
    clear_up(run_dir, ())
    for path in run_dir.shared:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    return dead


def clear_up(run_dir: RunDir, survivors: Collection[Key]) -> None:
    """Remove what those have left who died while there was no master, or together with it."""
    known = set(map(str, survivors))

    def lives(who: str) -> bool:
        number = who.partition(".j")[2]  # a job may have begun that no master has heard of
        return who in known or (number != "" and peers.exists(int(number)))

    run_dir.clear_up(lives)


def _await_slots(master: Master, remains: Remains) -> None:
    deadline = time.monotonic() + PATIENCE
    survivors = remains.adopted.survivors
    staff = [one for one in survivors if not one.key.is_job and not one.key.is_companion]  # these have no slot
    while missing := set(remains.slots) - {(slot.address, slot.index) for slot in master.slots.slots}:
        silent = [one.pid for one in staff if not master.switchboard.has_heard(one.key)]
        if not silent and not missing & master.switchboard.promised:
            return  # whoever had them has died, or has let go of them to drain
        if time.monotonic() > deadline:
            if not silent:
                return  # a hello has named a slot that its process does not have
            names = ", ".join(sorted({address for address, _ in missing}))
            raise SlotError(
                f"{names}: no process of the earlier master has handed it over within {PATIENCE:g} s. These do not "
                f"answer: {', '.join(map(str, silent))}. `reuseport stop --orphans` ends them"
            )
        master.loop.wait(deadline)
