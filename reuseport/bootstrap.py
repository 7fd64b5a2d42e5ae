"""The first file of the server that a release's interpreter runs. It provides the packages that are missing there.

    PYTHON -P bootstrap.py reuseport.zygote

The master executes this file by its path, so the release's environment need not contain reuseport. A package that the
interpreter finds by itself always comes from that environment. A package of `WANTED` that it does not find comes from
the server's environment. A finder provides it, and sys.path stays unchanged: the application can import nothing else of
the server's environment.

`multiprocessing` imports this file again, as `__mp_main__`, in the processes that it spawns. They find the same
packages. A process that the application starts in another way gets nothing from here.

This file imports nothing of the package before the finder is there.
"""

import contextlib
import importlib.machinery
import importlib.util
import json
import os
import re
import runpy
import sys
import warnings

PREFIX = "this environment cannot run the server: "  # the master looks for this line in the output of a boot
ZYGOTE_VARIABLE = "REUSEPORT_ZYGOTE"  # as in ipc/inherited.py
# JSON, from `master/lending.py`: the server's packages. It stays in the environment while one of them is used.
SERVER_VARIABLE = "REUSEPORT_SERVER"

# The packages that the server's code needs; gevent needs those of zope.
NAMESPACE = "zope"
WANTED = ("reuseport", "gevent", "greenlet", NAMESPACE, "zope.event", "zope.interface", "setproctitle")
COMPILED = frozenset({"gevent", "greenlet", "setproctitle"})  # zope.interface also works without its extension module
OPTIONAL = frozenset({"setproctitle"})  # see ipc/title.py


class Unusable(Exception):
    """This interpreter cannot run the server's code; the message says why, and what to install."""


class Lender:
    """Finds the packages that this environment lacks in the server's. `places`: the directory of each."""

    def __init__(self, places):
        self.places = places

    def find_spec(self, fullname, path=None, target=None):
        place = self.places.get(fullname)
        if place is None and fullname.partition(".")[0] not in self.places:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path if place is None else [place])
        if spec is not None and type(spec.loader) is importlib.machinery.SourceFileLoader:
            spec.loader = Unwriting(spec.loader.name, spec.loader.path)
        return spec


class Unwriting(importlib.machinery.SourceFileLoader):
    """Reads bytecode and writes none: this interpreter may be of another version or user than the server's."""

    def set_data(self, path, data, *, _mode=0o666):
        pass


def lend(server):
    """Provide what is missing, and return its names. Unusable where it does not fit this interpreter."""
    missing = [name for name in WANTED if not has(name)]
    places = {}
    for name in missing:
        if name in COMPILED and server["suffix"] != suffix():
            if name not in OPTIONAL:
                raise Unusable(f"{unfit(name, server)}. {remedy(name)}")
        elif name in server["places"]:
            places[name] = server["places"][name]
        elif name not in OPTIONAL:
            raise Unusable(f"neither {sys.executable} nor the server's environment has {name}. {remedy(name)}")
    if places:
        sys.meta_path.insert(0, Lender(places))
    return list(places)


def has(name):
    """Whether this environment has a package. A directory without code, such as an uninstallation leaves, is none."""
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        return False  # it lies in a namespace that is not there
    return spec is not None and (spec.origin is not None or name == NAMESPACE)


def suffix():
    """The end of the names of this interpreter's extension modules: Python's version, ABI and platform (PEP 3149)."""
    return importlib.machinery.EXTENSION_SUFFIXES[0]


def unfit(name, server):
    here, there = (one.strip(".").removesuffix(".so") for one in (suffix(), server["suffix"]))
    return (
        f"{sys.executable} (Python {version_text()}, {here}) has no {name}, and the server's is compiled for Python "
        f"{server['python']} ({there})"
    )


def remedy(name):
    also = [f"greenlet=={own}"] if name != "greenlet" and (own := version_of("greenlet")) else []
    return f"Add {name} to the release's requirements: {sys.executable} -m pip install {' '.join([name, *also])}"


def version_text():
    return ".".join(map(str, sys.version_info[:3]))


def version_of(name):
    """The version of an installed distribution of this environment; "" where there is none."""
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def try_out(lent):
    """Import gevent and greenlet if one of them is the server's. Unusable where they do not fit this environment.

    Cython warns when the size of a type from another package differs from the size that it was compiled with.
    """
    if not {"gevent", "greenlet"} & set(lent):
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*size changed", RuntimeWarning)
        try:
            for name in ("greenlet", "gevent"):
                importlib.import_module(name)  # and not by a statement: the master imports this file
        except Exception as error:  # noqa: BLE001 - an extension module may raise anything when it does not fit
            whose = {name: "the server's" if name in lent else "the application's" for name in WANTED}
            text = f"{whose['gevent']} gevent cannot be used with {whose['greenlet']} greenlet"
            own = version_of("greenlet") and "greenlet" not in lent
            text += f" {version_of('greenlet')}" if own else ""
            raise Unusable(f"{text}: {type(error).__name__}: {error}. {remedy('gevent')}") from None


def needed_greenlet(server):
    """The oldest greenlet that the server's gevent asks for, e.g. "3.2.2"; "" where that cannot be read."""
    from importlib import metadata

    for found in metadata.distributions(name="gevent", path=[server["places"]["gevent"]]):
        bounds = [re.match(r"greenlet\W*>=\s*([\d.]+\d)", line) for line in found.requires or ()]
        return min((bound[1] for bound in bounds if bound), key=numbers, default="")
    return ""


def numbers(version):
    return [int(number) for number in re.findall(r"\d+", version)[:3]]


def too_old_greenlet(lent, server):
    """A warning where the server's gevent asks for a newer greenlet than the application has; else ""."""
    if "gevent" not in lent or "greenlet" in lent:
        return ""
    own, needed = version_of("greenlet"), needed_greenlet(server)
    if not own or not needed or numbers(own) >= numbers(needed):
        return ""
    return (
        f"the server's gevent asks for greenlet {needed} or newer, and the application has {own}: install a gevent "
        f"for this greenlet in its environment ({sys.executable} -m pip install gevent greenlet=={own})"
    )


def start(module):
    """Run `main()` of a module of the package, once this environment has all that it needs."""
    server = json.loads(os.environ.get(SERVER_VARIABLE) or '{"places": {}, "suffix": "", "python": ""}')
    lent = lend(server)
    if not lent:
        os.environ.pop(SERVER_VARIABLE, None)  # nothing for the application's own processes to look for
    try_out(lent)
    told = json.loads(os.environ.get(ZYGOTE_VARIABLE) or "{}")
    if told.pop("file_variables", False) and not has("reuseport.worker.filevariables"):
        raise Unusable(
            f"its reuseport {version_of('reuseport')} does not take the variables of --env-file when root starts it "
            "for another user: install the server's version there, or use --env"
        )
    told.update(lent=lent, mismatch=too_old_greenlet(lent, server))
    os.environ[ZYGOTE_VARIABLE] = json.dumps(told)
    if importlib.util.find_spec("reuseport.entry") is None:
        start_earlier(module)
    else:
        importlib.import_module("reuseport.entry").run(module)


def start_earlier(module):
    """Run a module of the application's own reuseport, if that is from before `entry.py`: as `python -m` did."""
    deferred = sys.modules.get("reuseport:startup")  # see startup/sitecustomize.py; such a package never runs it
    if deferred is not None:
        deferred.run()
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    try:
        start(sys.argv.pop(1))
    except Unusable as error:
        sys.stderr.write(f"{PREFIX}{error}\n")
        sys.stderr.flush()
        os._exit(1)
elif __name__ == "__mp_main__" and SERVER_VARIABLE in os.environ:
    # It inherits sys.path, which says nothing of the finder. Where the packages do not fit, it does without.
    with contextlib.suppress(Unusable):
        lend(json.loads(os.environ[SERVER_VARIABLE]))
