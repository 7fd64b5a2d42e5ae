"""The cluster as plain data, and back: for a master that goes on as another version of itself.

Fields are only ever added, so a reader passes over one that it does not know, and what is missing gets its default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, TypeVar

from reuseport.core.model import Asker, Change, Cluster, Companion, Ended, Generation, Release, Terms, Worker, Zygote

Record = TypeVar("Record", Asker, Change, Cluster, Companion, Ended, Generation, Release, Terms, Worker, Zygote)


def to_json(cluster: Cluster) -> dict[str, Any]:
    """Types of JSON only, but for the numbers of generations and workers, which JSON makes strings of."""
    return asdict(cluster)


def cluster_of(data: Mapping[str, Any]) -> Cluster:
    """The inverse of to_json, after a way through JSON."""
    return _made(
        Cluster,
        data,
        generations={int(number): _generation(g) for number, g in data["generations"].items()},
        pending=release_of(data["pending"]) if data.get("pending") else None,
        pending_askers=_askers(data.get("pending_askers", ())),
        change=_made(Change, data["change"]) if data.get("change") else None,
        ended=_made(Ended, data["ended"]) if data.get("ended") else None,
        drain_askers=tuple((_made(Asker, asker), number) for asker, number in data.get("drain_askers", ())),
    )


def release_of(data: Mapping[str, Any]) -> Release:
    """A release, as `dataclasses.asdict` wrote it down."""
    return _made(Release, data, companions=tuple(_made(Terms, terms) for terms in data.get("companions", ())))


def _generation(data: Mapping[str, Any]) -> Generation:
    return _made(
        Generation,
        data,
        release=release_of(data["release"]),
        zygote=_made(Zygote, data["zygote"]) if data.get("zygote") else None,
        workers={int(number): _made(Worker, worker) for number, worker in data.get("workers", {}).items()},
        companions={int(number): _companion(one) for number, one in data.get("companions", {}).items()},
        askers=_askers(data.get("askers", ())),
        aborters=_askers(data.get("aborters", ())),
    )


def _companion(data: Mapping[str, Any]) -> Companion:
    return _made(Companion, data, terms=_made(Terms, data["terms"]))


def _askers(data: Sequence[Mapping[str, Any]]) -> tuple[Asker, ...]:
    return tuple(_made(Asker, asker) for asker in data)


def _made(kind: type[Record], data: Mapping[str, Any], **parts: Any) -> Record:
    """`parts` are those fields that are no plain data."""
    return kind(**{field.name: data[field.name] for field in fields(kind) if field.name in data} | parts)
