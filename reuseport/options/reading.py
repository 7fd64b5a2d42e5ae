"""From a command line, the environment and a file to settings.

A flag wins over the environment, that over the file, that over the default; but in what says which server it is
(`PLACE`), a file that the command line names wins over the environment. Everything said is parsed where it was
said, so that a mistake is reported with the flag, the variable or the file and key that made it, even if a stronger
source would have hidden it.
"""

from __future__ import annotations

import os
import re
import stat
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from reuseport.options import kinds, networks
from reuseport.options.arguments import OptionError, did_you_mean, one_line, scan
from reuseport.options.option import ENVIRONMENT, FILE, FLAG, PREFIX, Foreign, Option
from reuseport.options.settings import Origin, Settings, anchored, make_origin
from reuseport.options.table import BY_NAME, FOREIGN, OPTIONS

DEFAULT_FILE = "reuseport.toml"
PLACE = ("name", "run_dir", "state_dir")  # say which server it is, and where it lives


class Said(NamedTuple):
    """Something said about an option: in `source` (FLAG, ...), at `place` (a flag, a variable, "file: key")."""

    source: str
    place: str
    value: Any


Words = list[tuple[str, Said]]  # (an option's name, what was said about it)


def load(argv: Sequence[str], environ: Mapping[str, str], cwd: str) -> Settings:
    """Settings from the arguments of `serve`. Raises OptionError."""
    return _read(make_origin(argv=argv, environ=environ, cwd=cwd), slips(environ))


def from_keywords(app: str | None, **options: Any) -> Settings:
    """Settings from the keywords of `reuseport.serve`, in the place of flags; the environment and a file count too.

    Raises OptionError, also for a name that is no option.
    """
    script = os.path.basename(sys.argv[0] if sys.argv else "").removesuffix(".py")
    script = re.sub(r"[^A-Za-z0-9._-]", "-", script).lstrip("._-")[:64]
    keywords = {"app": app, **options} if app is not None else options
    # JSON has neither tuples nor paths; what cannot be said in it cannot travel to a zygote.
    keywords = {name: _plain(name, value) for name, value in keywords.items()}
    environ = dict(os.environ)
    return _read(
        make_origin(environ=environ, cwd=working_directory(environ), keywords=keywords, script="" if app else script),
        slips(environ),
    )


def reload(settings: Settings) -> Settings:
    """Read the same sources again, the file as it is now. Raises OptionError."""
    return _read(settings.origin, [])


def working_directory(environ: Mapping[str, str]) -> str:
    """The working directory as the user sees it: $PWD keeps a `current` link that getcwd() has already followed.

    Raises OptionError if it has been removed and $PWD does not name another one by now.
    """
    logical = environ.get("PWD", "")
    try:
        real = str(Path.cwd())
    except FileNotFoundError as error:
        if logical.startswith("/") and Path(logical).is_dir():
            return logical
        raise OptionError("the working directory does not exist any more; cd to one that does") from error
    return logical if logical.startswith("/") and os.path.realpath(logical) == real else real


def _read(origin: Origin, remarks: list[str]) -> Settings:
    typed = from_flags(origin.argv, OPTIONS, remarks, FOREIGN) + _from_keywords(origin.keywords or {}, remarks)
    variables = from_environment(origin.environ, OPTIONS)
    path, place = config_file(typed, variables, origin.cwd)
    in_file = from_table(read_toml(path, place), path, remarks) if path else []
    # The weakest source first: the last word counts, and tables add up.
    said = [*in_file, *variables, *typed]
    if any(name == "config" for name, _ in typed):
        said = [*said[: -len(typed)], *_over_variables(in_file, variables, remarks), *typed]
    if origin.keywords is not None and "app" not in origin.keywords:
        # The application was passed as an object, which is as strong a word as any.
        said = [word for word in said if word[0] != "app"]
    values: dict[str, Any] = {}
    places: dict[str, tuple[str, str]] = {}
    for option in OPTIONS:
        mine = [word for name, word in said if name == option.name]
        if mine:
            values[option.name] = merge(option, mine, origin.cwd)
            places[option.name] = (mine[-1].source, mine[-1].place)
            if option.kind is kinds.ASSIGNMENT:
                places |= {f"{option.name}.{word.value[0]}": (word.source, word.place) for word in mine}
    if path:
        values["config"] = path
    if values.get("max_requests_jitter") and not values.get("max_requests"):
        remarks.append(f"{places['max_requests_jitter'][1]} means nothing without max_requests")
    return Settings(values, places, remarks, origin)


def _over_variables(in_file: Words, variables: Words, remarks: list[str]) -> Words:
    """What a file that the command line names says about which server it is: that counts more than a variable."""
    words = [word for word in in_file if word[0] in PLACE]
    for name, said in words:
        for _, other in (word for word in variables if word[0] == name):
            if other.value != said.value:
                remarks.append(one_line(f"{other.place} does not count: {said.place} is in the file that -c names"))
    return words


def from_flags(
    argv: Sequence[str], options: Sequence[Option], remarks: list[str], foreign: Sequence[Foreign] = ()
) -> Words:
    """What a command line says, parsed. Raises OptionError."""
    words: Words = []
    for entry, flag, text in scan(argv, options, foreign):
        if text is not None and not text.strip() and (isinstance(entry, Foreign) or not entry.empty):
            place = entry.name if isinstance(entry, Option) and entry.positional else flag
            raise OptionError(_is_empty(place, "leave it out for its default"))
        if isinstance(entry, Foreign):
            _remark_on(entry, flag if text is None else f"{flag} {text}", text, remarks)
            continue
        place = entry.name if entry.positional else flag
        if text is None and entry.bare:
            text, remark = entry.bare
            remarks += [remark] if remark else []
        for item in _items(
            entry, "true" if text is None else text, place, split=entry.kind in (kinds.DIRECTORIES, networks.PEER)
        ):
            words.append((entry.name, Said(FLAG, place, _parsed(entry, item, place))))
    return words


def from_environment(environ: Mapping[str, str], options: Sequence[Option]) -> Words:
    """What the variables say, parsed. An empty one says nothing; one that would decide which server is meant is an
    error. Raises OptionError."""
    words: Words = []
    names = {option.variable.removeprefix(PREFIX): option for option in options if ENVIRONMENT in option.where}
    for option in names.values():
        if option.decisive and option.variable in environ and not environ[option.variable].strip():
            raise OptionError(_is_empty(option.variable, "unset it for its default"))
        variable = next((name for name in (option.variable, *option.fallbacks) if environ.get(name)), None)
        if variable:
            for item in _items(option, environ[variable], variable, split=True):
                words.append((option.name, Said(ENVIRONMENT, variable, _parsed(option, item, variable))))
    return words


def slips(environ: Mapping[str, str]) -> list[str]:
    """A remark on each variable that looks like an option's, misspelt. Others may use the prefix for their own ends."""
    names = {option.variable.removeprefix(PREFIX) for option in OPTIONS}
    hints = {
        variable: did_you_mean(variable.removeprefix(PREFIX), names, PREFIX)
        for variable in sorted(environ)
        if variable.startswith(PREFIX) and variable.removeprefix(PREFIX) not in names
    }
    return [one_line(f"{variable} in the environment is no option{hint}") for variable, hint in hints.items() if hint]


def config_file(typed: Words, variables: Words, cwd: str) -> tuple[str, str]:
    """The configuration's path ("" if there is none), and what named it ("" for the default)."""
    for words in (typed, variables):
        named = [word for name, word in words if name == "config"]
        if named:
            return os.path.join(cwd, named[-1].value), named[-1].place
    path = os.path.join(cwd, DEFAULT_FILE)
    return (path, "") if os.path.lexists(path) else ("", "")


def read_toml(path: str, place: str) -> dict[str, Any]:
    """The file's table. Raises OptionError that names the file, what asked for it, and the line."""
    asked = f"{place}: " if place else ""
    if path.endswith(".py"):
        raise OptionError(
            f"{asked}{path}: is a Python file; a TOML file is wanted, whose keys are the flags' long names: "
            f"`reuseport translate {path}` prints one, if this is Gunicorn's"
        )
    try:
        mode = Path(path).stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            # A pipe gives its text once, and would hold up the master for ever at the next release.
            raise OptionError(f"{asked}{path}: is not a regular file, which a release could read again")
        with Path(path).open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise OptionError(f"{asked}{path}: {(error.strerror or str(error)).lower()}") from error
    except tomllib.TOMLDecodeError as error:
        found = re.fullmatch(r"(.*) \(at (?:line (\d+), column \d+|(end of document))\)", str(error), re.DOTALL)
        line = f":{found[2]}" if found and found[2] else ""
        what = found[1] if found and found[2] else str(error)
        raise OptionError(f"{asked}{path}{line}: not valid TOML: {what[:1].lower()}{what[1:]}") from error
    except UnicodeDecodeError as error:
        raise OptionError(f"{asked}{path}: not valid TOML: byte {error.start} is not UTF-8") from error
    except RecursionError:
        raise OptionError(f"{asked}{path}: its values are nested too deeply") from None


def from_table(table: Mapping[str, Any], path: str, remarks: list[str]) -> Words:
    """What a file says, parsed. Raises OptionError that names the file and the key."""
    words: Words = []
    options = {option.name: option for option in OPTIONS if FILE in option.where}
    aliases = {alias.lstrip("-").replace("-", "_"): option for option in options.values() for alias in option.aliases}
    strangers = {entry.name: entry for entry in FOREIGN}
    seen: dict[str, str] = {}
    for key, value in table.items():
        plain = key.replace("-", "_")
        place = f"{path}: {key}"
        option = options.get(plain) or aliases.get(plain)
        if option is None:
            if plain in strangers:
                _remark_on(strangers[plain], place, value, remarks)
                continue
            if plain in BY_NAME:
                raise OptionError(f"{place}: a file cannot say this")
            raise OptionError(f"{path}: unknown key {key!r}{did_you_mean(plain, [*options, *aliases])}")
        if option.name in seen:
            raise OptionError(f"{place}: was said before, as {seen[option.name]}")
        seen[option.name] = key
        words += _typed(option, value, FILE, place)
    return words


def merge(option: Option, said: Sequence[Said], cwd: str) -> Any:
    """The option's one value: the strongest source's, all of its items, or the keys of all for a table."""
    last = said[-1]
    if option.kind is kinds.ASSIGNMENT:
        value: Any = dict(word.value for word in said)
    elif option.repeatable:
        value = tuple(word.value for word in said if word.source == last.source)
    else:
        value = last.value
    value = anchored(option, value, cwd)
    if option.check:
        try:
            option.check(value)
        except ValueError as error:
            raise OptionError(f"{last.place}: {error}") from error
    return value


def _from_keywords(keywords: Mapping[str, Any], remarks: list[str]) -> Words:
    words: Words = []
    strangers = {entry.name: entry for entry in FOREIGN}
    for name, value in keywords.items():
        place = f"serve({name}=...)"
        if name in strangers:
            _remark_on(strangers[name], place, value, remarks)
        elif name not in BY_NAME:
            raise OptionError(f"serve() has no option {name!r}{did_you_mean(name, BY_NAME)}")
        elif BY_NAME[name].where == {FLAG}:
            raise OptionError(f"{place}: only the command line can say this")
        elif value is not None:
            words += _typed(BY_NAME[name], value, FLAG, place)
    return words


def _typed(option: Option, value: Any, source: str, place: str) -> Words:
    """A value that has a type already, from a file or a keyword."""
    if option.kind is kinds.ASSIGNMENT and isinstance(value, Mapping):
        items: list[Any] = list(value.items())
    elif option.repeatable:
        items = list(value) if isinstance(value, list | tuple) else [value]
        if any(isinstance(item, str) and not item.strip() for item in items):
            raise OptionError(f"{place}: one of the values is empty")
    else:
        items = [value]
    return [(option.name, Said(source, place, _parsed(option, item, place))) for item in items]


def _items(option: Option, text: str, place: str, *, split: bool) -> list[str]:
    if not option.repeatable or not split:
        return [text]
    try:
        items = option.kind.split(text)
    except ValueError as error:
        raise OptionError(f"{place}: {error}") from error
    if not items:
        raise OptionError(f"{place}: {text!r} holds no value")
    return items


def _is_empty(place: str, remedy: str) -> str:
    return f"{place}: the value is empty (is a variable not set?); {remedy}"


def _parsed(option: Option, value: Any, place: str) -> Any:
    try:
        return option.kind.parse(value)
    except ValueError as error:
        raise OptionError(f"{place}: {error}") from error


def _remark_on(entry: Foreign, said: str, value: Any, remarks: list[str]) -> None:
    if value is False or (value is None and not said.startswith("-")):
        # `daemon = false` asks for nothing.
        return
    if entry.refused:
        raise OptionError(f"{said} {entry.says}")
    for part, says in (entry.refused_values or {}).items():
        if isinstance(value, str) and part in value.lower():
            raise OptionError(f"{said} {says}")
    remarks.append(one_line(f"{said} {entry.says}"))


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(name, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(name, item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise OptionError(f"serve({name}=...): {value!r} is not a value that an option can have")
