"""What each command of the core means: `ACTS` has, for each kind, what carries it out.

Nothing here decides. What cannot be done becomes an event, where the core has one for it; everything else is covered by
the core's own deadlines.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from reuseport.core import events as ev
from reuseport.core.model import BOOTING, ZYGOTE, Key
from reuseport.ipc.shortage import SHORTAGE
from reuseport.ipc.stacks import STACK_SIGNAL
from reuseport.master import room
from reuseport.master.numbers import WORKER_ROWS
from reuseport.master.recipe import files_gone
from reuseport.master.succession import SUCCESSOR

if TYPE_CHECKING:
    from reuseport.master.main import Master


def _open_slots(master: Master, command: ev.OpenSlots) -> None:
    new, error = master.slots.open(command.count)
    if error:
        master.log.write("error", f"no more slots could be opened; the workers share those there are: {error}")
    if new:
        master.write_roster()  # before any process has them: the next master knows its slots by it
    master.switchboard.announce_slots(new)
    master.notifier.store(slot.socket for slot in master.slots.storable())


def _close_slots(master: Master, command: ev.CloseSlots) -> None:
    for process in master.processes.all():
        if process.key.number == ZYGOTE:
            master.switchboard.send(process.key, "let-go")  # it stays, for jobs, while anybody drains
    for text in master.slots.close():
        master.log.write("warning", text)


SLOW_BOOT = 10.0  # seconds after which the log says that a generation is still booting
REMOVED = (
    "systemd removes /run/user/UID when that user logs out (loginctl enable-linger, or --run-dir elsewhere). End this "
    "master with TERM, and start it anew"
)


def _start_zygote(master: Master, command: ev.StartZygote) -> None:
    key = Key(command.generation, ZYGOTE)
    boot_log = master.boot_logs.begin(key.generation)
    master.control.stages(f"generation {key.generation}: loading {command.release.recipe['directory']}")
    master.releases.begins(key.generation, command.release)
    patience = min(SLOW_BOOT, command.release.boot_timeout / 2)
    master.loop.later(patience, lambda: _tell_if_booting(master, key.generation, patience))
    if master.succession.starts(command):
        return
    if command.release.source and (why := files_gone(command.release, command.release.source)):
        master.events.append(ev.Started(key, error=why))
        return
    try:
        process = master.processes.start_zygote(key, command.release.recipe, master.run_dir, boot_log)
    except OSError as error:
        why = f"cannot execute {command.release.recipe['interpreter']}: {error.strerror}"
        if error.errno in SHORTAGE:
            why = f"no zygote could be started: {room.in_words(error)}"
        if not master.run_dir.is_in_place():
            # What it prints is kept there, and there it would find its master.
            why = f"the run directory {master.run_dir.path} has gone, and with it the way to this master; {REMOVED}"
        master.events.append(ev.Started(key, error=why))
        return
    master.events.append(ev.Started(key, process.pid))


def _tell_if_booting(master: Master, number: int, seconds: float) -> None:
    """Whoever looks at the log of a first start would otherwise see nothing for as long as its import takes."""
    g = master.cluster.generations.get(number)
    if g is not None and g.state in BOOTING:
        limit = f"{g.release.boot_timeout:g} s (--boot-timeout)"
        master.log.write("info", f"generation {number} is not ready after {seconds:g} s; it is given up after {limit}")


def _copy_zygote(master: Master, command: ev.CopyZygote) -> None:
    key = Key(command.generation, ZYGOTE)
    boot_log = master.boot_logs.begin(key.generation)
    master.control.stages(f"generation {key.generation}: from the zygote of generation {command.donor}")
    release = master.cluster.generations[key.generation].release
    master.releases.begins(key.generation, release)
    if why := files_gone(release, release.source):
        # The core then has the version loaded instead, which is refused for the same reason.
        master.events.append(ev.Started(key, error=why))
        return
    if master.predecessors.have(master.processes.get(Key(command.donor, ZYGOTE))):
        # Its child, which would serve in the unit of a master that is about to leave, and keep it there.
        master.events.append(ev.Started(key, error="the zygote is an earlier master's"))
        return
    try:
        output, errors = boot_log.open()
    except OSError as error:
        master.events.append(ev.Started(key, error=f"its output cannot go to {boot_log.path}: {error.strerror}"))
        return
    master.processes.expect(key)
    donor = Key(command.donor, ZYGOTE)
    master.switchboard.send(donor, "boot_errors", (errors,))
    master.switchboard.send(donor, "copy", (output,), generation=key.generation)
    os.close(output)
    os.close(errors)


def _fork(master: Master, command: ev.Fork) -> None:
    taken = {process.row for process in master.processes.all()}
    row = next(row for row in range(WORKER_ROWS) if row not in taken)
    try:
        master.shared.restore()
        master.board.clear(row)
        master.latencies.give(row, command.key.generation)
        master.begun.give(row, command.key)
        master.quarantine.give(row, command.key)
    except OSError as error:  # a full disk, where a file system copies what is written
        why = f"its row in the run directory cannot be written: {error.strerror}"
        master.log.write("error", f"worker {command.key} cannot be forked: {why}")
        master.events.append(ev.Exited(command.key, why))
        return
    master.processes.expect(command.key, row)
    g = master.cluster.generations.get(command.key.generation)
    booting = g is not None and g.state in BOOTING
    master.switchboard.send(
        Key(command.key.generation, ZYGOTE), "fork", number=command.key.number, row=row, booting=booting
    )


def _accept(master: Master, command: ev.Accept) -> None:
    master.slots.listen()
    master.switchboard.send(command.key, "accept", own=command.slots, farewell=command.farewell)


def _attend(master: Master, command: ev.Attend) -> None:
    _bequeath(master, ev.Bequeath(command.key))
    master.switchboard.send(command.key, "attend")


def _drain(master: Master, command: ev.Drain) -> None:
    if command.key.is_job:
        master.switchboard.send(command.key, "drain", last=command.last)
        return
    if not command.last:
        _bequeath(master, ev.Bequeath(command.key))
    master.switchboard.send(command.key, "drain", last=command.last)
    master.processes.signal(command.key, signal.SIGTERM)


def _bequeath(master: Master, command: ev.Bequeath) -> None:
    if serving := master.cluster.serving:
        if serving.number != command.key.generation:
            master.switchboard.send(Key(command.key.generation, ZYGOTE), "superseded")
        master.switchboard.bequeath(command.key, serving.number, serving.wanted)


def _dismiss(master: Master, key: Key) -> None:
    """Its end is the master's doing. That of a worker whose loop stands still is its request's."""
    process, g = master.processes.get(key), master.cluster.generations.get(key.generation)
    worker = g.workers.get(key.number) if g else None
    if process is not None and not (worker is not None and worker.blocked):
        process.dismissed = True


def _quit(master: Master, command: ev.Quit) -> None:
    _dismiss(master, command.key)
    g = master.cluster.generations.get(command.key.generation)
    if command.key.number == ZYGOTE and not (g and g.zygote and g.zygote.loaded):
        process = master.processes.get(command.key)
        if process is None or not process.failed:
            # It imports, and so hears nothing; nobody depends on it.
            master.processes.signal(command.key, signal.SIGKILL)
    elif not master.switchboard.send(command.key, "quit"):
        master.processes.signal(command.key, signal.SIGTERM)


def _abort(master: Master, command: ev.Abort) -> None:
    _dismiss(master, command.key)
    master.processes.signal(command.key, STACK_SIGNAL)


def _launch(master: Master, command: ev.Launch) -> None:
    if master.succession.launches(command):
        return
    g = master.cluster.generations[command.key.generation]
    companion = g.companions[command.key.number]
    master.events.append(master.companions.begin(command.key, companion, g.release.recipe))


def _go(master: Master, command: ev.Go) -> None:
    if not master.succession.lets_go(command):
        master.companions.go(command.key)


def _stop(master: Master, command: ev.Stop) -> None:
    g = master.cluster.generations[command.key.generation]
    master.companions.stop(command.key, g.companions[command.key.number], g.release.recipe)


def _kill(master: Master, command: ev.Kill) -> None:
    if command.key.is_companion:
        master.companions.kill(command.key)
        return
    _dismiss(master, command.key)
    master.processes.signal(command.key, signal.SIGKILL)


def _answer(master: Master, command: ev.Answer) -> None:
    if command.asker.name == SUCCESSOR:
        master.succession.answer(command)
        return
    client = master.control.clients.get(command.asker.name)
    if client is None:
        return
    booting = master.cluster.booting
    if client.goes_back if command.ok else command.generation and (booting is None or booting.release.source):
        # A rollback, an abort and a failed release leave the newer version on disk.
        client.warn(master.releases.differs_on_disk())
    number = command.generation or None
    facts = {"aborted": command.aborted} if command.aborted else {}
    if command.ok:
        change = master.cluster.change
        if change is not None and change.number == command.generation and not command.aborted:
            facts |= {"what": change.what, "from": change.came_from or None, "source": change.source, "by": change.by}
        client.done(True, generation=number, text=command.text, **facts)
        return
    output = ""
    if command.outcome:
        facts |= {"outcome": command.outcome}  # its application has not failed, so nothing it printed says why
    else:
        output = master.boot_logs.tail(command.generation) + master.companions.tail(command.generation)
    client.done(False, generation=number, error=command.text, output=output, **facts)


def _record(master: Master, command: ev.Record) -> None:
    master.boot_logs.copy_news()
    master.releases.record(command)


def _drained(master: Master, command: ev.Drained) -> None:
    master.releases.drained(command)
    # Its zygote may stand by, and nobody would take what lies in the queue.
    master.switchboard.send(Key(command.generation, ZYGOTE), "standby")


def _note(master: Master, command: ev.Note) -> None:
    master.log.write(command.level, command.text)
    if not command.silent:
        master.control.stages(command.text, command.level)


def _finish(master: Master, command: ev.Finish) -> None:
    master.exit_status = command.status


ACTS: dict[type[ev.Command], Callable[[Master, Any], None]] = {
    ev.OpenSlots: _open_slots,
    ev.CloseSlots: _close_slots,
    ev.StartZygote: _start_zygote,
    ev.CopyZygote: _copy_zygote,
    ev.Fork: _fork,
    ev.Accept: _accept,
    ev.Attend: _attend,
    ev.Drain: _drain,
    ev.Bequeath: _bequeath,
    ev.Launch: _launch,
    ev.Go: _go,
    ev.Stop: _stop,
    ev.Quit: _quit,
    ev.Abort: _abort,
    ev.Kill: _kill,
    ev.Answer: _answer,
    ev.Record: _record,
    ev.Drained: _drained,
    ev.Note: _note,
    ev.Finish: _finish,
}
