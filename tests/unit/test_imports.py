"""Imports go one way, so that which process runs a file can be seen from where it lies.

Every file is parsed, so imports inside functions count too. What only a type checker reads (`if TYPE_CHECKING`) does
not.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import resolve_name
from pathlib import Path

import reuseport

ROOT = Path(reuseport.__file__).parent

# What each part may import of the package, beside itself. `embed` is the door between an application and both of the
# processes that it may find itself in; it reaches the zygote's side only through sys.modules.
PARTS = {
    "core": set(),
    "ipc": {"core", "names", "options"},
    "options": set(),
    "master": {"bootstrap", "core", "ipc", "names", "options", "startup", "version"},
    "worker": {"core", "deadlines", "hooks", "ipc", "jobs", "names", "options", "spawned", "startup", "version"},
    "entry": {"ipc", "startup", "worker"},
    "zygote": {"core", "entry", "ipc", "names", "options", "startup", "worker"},
    "probe": {"entry", "ipc", "options", "startup", "version", "worker", "zygote"},
    "cli": {"core", "ipc", "master", "names", "options", "startup", "version"},
    "embed": {"ipc", "master", "options", "startup"},
    "hooks": set(),
    "jobs": {"deadlines", "names"},
    "spawned": {"deadlines", "hooks", "ipc", "jobs", "names"},
    "deadlines": set(),
    "names": set(),
    "startup": set(),
    "version": set(),
    "bootstrap": set(),
    "__init__": {"version"},
    "__main__": {"cli"},
}

# What each part may import that is not in the standard library.
OTHERS = {
    "ipc": {"setproctitle"},
    "worker": {"gevent", "greenlet"},
    "entry": {"gevent"},
    "zygote": {"gevent", "greenlet"},
    "probe": {"gevent"},
    "spawned": {"gevent"},
}

# Those that must work without what they import from elsewhere: it is imported inside functions, where it is used.
SPARING = {"spawned"}

# The core has no I/O and no clock: of the standard library it takes only what makes data and types.
PURE = {"__future__", "collections", "dataclasses", "typing"}

# Where a module's name is known only at run time.
DYNAMIC = {
    "__init__.py",  # what an application imports, lazily
    "bootstrap.py",  # the zygote or the probe, once their packages are there
    "cli/main.py",  # a command, once it is asked for
    "entry.py",  # the module that a process began with
    "cli/translate/execute.py",  # a configuration of Gunicorn's
    "worker/application.py",  # the application
    "worker/tenancy.py",  # and its function that says whose a request is
}


@dataclass(frozen=True)
class Import:
    module: str
    lazy: bool  # inside a function
    line: int


def name_of(path: Path) -> str:
    """The module that a file is."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    """The folder, or file beside the folders, that a module of the package belongs to."""
    _, _, rest = module.partition(".")
    return rest.partition(".")[0] or "__init__"


MODULES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}


@cache
def imports(module: str) -> tuple[Import, ...]:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    return tuple(_walk(tree, package, lazy=False))


def _walk(node: ast.AST, package: str, lazy: bool) -> Iterator[Import]:
    if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        for other in node.orelse:
            yield from _walk(other, package, lazy)
        return
    if isinstance(node, ast.Import):
        yield from (Import(alias.name, lazy, node.lineno) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        origin = resolve_name("." * node.level + (node.module or ""), package)
        for alias in node.names:
            whole = f"{origin}.{alias.name}"
            yield Import(whole if whole in MODULES else origin, lazy, node.lineno)
    inside = lazy or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, package, inside)


def test_imports_within_the_package_go_one_way():
    for module in MODULES:
        part = part_of(module)
        assert part in PARTS, f"{part} is new: say here what it may import"
        for one in imports(module):
            if one.module.partition(".")[0] == "reuseport":
                target = part_of(one.module)
                # `from reuseport import options` reaches the package itself as well, whose own imports are checked.
                assert target == part or target in PARTS[part], f"{module}, line {one.line}, imports {one.module}"


def test_imports_from_elsewhere():
    for module in MODULES:
        part = part_of(module)
        for one in imports(module):
            top = one.module.partition(".")[0]
            if top in ("reuseport", *OTHERS.get(part, ())):
                assert top == "reuseport" or one.lazy or part not in SPARING, f"{module} cannot do without {top}"
                continue
            assert top in sys.stdlib_module_names, f"{module}, line {one.line}, imports {top}"
            assert part != "core" or top in PURE, f"{module}, line {one.line}: the core imports {top}"


def test_the_parts_form_no_circle():
    done: set[str] = set()
    while len(done) < len(PARTS):
        free = {part for part, allowed in PARTS.items() if part not in done and allowed <= done}
        assert free, f"a circle among {sorted(set(PARTS) - done)}"
        done |= free


def reached(start: str, lazily: bool) -> set[str]:
    """Every module, of the package and beyond, that importing `start` brings in, by way of packages as Python does."""
    found: set[str] = set()
    left = [start]
    while left:
        module = left.pop()
        if module in found:
            continue
        found.add(module)
        if "." in module:
            left.append(module.rpartition(".")[0])
        if module in MODULES:
            left += [one.module for one in imports(module) if lazily or not one.lazy]
    return found


def test_a_master_never_has_gevent_or_a_parser_or_the_worker_in_it():
    found = reached("reuseport.master.entrance", lazily=True)
    assert not {"gevent", "greenlet", "httptools", "rich", "reuseport.zygote", "reuseport.embed"} & found
    assert not {module for module in found if module.startswith(("reuseport.worker", "reuseport.cli"))}
    assert "reuseport.core.machine" in found, "the walk finds what is there"


def test_serve_becomes_the_master_without_what_only_a_terminal_needs():
    assert not {"reuseport.cli.ink", "reuseport.cli.live"} & reached("reuseport.cli.serve", lazily=True)
    for command in ("main", "release", "status", "stop"):
        found = reached(f"reuseport.cli.{command}", lazily=False)
        assert not {m for m in found if m.startswith("reuseport.master")}, "a client is no master"


def test_the_package_itself_imports_nothing_until_it_is_asked():
    assert reached("reuseport", lazily=False) & set(MODULES) == {"reuseport", "reuseport.version"}
    assert not {one.module for one in imports("reuseport") if one.module in MODULES and one.lazy}


def test_every_name_the_package_promises_has_a_home_that_exists():
    changing = {"draining"}  # looked up anew each time, so it is never a name of the module itself
    assert {*reuseport._HOMES, *changing, "__version__"} == set(reuseport.__all__)
    assert all(hasattr(reuseport, name) and name not in vars(reuseport) for name in changing)
    for name, home in reuseport._HOMES.items():
        defined = {node.name for node in ast.parse(MODULES[home].read_text()).body if hasattr(node, "name")}
        assert name in defined, f"{home} has no {name}"


def test_modules_are_imported_by_a_name_made_up_at_run_time_only_where_it_is_said():
    found = set()
    for path in MODULES.values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in (
                "import_module",
                "__import__",
                "run_module",
                "run_path",
            ):
                found.add(str(path.relative_to(ROOT)))
    assert found == DYNAMIC
