"""Which addresses a master that takes over may name, and how they are compared with those that are bound."""

from __future__ import annotations

import pytest

from reuseport.master.slots import SlotError, Slots, names_of


@pytest.mark.parametrize(
    ("bound", "named", "why"),
    [
        ((), ["127.0.0.1:0"], ""),
        ((), ["{first}"], ""),
        ((), ["127.0.0.1:1"], "127.0.0.1:1 is none of {first}"),
        ((), [], "the running master also listens on {first}"),
        ((), ["127.0.0.1:0", "127.0.0.1:0"], "127.0.0.1:0 is none of"),
        ((), ["127.0.0.2:0"], "127.0.0.2:0 is none of"),
        (("tcp:127.0.0.2:0",), ["127.0.0.2:0", "{first}"], ""),
        (("tcp:127.0.0.2:0",), ["127.0.0.2:0"], "the running master also listens on {first}"),
        (("unix:{tmp}/a.sock",), ["{first}", "unix:{tmp}/../{last}/a.sock"], ""),
        (("unix:{tmp}/a.sock",), ["{first}", "unix:{tmp}/b.sock"], "b.sock is none of"),
    ],
)
def test_both_masters_name_the_same_addresses(bound, named, why, tmp_path):
    words = {"tmp": tmp_path, "last": tmp_path.name}
    slots = Slots(["tcp:127.0.0.1:0", *(one.format(**words) for one in bound)], 16, 0o077)
    slots.bind()
    try:
        words["first"] = slots.addresses[0]
        said = slots.differ_from([one.format(**words) for one in named])
        assert (said == "") == (why == "")
        assert why.format(**words) in said
    finally:
        slots.close()


def test_names_are_those_that_slots_have():
    assert names_of(["tcp:127.0.0.1:80", "unix:/run/a.sock"]) == ["127.0.0.1:80", "unix:/run/a.sock"]
    with pytest.raises(SlotError, match=r"--bind: nowhere\.invalid:80"):
        names_of(["tcp:nowhere.invalid:80"])
