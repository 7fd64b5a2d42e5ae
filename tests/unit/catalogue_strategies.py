"""Messages made from the catalogue: valid ones of every kind, and ones in which something is wrong."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from reuseport.core.routing import Canary, Table
from reuseport.ipc import fields, messages
from reuseport.ipc.messages import Group, Message

GROUPS: dict[str, Group] = {
    name: group
    for name, group in vars(messages).items()
    if name.startswith(("FROM_", "TO_", "HELLOS", "QUESTIONS"))
}
KINDS = sorted({kind for group in GROUPS.values() for kind in group.values()}, key=lambda kind: kind.__name__)

TEXT = st.text(st.characters(codec=None), max_size=20) | st.sampled_from(["", "\0", "\x1b[2J", "\ud800", "x" * 3000])
WILD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**30, -(10**30), 1 << 62, 0, -1])
    | st.floats()
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
TABLE = Table(3, 2, (1, 2), {"acme": 1}, Canary(2, frozenset({"globex"}), 5.0), {1: 7.5})


def values(field: fields.Field) -> st.SearchStrategy[Any]:
    """What JSON can hold of such a field."""
    if isinstance(field, fields.Flag):
        return st.booleans()
    if isinstance(field, fields.Whole):
        return st.integers(field.least, field.most)
    if isinstance(field, fields.Real):
        return st.floats(field.least, field.most, allow_nan=False)
    if isinstance(field, fields.Path):
        return st.text("abc/\xfc\udcfc", max_size=20).map(lambda text: f"/{text}")
    if isinstance(field, fields.Address):
        return st.sampled_from(["127.0.0.1:8000", "[::1]:80", "unix:/run/shop.sock"])
    if isinstance(field, fields.Text):
        return st.text(max_size=min(field.longest, 20))
    if isinstance(field, fields.Name):
        return TEXT | st.integers(-(1 << 63), (1 << 63) - 1)
    if isinstance(field, fields.Shown):
        return TEXT
    if isinstance(field, fields.Maybe):
        return st.none() | values(field.of)
    if isinstance(field, fields.Several):
        return st.lists(values(field.of), max_size=min(field.most, 4))
    if isinstance(field, fields.Row):
        return st.tuples(*map(values, field.of)).map(list)
    if isinstance(field, fields.Facts):
        return st.dictionaries(TEXT, TEXT | st.dictionaries(TEXT, TEXT, max_size=2), max_size=3)
    assert isinstance(field, fields.Made)
    known = {
        Table.from_json: TABLE.to_json(),
        messages._canary: {"tenants": ["acme"], "percent": 5},
        messages._identities: {"unix:/run/shop.sock": [1, 2]},
    }
    return st.just(known.get(field.make, {"some": "thing"}))


@st.composite
def valid(draw: st.DrawFn, kind: type[Message]) -> tuple[dict[str, Any], int]:
    """A message of this kind as its JSON, and how many descriptors it brings."""
    said: dict[str, Any] = {"v": 1, "type": kind.kind}
    for _, name, field in kind.fields:
        if field.default is fields.REQUIRED or draw(st.booleans()):
            said[name] = draw(values(field))
    if draw(st.booleans()):
        said["a field of tomorrow"] = draw(WILD)
    return said, brought_by(kind, said)


def brought_by(kind: type[Message], said: dict[str, Any]) -> int:
    least, most = kind.fds
    for brought in range(least, most + 1):
        try:
            kind.parse(said, brought)
        except messages.Malformed:
            continue
        return brought
    return least


@st.composite
def mutated(draw: st.DrawFn, kind: type[Message]) -> tuple[dict[str, Any], int]:
    """A valid message in which one field is missing or holds anything, or which brings other descriptors."""
    said, brought = draw(valid(kind))
    name = draw(st.sampled_from([name for _, name, _ in kind.fields] or ["nothing"]))
    how = draw(st.sampled_from(["missing", "anything", "descriptors"]))
    if how == "missing":
        said.pop(name, None)
    elif how == "anything":
        said[name] = draw(WILD)
    else:
        brought = draw(st.integers(0, 4))
    return said, brought
