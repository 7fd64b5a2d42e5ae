"""What the options came to: one immutable value, with where each part of it came from.

What is needed to read the same sources again is kept inside, because a release does that; and the whole is JSON,
because it travels from a master to zygotes that may be of another version. So a reader ignores what it does not know
and fills in what it misses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from reuseport.options.table import BY_NAME, OPTIONS, Option

DEFAULT = "default"

# What is kept of the environment: the options' variables, and what a default looks at. The rest may hold secrets.
_KEPT = {"RUNTIME_DIRECTORY", "STATE_DIRECTORY", "XDG_RUNTIME_DIR"}.union(
    *((one.variable, *one.fallbacks) for one in OPTIONS)
)


class Origin(NamedTuple):
    """What a configuration is read from, so that it can be read again.

    `keywords` are those of an embedding, in the place of flags; `script` is the name that such a master goes by if it
    has neither a name nor an application's module.
    """

    argv: tuple[str, ...] = ()
    environ: Mapping[str, str] = MappingProxyType({})
    cwd: str = "/"
    keywords: Mapping[str, Any] | None = None
    script: str = ""


class Settings:
    """Every option's value as an attribute of its name.

    `sources` maps a name to "flag", "environment", "file" or "default"; `places` to the flag, variable or file and key
    that said it, "" for a default; "env.KEY" in both is one key of a table. `remarks` are lines for the user about what
    was taken but means nothing.
    """

    __slots__ = ("_values", "origin", "places", "remarks", "sources")

    _values: Mapping[str, Any]
    sources: Mapping[str, str]
    places: Mapping[str, str]
    remarks: tuple[str, ...]
    origin: Origin

    def __init__(
        self, values: Mapping[str, Any], said: Mapping[str, tuple[str, str]], remarks: Iterable[str], origin: Origin
    ) -> None:
        """Missing values are filled by defaults, which may depend on others; a default is never an error."""
        complete: dict[str, Any] = {}
        for option in OPTIONS:
            if option.name in values:
                value = values[option.name]
            else:
                value = option.default(complete, origin) if callable(option.default) else option.default
                value = anchored(option, value, origin.cwd)
            complete[option.name] = _frozen(value)
        put = super().__setattr__
        put("_values", MappingProxyType(complete))
        every = {**dict.fromkeys(complete, (DEFAULT, "")), **said}
        put("sources", MappingProxyType({name: source for name, (source, _) in every.items()}))
        put("places", MappingProxyType({name: place for name, (_, place) in every.items()}))
        put("remarks", tuple(remarks))
        put("origin", origin)

    def __getattr__(self, name: str) -> Any:
        try:
            return object.__getattribute__(self, "_values")[name]
        except KeyError:
            raise AttributeError(f"there is no option {name!r}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"settings do not change: {name!r} cannot be set")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"settings do not change: {name!r} cannot be deleted")

    def __eq__(self, other: object) -> bool:
        """Equal in values, where they came from, and what a release would read; remarks are only about the reading."""
        if not isinstance(other, Settings):
            return NotImplemented
        return {**self.to_json(), "remarks": []} == {**other.to_json(), "remarks": []}

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        said = ", ".join(f"{name}={value!r}" for name, value in self._values.items() if self.sources[name] != DEFAULT)
        return f"Settings({said})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Settings.from_json, (self.to_json(),)

    def to_json(self) -> dict[str, Any]:
        """The whole as types of JSON. Fields are only ever added: an older or a newer version reads it."""
        return {
            "values": _thawed(self._values),
            "said": {name: [source, self.places[name]] for name, source in self.sources.items() if source != DEFAULT},
            "remarks": list(self.remarks),
            "origin": _thawed(self.origin._asdict()),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Settings:
        """The inverse of to_json: what is unknown is ignored, what is missing gets its default."""
        known = {name: value for name, value in data.get("values", {}).items() if name in BY_NAME}
        said = {
            name: (place[0], place[1])
            for name, place in data.get("said", {}).items()
            if name.partition(".")[0] in BY_NAME
        }
        origin = {name: value for name, value in data.get("origin", {}).items() if name in Origin._fields}
        return cls(known, said, data.get("remarks", ()), make_origin(**origin))

    def keeping(self, other: Settings, names: Iterable[str]) -> Settings:
        """These settings, but with the values that `other` has for `names`."""
        mine, others = self.to_json(), other.to_json()
        for name in names:
            mine["values"][name] = others["values"][name]
            mine["said"].pop(name, None)
            if name in others["said"]:
                mine["said"][name] = others["said"][name]
        return Settings.from_json(mine)

    def where(self, name: str) -> str:
        """Where an option's value came from, as the beginning of a message about it."""
        return self.places[name] or (name if BY_NAME[name].positional else BY_NAME[name].flag)


def changed_at_start_only(old: Settings, new: Settings) -> list[str]:
    """Names of options that differ although only a start brings their effect.

    What followed from another option in both (the run directory from the name) is not news of its own.
    """
    return [
        option.name
        for option in OPTIONS
        if option.effect == "start"
        and getattr(old, option.name) != getattr(new, option.name)
        and not old.sources[option.name] == new.sources[option.name] == DEFAULT
    ]


# Options that an upgrade in place brings, of those that only a start brings otherwise.
BY_UPGRADE = ("tenant", "tenant_isolation")
# Options in which a master that takes over cannot differ from the running one.
NOT_BY_TAKEOVER = frozenset({"name", "run_dir", "state_dir", "user", "group", "bind", "beside", "backlog"})


def ways_to_change(names: Sequence[str]) -> list[str]:
    """For an operator who has changed options that take effect at a start: a sentence for each way to get that."""
    ways: dict[str, list[str]] = {}
    for name in names:
        if name == "takeover":
            continue  # it only says how a master starts
        if name in BY_UPGRADE:
            way = "run `reuseport upgrade` and release again, take over (`reuseport serve --takeover`), "
            way += "or stop the server and start it anew"
        elif name in NOT_BY_TAKEOVER:
            way = "stop the server and start it anew"
        else:
            way = "take over (`reuseport serve --takeover`), or stop the server and start it anew"
        ways.setdefault(way, []).append(BY_NAME[name].flag)
    return [
        f"{', '.join(flags)} changed in the configuration, and the running server keeps its "
        f"value{'s' if len(flags) > 1 else ''}. To change that: {way}"
        for way, flags in ways.items()
    ]


def make_origin(
    argv: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
    cwd: str = "/",
    keywords: Mapping[str, Any] | None = None,
    script: str = "",
) -> Origin:
    kept = {name: value for name, value in (environ or {}).items() if name in _KEPT}
    return Origin(tuple(argv), MappingProxyType(kept), cwd, None if keywords is None else _frozen(keywords), script)


def anchored(option: Option, value: Any, cwd: str) -> Any:
    if option.kind.anchor is None:
        return value
    if option.repeatable:
        return tuple(option.kind.anchor(item, cwd) for item in value)
    return option.kind.anchor(value, cwd)


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return MappingProxyType({key: _frozen(item) for key, item in value.items()})
    if isinstance(value, list | tuple):
        return tuple(_frozen(item) for item in value)
    return value


def _thawed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _thawed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_thawed(item) for item in value]
    return value
