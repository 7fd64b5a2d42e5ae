"""`reuseport completion bash|zsh|fish`: a shell's completion, made from the commands and options as they are declared.

What is printed holds everything, and runs nothing of ours while somebody types.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from reuseport.cli.main import COMMANDS, module_of
from reuseport.options import Option, OptionError, kinds
from reuseport.options.manual import manual
from reuseport.options.table import FLAG

TARGETS = ("bash", "zsh", "fish")

ABOUT = """\
Prints what completes reuseport's commands, options and their values in a shell. To have it always, one of:

    echo 'source <(reuseport completion bash)' >> ~/.bashrc

    reuseport completion zsh > ~/.zfunc/_reuseport  # a directory of $fpath

    reuseport completion fish > ~/.config/fish/completions/reuseport.fish

Exit status: 0 it was printed; 2 wrong usage."""

TAKES: tuple[Option, ...] = ()

# What a value is, beside one of a few words.
FILES, DIRECTORIES, USERS, GROUPS, ANYTHING = "files", "directories", "users", "groups", "anything"


class Flag(NamedTuple):
    """`values`: what completes its value, None for a flag without one. `optional`: the value may be left out."""

    names: tuple[str, ...]
    values: str | tuple[str, ...] | None
    about: str
    repeatable: bool = False
    optional: bool = False


class Command(NamedTuple):
    """`words`: what its first argument may be."""

    name: str
    about: str
    flags: tuple[Flag, ...]
    words: tuple[str, ...]


def help_text() -> str:
    return manual(TAKES, "reuseport completion bash|zsh|fish", ABOUT, shutil.get_terminal_size().columns)


def run(argv: Sequence[str]) -> int:
    """Print the script. Raises OptionError."""
    if len(argv) != 1 or argv[0] not in TARGETS:
        raise OptionError(f"completion: for which shell? reuseport completion {'|'.join(TARGETS)}")
    make = {"bash": bash, "zsh": zsh, "fish": fish}[argv[0]]
    sys.stdout.write(make(commands()))
    return 0


def commands() -> list[Command]:
    """Every command with what can be typed behind it."""
    made = []
    for name, about in COMMANDS.items():
        module = module_of(name)
        made.append(Command(name, _short(about), tuple(_flags(module.TAKES)), tuple(getattr(module, "TARGETS", ()))))
    return [*made, Command("help", "explain a command", (), tuple(COMMANDS))]


def _flags(options: Iterable[Option]) -> Iterator[Flag]:
    for option in options:
        if option.positional or FLAG not in option.where:
            continue
        about = _short(re.split(r"(?<=[a-z)0-9])[.;:] ", option.help)[0].rstrip("."))
        names = (*option.flags, option.flag)
        yield Flag(names, _values(option), about, option.repeatable, option.bare is not None)
        if option.is_switch and option.default:
            yield Flag(("--no-" + option.flag.removeprefix("--"),), None, f"not: {about}")
    yield Flag(("-h", "--help"), None, "explain the command")


def _values(option: Option) -> str | tuple[str, ...] | None:
    if option.is_switch:
        return None
    words = option.kind.metavar.split("|")
    if len(words) > 1 and option.kind.metavar.islower():
        return tuple(words)
    if option.kind in (kinds.PATH, kinds.LATE_PATH, kinds.DIRECTORIES):
        return DIRECTORIES if "DIR" in (option.metavar, option.kind.metavar) else FILES
    if option.kind is kinds.ACCOUNT:
        return USERS if option.name == "user" else GROUPS
    return ANYTHING


def _short(text: str) -> str:
    """Without the second half of a sentence, and in one line of a menu."""
    text = text.partition(": reuseport ")[0]
    return text if len(text) <= 72 else text[:71].rsplit(" ", 1)[0].rstrip(",;") + " …"


# --- bash


def bash(all_commands: Sequence[Command]) -> str:
    lines = [
        "# Completes reuseport in bash: source <(reuseport completion bash)",
        "_reuseport() {",
        '    local word=${COMP_WORDS[COMP_CWORD]} flag=${COMP_WORDS[COMP_CWORD-1]} command=${COMP_WORDS[1]} flags=""',
        '    local first=""',
        "    COMPREPLY=()",
        "    # --flag=value is three words to bash.",
        '    if [[ $word == "=" ]]; then word=""',
        '    elif [[ $flag == "=" ]]; then flag=${COMP_WORDS[COMP_CWORD-2]}; fi',
        "    if (( COMP_CWORD == 1 )); then",
        f'        COMPREPLY=($(compgen -W "{" ".join(c.name for c in all_commands)} --help --version" -- "$word"))',
        "        return",
        "    fi",
        '    case "$command $flag" in',
    ]
    for pattern, values in _by_values(all_commands):
        if values is not None:
            lines.append(f"        {pattern}) {_bash_values(values)}; return ;;")
    lines += ["    esac", "    case $command in"]
    for one in all_commands:
        flags = " ".join(name for flag in one.flags for name in flag.names)
        lines.append(f'        {one.name}) flags="{flags}" first="{" ".join(one.words)}" ;;')
    lines += [
        "    esac",
        "    (( COMP_CWORD == 2 )) || first=",
        "    if [[ $word == -* ]]; then",
        '        COMPREPLY=($(compgen -W "$flags" -- "$word"))',
        "    elif [[ $first ]]; then",
        '        COMPREPLY=($(compgen -W "$first" -- "$word"))',
        "    else",
        "        compopt -o default 2>/dev/null",
        "    fi",
        "}",
        "complete -F _reuseport reuseport",
        "",
    ]
    return "\n".join(lines)


def _by_values(all_commands: Sequence[Command]) -> Iterator[tuple[str, str | tuple[str, ...] | None]]:
    """Patterns for "COMMAND FLAG", with what completes the flag's value."""
    together: dict[str | tuple[str, ...] | None, list[str]] = {}
    for one in all_commands:
        for flag in one.flags:
            together.setdefault(flag.values, []).extend(f'"{one.name} {name}"' for name in flag.names)
    for values, patterns in together.items():
        yield " | ".join(patterns), values


def _bash_values(values: str | tuple[str, ...]) -> str:
    if values == ANYTHING:
        return ":"
    if isinstance(values, tuple):
        return f'COMPREPLY=($(compgen -W "{" ".join(values)}" -- "$word"))'
    letter = {FILES: "f", DIRECTORIES: "d", USERS: "u", GROUPS: "g"}[values]
    names = "compopt -o filenames 2>/dev/null; " if values in (FILES, DIRECTORIES) else ""
    return f'{names}mapfile -t COMPREPLY < <(compgen -{letter} -- "$word")'


# --- zsh


def zsh(all_commands: Sequence[Command]) -> str:
    lines = [
        "#compdef reuseport",
        "# Completes reuseport in zsh: reuseport completion zsh > DIR/_reuseport, DIR being one of $fpath",
        "_reuseport() {",
        "    local -a commands",
        "    if (( CURRENT == 2 )); then",
        "        commands=(",
    ]
    for one in all_commands:
        lines.append(f"            {_quoted(one.name + ':' + one.about)}")
    lines += [
        "        )",
        "        _describe -t commands command commands",
        "        return",
        "    fi",
        "    local command=$words[2]",
        "    shift words",
        "    (( CURRENT-- ))",
        "    case $command in",
    ]
    for one in all_commands:
        specs = [spec for flag in one.flags for spec in _zsh_specs(flag)]
        specs.append(f"1:what:({' '.join(one.words)})" if one.words else "*:what:_default")
        lines.append(f"        {one.name})")
        lines.append("            _arguments -s -S \\\n" + " \\\n".join(f"                {_quoted(s)}" for s in specs))
        lines.append("            ;;")
    lines += [
        "    esac",
        "}",
        "# Sourced, or as a file of $fpath.",
        'if [[ $funcstack[1] == _reuseport ]]; then _reuseport "$@"; else compdef _reuseport reuseport; fi',
        "",
    ]
    return "\n".join(lines)


def _zsh_specs(flag: Flag) -> Iterator[str]:
    about = re.sub(r"([\\\[\]:])", r"\\\1", flag.about)
    action = {FILES: "_files", DIRECTORIES: "_files -/", USERS: "_users", GROUPS: "_groups", ANYTHING: " "}
    others = "*" if flag.repeatable else f"({' '.join(flag.names)})" if len(flag.names) > 1 else ""
    for name in flag.names:
        if flag.values is None:
            yield f"{others}{name}[{about}]"
            continue
        values = f"({' '.join(flag.values)})" if isinstance(flag.values, tuple) else action[flag.values]
        # The value is a word of its own, or behind "=": of a short flag, also without.
        yield f"{others}{name}{'=' if name.startswith('--') else '+'}[{about}]{':' * (1 + flag.optional)}value:{values}"


# --- fish


def fish(all_commands: Sequence[Command]) -> str:
    lines = [
        "# Completes reuseport in fish: reuseport completion fish > ~/.config/fish/completions/reuseport.fish",
        "complete -c reuseport -n __fish_use_subcommand -f -l version -d 'print the version'",
        "complete -c reuseport -n __fish_use_subcommand -f -s h -l help -d 'list the commands'",
    ]
    for one in all_commands:
        begin = "complete -c reuseport -n __fish_use_subcommand -f"
        lines.append(f"{begin} -a {one.name} -d {_quoted(one.about, fish=True)}")
    for one in all_commands:
        begin = f"complete -c reuseport -n '__fish_seen_subcommand_from {one.name}'"
        if one.words:
            lines.append(f"{begin} -f -a {_quoted(' '.join(one.words), fish=True)}")
        for flag in one.flags:
            names = " ".join(f"-l {n[2:]}" if n.startswith("--") else f"-s {n[1:]}" for n in flag.names)
            lines.append(f"{begin} {names} {_fish_values(flag.values)} -d {_quoted(flag.about, fish=True)}")
    return "\n".join([*lines, ""])


def _fish_values(values: str | tuple[str, ...] | None) -> str:
    if values is None:
        return "-f"
    if isinstance(values, tuple):
        return f"-x -a {_quoted(' '.join(values), fish=True)}"
    return {
        FILES: "-r -F",
        DIRECTORIES: "-x -a '(__fish_complete_directories)'",
        USERS: "-x -a '(__fish_complete_users)'",
        GROUPS: "-x -a '(__fish_complete_groups)'",
        ANYTHING: "-x",
    }[values]


def _quoted(text: str, fish: bool = False) -> str:
    """A word in single quotes, which fish escapes in its own way."""
    return "'" + (text.replace("\\", "\\\\").replace("'", "\\'") if fish else text.replace("'", "'\\''")) + "'"
