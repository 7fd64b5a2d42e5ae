"""The table of the doctor's checks: each a function from facts to findings."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from reuseport.cli.doctor import machine, serving, surroundings
from reuseport.cli.doctor.findings import Facts, Finding

Check = Callable[[Facts], Iterable[Finding]]

CHECKS: tuple[tuple[str, tuple[Check, ...]], ...] = (
    ("The configuration", (machine.configuration, machine.programs, machine.companions, machine.readiness)),
    (
        "The machine",
        (
            machine.kernel,
            machine.addresses,
            machine.workers,
            machine.memory,
            machine.out_of_memory,
            machine.overcommit,
            machine.descriptors,
            machine.tasks,
            machine.accept_queues,
            machine.overflows,
            machine.migration,
        ),
    ),
    ("The directories", (machine.run_directory, machine.state_directory, machine.logs)),
    ("systemd", (surroundings.unit,)),
    ("nginx", (surroundings.proxies, surroundings.early_hints)),
    (
        "The application",
        (serving.loading, serving.fork_safety, serving.patch_order, serving.parallel, serving.clients),
    ),
    ("The running server", (serving.running, serving.drains, serving.losses, serving.queues)),
)
