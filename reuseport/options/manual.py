"""The options as text: the help, and a configuration that can be read again. Both are made from the table alone."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from reuseport.options import kinds
from reuseport.options.arguments import one_line
from reuseport.options.settings import DEFAULT, Settings
from reuseport.options.table import ENVIRONMENT, FILE, OPTIONS, Option


def manual(options: Sequence[Option], usage: str, about: str, width: int = 80) -> str:
    """The whole help of a command: its usage, what it is about, and each group of options.

    Paragraphs of `about` are filled, but for those that are indented: they are commands, to be copied.
    """
    width = max(40, min(width, 100))
    parts = about.split("\n\n")
    blocks = [f"Usage: {usage}", *(part if part.startswith("    ") else _wrap(part, width, "") for part in parts)]
    for group in dict.fromkeys(option.group for option in options):
        blocks.append(f"{group}:")
        blocks += [_entry(option, width) for option in options if option.group == group]
    return "\n\n".join(blocks) + "\n"


def options_page() -> str:
    """docs/options.md: every option of `serve`, from its declaration."""
    lines = [
        "# Options",
        "",
        "Made from their declarations in `reuseport/options/declared/` (`scripts/docs`). Each is a flag of `reuseport",
        "serve`, a key of `reuseport.toml`, a variable, and a keyword of `reuseport.serve()`, but for those that say",
        "otherwise; the flag counts before the variable, and that before the file. A release reads all of it again.",
        "",
        "A file that the command line names (`-c FILE`) counts before the variables in what says which server it is:",
        "`name`, `run_dir` and `state_dir`. A name never leads to the run directory of another server:",
        "[running](running.md#which-server).",
        "",
        "An empty value on the command line is an error that names the option, unless the option's row says what it",
        "means. An empty variable counts as not set; `REUSEPORT_NAME`, `REUSEPORT_RUN_DIR` and `REUSEPORT_CONFIG` are",
        "an error when they are empty, because they decide which server is stopped. In a file, `\"\"` is the value of",
        "an option that has none.",
    ]
    for group in dict.fromkeys(option.group for option in OPTIONS):
        lines += ["", f"## {group}", "", "| option | meaning |", "|---|---|"]
        for option in OPTIONS:
            if option.group == group:
                name = _head(option).replace("|", "\\|")
                lines.append(f"| `{name}` | {option.help} {_facts(option)} |".replace("\n", " "))
                for key in option.keys:
                    lines.append(f"| `{key.name} = {key.kind.metavar or 'true'}` | {key.help} {_facts(key)} |")
    return "\n".join(lines) + "\n"


def print_config(settings: Settings) -> str:
    """Every option that a file may hold, as TOML, with its source in a comment. Reading it gives the same values."""
    lines: list[str] = []
    group = ""
    in_file = [option for option in OPTIONS if FILE in option.where]
    for option in in_file:
        if option.kind is kinds.ASSIGNMENT:
            continue
        if option.group != group:
            group = option.group
            lines += ["", f"# {group}"] if lines else [f"# {group}"]
        value, source = getattr(settings, option.name), _source(settings, option.name)
        shown = [option.kind.show(item) for item in value] if option.repeatable else option.kind.show(value)
        # TOML has no null.
        begin = f"# {option.name} is not set" if shown is None else f"{option.name} = {toml(shown)}"
        lines.append(f"{begin}  # {source}")
    for option in in_file:
        if option.kind is kinds.ASSIGNMENT:
            lines += ["", f"[{option.name}]"]
            for key, text in getattr(settings, option.name).items():
                lines.append(f"{toml_key(key)} = {toml(text)}  # {_source(settings, f'{option.name}.{key}')}")
    return "\n".join(lines) + "\n"


def _head(option: Option) -> str:
    """What is typed for it."""
    metavar = option.metavar or option.kind.metavar
    if option.positional:
        return metavar
    if option.where == {FILE}:
        return f"[[{option.name}]]"
    return ", ".join((*option.flags, option.flag)) + (f" {metavar}" if metavar else "")


def _entry(option: Option, width: int) -> str:
    entry = f"  {_head(option)}\n{_wrap(option.help, width, '      ')}\n{_wrap(_facts(option), width, '      ')}"
    return "\n".join([entry, *(_key(key, width) for key in option.keys)])


def _key(key: Option, width: int) -> str:
    text = _wrap(f"{key.help} {_facts(key)}", width, "          ")
    return f"      {key.name} = {key.kind.metavar or 'true|false'}\n{text}"


def _facts(option: Option) -> str:
    if option.default_text:
        default = option.default_text
    elif option.repeatable:
        default = ", ".join(str(option.kind.show(item)) for item in option.default)
    elif option.is_switch:
        default = "on" if option.default else "off"
    else:
        default = str(option.kind.show(option.default))
    facts = [f"Default: {_with_unit(default, option)}."]
    if option.where & {ENVIRONMENT} or option.where > {FILE}:
        names = []
        if ENVIRONMENT in option.where:
            names.append(f"Variable {' or '.join((option.variable, *option.fallbacks))}")
        if FILE in option.where:
            names.append(f"key {option.name}")
        facts.append(", ".join(names) + ".")
    if option.empty:
        facts.append(f"Empty: {option.empty}.")
    if option.effect == "start":
        facts.append("Takes effect at a start only.")
    return " ".join(facts)


def _with_unit(default: str, option: Option) -> str:
    """A default with its unit, and in words where 0 means something else: "no limit (0 requests)"."""
    unit, _, zero = option.unit.partition("; 0: ")
    if option.default_text or not unit:
        return default + (f" ({option.unit})" if option.unit else "")
    noun = re.fullmatch(r"[a-z ]+", unit)  # that can follow a figure
    if zero and default == "0":
        return f"{zero} (0 {unit})" if noun else f"{zero} (0; {unit})"
    more = f"; 0: {zero}" if zero else ""
    if not noun:
        return f"{default} ({unit}{more})"
    return f"{default} {unit.removesuffix('s') if default == '1' else unit}" + (f" (0: {zero})" if zero else "")


def _wrap(text: str, width: int, indent: str) -> str:
    return textwrap.fill(
        text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    )


def _source(settings: Settings, name: str) -> str:
    source, place = settings.sources[name], settings.places[name]
    if source == FILE:
        place = place.rpartition(": ")[0]
    return one_line(source if source == DEFAULT or place == name else f"{source} {place}")


def toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, str):
        # A TOML basic string is a JSON string, but that it has no raw DEL.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{toml_key(key)} = {toml(item)}" for key, item in value.items()) + "}"
    return "[" + ", ".join(toml(item) for item in value) + "]"


def toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key, re.ASCII) else toml(key)
