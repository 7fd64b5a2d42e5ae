"""Which request ends the workers that run it: the rule, without processes.

A worker that dies takes along the killing request and all that merely ran beside it. What they have in common is known
by name only (method, target, Host, tenant). The rule, for each generation on its own:

1. A name that was running at a death is a *suspect* for a minute.
2. A suspect that is answered by any worker is none: it does not end its worker.
3. A suspect that was running at a second death is put into *quarantine*, unless one of its *witnesses* still runs it:
   a worker that ran it at the first death, and lives. Workers that are dead when the first death is counted belong to
   that one, and so do its witnesses that die a moment later: they have not got a request that was sent again.
4. Where that would concern several names, the master spares those whose response had begun at one of the deaths (an
   event stream, beside a report that takes too much memory). It does so only if another had not begun. Of the names
   that remain it spares those that a worker was seen to answer before, unless all were.
5. After the quarantine the name is a suspect for another minute: one more death is enough then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import field, replace

from reuseport.core.immutable import immutable
from reuseport.core.model import Key

WITHIN = 60.0  # seconds between two deaths that have to do with each other

TOGETHER = 0.25  # seconds in which one event from outside can kill several workers

Kind = tuple[int, bytes]  # a generation, and the name of a request


@immutable
class Suspect:
    """`last`: the last death at which it was running, in seconds. `witnesses`: see the module. `proven`: a worker was
    seen to have answered it before. `headed`: at one of the deaths the head of each response to it had gone out.
    `until`: the end of its quarantine; 0 where it is in none."""

    last: float
    witnesses: frozenset[Key] = frozenset()
    proven: bool = False
    headed: bool = False
    until: float = 0.0


@immutable
class Death:
    """Of a worker by itself, or of several at once. `running`: the names they had. `headed`: those of them of which the
    head of each response had gone out. `answered`: names that workers of the generation are known to have answered
    before. `elsewhere`: which living workers of the generation run a name now. `ran`: which of the dead ran it."""

    generation: int
    running: frozenset[bytes]
    answered: frozenset[bytes]
    elsewhere: Mapping[bytes, frozenset[Key]]
    headed: frozenset[bytes] = frozenset()
    ran: Mapping[bytes, frozenset[Key]] = field(default_factory=dict)


Book = Mapping[Kind, Suspect]


def died(book: Book, death: Death, now: float, seconds: float) -> dict[Kind, Suspect]:
    """The book after a death. `seconds`: how long a quarantine lasts."""
    after = later(book, now)
    guilty = []
    for name in death.running:
        kind = death.generation, name
        here = death.elsewhere.get(name, frozenset())
        proven, headed = name in death.answered, name in death.headed
        before = after.get(kind)
        if before is None:
            after[kind] = Suspect(now, here, proven, headed)
            continue
        witnesses = before.witnesses & here
        proven, headed = before.proven or proven, before.headed or headed
        after[kind] = replace(before, last=now, witnesses=witnesses, proven=proven, headed=headed)
        ran = death.ran.get(name, frozenset())
        together = bool(ran) and ran <= before.witnesses and now - before.last <= TOGETHER
        if not witnesses and not together:
            guilty.append(kind)
    guilty = [kind for kind in guilty if not after[kind].headed] or guilty
    for kind in [kind for kind in guilty if not after[kind].proven] or guilty:
        after[kind] = replace(after[kind], until=now + seconds)
    return after


def answered(book: Book, kinds: Iterable[Kind]) -> dict[Kind, Suspect]:
    """The book after requests of these kinds were answered."""
    cleared = frozenset(kinds)
    return {kind: suspect for kind, suspect in book.items() if kind not in cleared}


def later(book: Book, now: float) -> dict[Kind, Suspect]:
    """The book as it is now: quarantines end, and suspicions do."""
    after = {}
    for kind, suspect in book.items():
        if suspect.until and now >= suspect.until:
            suspect = Suspect(suspect.until, proven=suspect.proven, headed=suspect.headed)
        if suspect.until or now - suspect.last <= WITHIN:
            after[kind] = suspect
    return after
