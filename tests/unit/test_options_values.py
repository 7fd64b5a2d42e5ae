"""What each kind of value accepts, what it refuses, and that what is shown can be read again."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reuseport.options import OPTIONS, kinds, parse_address, parse_app
from reuseport.options import address as addresses
from reuseport.options.spec import default_name

ANYTHING = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text(), max_size=2)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("15m", 900),
        ("2h", 7200),
        ("1d", 86400),
        ("500ms", 0.5),
        ("1.5h", 5400),
        (2, 2),
        ("0", 0),
    ],
)
def test_seconds(text: object, seconds: float) -> None:
    assert kinds.SECONDS.parse(text) == seconds


@pytest.mark.parametrize(
    "bad", ["", "x", "-1", "1w", "1e9", "nan", "inf", "1h30", float("nan"), -1, True, None, "٣", 1e12]
)
def test_not_seconds(bad: object) -> None:
    with pytest.raises(ValueError, match="is not a time"):
        kinds.SECONDS.parse(bad)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("65536", 65536),
        ("64K", 65536),
        ("64k", 65536),
        ("512M", 512 << 20),
        ("2GiB", 2 << 30),
        ("1.5G", 3 << 29),
    ],
)
def test_size(text: str, size: int) -> None:
    assert kinds.SIZE.parse(text) == size


@pytest.mark.parametrize("bad", ["", "M", "1X", "-1", "1 2", -5, 1.5, True, "9" * 30])
def test_not_a_size(bad: object) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        kinds.SIZE.parse(bad)


@pytest.mark.parametrize("bad", ["", "1.0", "1_000", "0x10", "four", True, 1.0, "٣"])
def test_not_a_whole_number(bad: object) -> None:
    with pytest.raises(ValueError, match="is not a whole number"):
        kinds.WHOLE.parse(bad)


@pytest.mark.parametrize(("text", "mask"), [("022", 0o22), ("0o077", 0o77), ("0", 0), ("", None)])
def test_umask(text: str, mask: int | None) -> None:
    assert kinds.UMASK.parse(text) == mask


@pytest.mark.parametrize("bad", [22, "8", "0x1", "7777", "u=rwx"])
def test_not_a_umask(bad: object) -> None:
    with pytest.raises(ValueError, match="octal"):
        kinds.UMASK.parse(bad)


def test_a_switch_in_a_variable() -> None:
    assert [kinds.SWITCH.parse(word) for word in ("1", "true", "YES", "off", "0", True)] == [
        True,
        True,
        True,
        False,
        False,
        True,
    ]
    with pytest.raises(ValueError, match="neither true nor false"):
        kinds.SWITCH.parse("maybe")


def test_assignments_keep_what_follows_the_first_equals_sign() -> None:
    assert kinds.ASSIGNMENT.parse("DSN=a=b") == ("DSN", "a=b")
    assert kinds.ASSIGNMENT.parse(("PORT", 80)) == ("PORT", "80")
    for bad in ("DSN", "=x", ("A", True), ("A", 1.5), ("A=B", "x"), "A=\0"):
        with pytest.raises(ValueError, match=r"KEY=VALUE|not text|cannot be the name|NUL"):
            kinds.ASSIGNMENT.parse(bad)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("127.0.0.1:8000", "tcp:127.0.0.1:8000"),
        (":80", "tcp:0.0.0.0:80"),
        ("LocalHost:0", "tcp:localhost:0"),
        ("[::1]:8000", "tcp:[::1]:8000"),
        ("[0:0::1]:8000", "tcp:[::1]:8000"),
        ("[fe80::1%eth0]:1", "tcp:[fe80::1%eth0]:1"),
        ("tcp://10.0.0.1:1", "tcp:10.0.0.1:1"),
        ("unix:/run/x.sock", "unix:/run/x.sock"),
        ("unix:///run/x.sock", "unix:/run/x.sock"),
        ("unix:x.sock", "unix:x.sock"),
    ],
)
def test_addresses_have_one_spelling(text: str, canonical: str) -> None:
    assert str(parse_address(text)) == canonical
    assert str(parse_address(canonical)) == canonical


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ("8000", "write :8000"),
        ("localhost", "localhost:8000"),
        ("", "no port"),
        (":", "no port between"),
        (":65536", "no port between"),
        (":-1", "no port between"),
        (":٣", "no port between"),
        ("::1:80", "goes into brackets"),
        ("[::1]", "no port"),
        ("[::g]:80", "not an IPv6 address"),
        ("300.1.1.1:80", "not an IPv4 address"),
        ("a b:80", "neither an IP address nor the name of a host"),
        ("*:80", "neither an IP address nor the name of a host"),
        ("unix:", "names no file"),
        ("unix:/run/", "names no file"),
        ("unix:/a\0b", "NUL"),
    ],
)
def test_what_is_no_address(bad: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_address(bad)


def test_the_same_address_twice_is_a_mistake_but_two_free_ports_are_not() -> None:
    addresses.check_addresses(("tcp:0.0.0.0:0", "tcp:0.0.0.0:0"))
    with pytest.raises(ValueError, match="twice"):
        addresses.check_addresses(("tcp:0.0.0.0:80", "tcp:0.0.0.0:80"))
    with pytest.raises(ValueError, match="107 bytes"):
        addresses.check_addresses(("unix:/" + "x" * 107,))


@given(st.text() | st.from_regex(r"(\[[0-9a-f:]+\]|[a-z0-9.]*):[0-9]{1,6}", fullmatch=True))
def test_an_address_is_read_or_refused_and_its_spelling_is_stable(text: str) -> None:
    try:
        parsed = parse_address(text)
    except ValueError:
        return
    assert parse_address(str(parsed)) == parsed
    assert addresses.ADDRESS.parse(addresses.ADDRESS.show(str(parsed))) == str(parsed)


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("shop", ("shop", "", False)),
        ("shop.wsgi:app", ("shop.wsgi", "app", False)),
        ("shop:make()", ("shop", "make", True)),
        ("shop:api.app", ("shop", "api.app", False)),
        ("größe:app", ("größe", "app", False)),
    ],
)
def test_applications(text: str, spec: tuple[str, str, bool]) -> None:
    assert parse_app(text) == spec


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ("shop.py:app", "shop:app"),
        ("src/shop.py", "src.shop:app"),
        ("shop:make(1)", "passes arguments"),
        (":app", "name of a module"),
        ("shop:", "name in a module"),
        ("shop:a b", "name in a module"),
        ("shop-x:app", "name of a module"),
        ("", "name of a module"),
        ("shop:()", "name in a module"),
        ("shop:)", "name in a module"),
    ],
)
def test_what_is_no_application(bad: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_app(bad)


@given(st.lists(st.from_regex(r"[^\W\d]\w{0,30}", fullmatch=True).filter(str.isidentifier), min_size=1, max_size=4))
def test_every_module_gives_a_name_that_is_allowed(parts: list[str]) -> None:
    kinds.NAME.parse(default_name(".".join(parts)))


@pytest.mark.parametrize("bad", ["", ".", "..", "-n", "_x", "a/b", "a b", "x" * 65, "ä", "a\n"])
def test_names_are_safe_as_directories(bad: str) -> None:
    with pytest.raises(ValueError, match="is not a name"):
        kinds.NAME.parse(bad)


@pytest.mark.parametrize("bad", ["health", "/a b", "/ü", "/a#b", "/\r\nX: y", ""])
def test_warm_up_paths_cannot_carry_anything_else_into_a_request(bad: str) -> None:
    with pytest.raises(ValueError, match="path of a request"):
        kinds.WEB_PATH.parse(bad)


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
@given(value=ANYTHING | st.text(string.digits + ":.kmgsh[]/", max_size=8))
def test_any_value_is_read_or_refused_with_a_reason(option, value) -> None:
    """Nothing but ValueError ever comes out of a kind, and what it shows is read back as the same value."""
    try:
        parsed = option.kind.parse(value)
    except ValueError as error:
        assert str(error)
        return
    if option.kind is not kinds.ASSIGNMENT:
        assert option.kind.parse(option.kind.show(parsed)) == parsed
