"""Every script's first step: a Python that has what the script needs.

The rule, in order: a virtual environment that is active and has everything is used as it is; otherwise `.venv` in the
checkout, made and filled when it is missing or setup.cfg has changed since. So a clone and `scripts/demo` are enough.
Who knows what the next scripts need (PROVING_EXTRAS="lint queue") has it installed along with what the first one needs.

This file and the scripts themselves run on any Python from 3.8 on: their first job is to say that a Python is too old,
or to find a newer one. Everything that a user can get wrong ends in one line and exit status 1.
"""

import configparser
import fcntl
import hashlib
import importlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent.parent
VENV = CHECKOUT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "proving.json"
CONSTRAINTS = None  # a file for pip that says which versions the environment gets, beside setup.cfg
BASE = None  # the interpreter that the environment is of, where the caller has named one
OLDEST = (3, 11)
NEWEST = (3, 15)


class Unusable(Exception):
    """What the user has to know, in one line."""


def run(module, extras):
    """Run `proving.MODULE.main()` with the project and these extras of it installed; returns its exit status."""
    try:
        ensure(extras)
    except Unusable as error:
        print(f"scripts/{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        return 1
    # The server's processes must find the checkout, also in an active environment that has only its dependencies.
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if not installed() and str(CHECKOUT) not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(CHECKOUT), *paths])
    return importlib.import_module(f"proving.{module}").main()


def use_another(name, constraints=None):
    """From now on the environment is that of this name in the checkout, made under these constraints."""
    global VENV, PYTHON, STAMP, CONSTRAINTS
    VENV = CHECKOUT / name
    PYTHON = VENV / "bin" / "python"
    STAMP = VENV / "proving.json"
    CONSTRAINTS = constraints


def use_python(path):
    """From now on the environment is one of this interpreter's, such as `.venv-3.14`."""
    global BASE
    BASE = path


def ensure(extras):
    """Return if this Python has everything; otherwise become one that has."""
    if BASE is not None:
        name = ".venv-{}.{}".format(*version_of(BASE))
        use_another(name if CONSTRAINTS is None else f"{name}-oldest", CONSTRAINTS)
    elif sys.version_info[:2] < OLDEST:
        become(newer_python())
    within = Path(sys.prefix).resolve() == VENV
    as_it_is = CONSTRAINTS is None and BASE is None
    if in_venv() and not within and as_it_is and not missing(extras):
        return
    # One script at a time makes the environment; a second one waits and then finds it made.
    with (CHECKOUT / "setup.cfg").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = read_stamp()
        also = os.environ.get("PROVING_EXTRAS", "").split()
        wanted = stamp(sorted({*extras, *also, *found.get("extras", [])}))
        if found != wanted:
            make(wanted)
    if not within:
        become(PYTHON)


def become(python):
    os.execv(python, [python, *sys.argv])


def newer_python():
    for minor in range(NEWEST[1], OLDEST[1] - 1, -1):
        found = shutil.which(f"python3.{minor}")
        if found:
            return found
    needed, here = (".".join(map(str, version[:2])) for version in (OLDEST, sys.version_info))
    raise Unusable(f"needs Python {needed} or newer; this one is {here}, and no newer one is on the PATH")


def version_of(python):
    """The version of an interpreter, as two numbers; Unusable if it is none that the project runs on."""
    code = "import sys; print(*sys.version_info[:2])"
    try:
        done = subprocess.run([python, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except OSError as error:
        raise Unusable(f"--python {python}: {error.strerror}") from None
    words = done.stdout.split()
    if done.returncode or len(words) != 2 or not all(word.isdigit() for word in words):
        raise Unusable(f"--python {python}: not a Python: {(done.stdout.splitlines() or ['it printed nothing'])[-1]}")
    version = (int(words[0]), int(words[1]))
    if version < OLDEST:
        raise Unusable(f"--python {python}: it is Python {words[0]}.{words[1]}, and {OLDEST[0]}.{OLDEST[1]} is needed")
    return version


def in_venv():
    return sys.prefix != sys.base_prefix


def requirements(extras):
    """The project's requirements with these extras, as setup.cfg has them."""
    config = configparser.ConfigParser()
    config.read(CHECKOUT / "setup.cfg")
    lists = [config["options"]["install_requires"]] + [config["options.extras_require"][extra] for extra in extras]
    return [line.strip() for text in lists for line in text.splitlines() if line.strip()]


def missing(extras):
    """The requirements that this Python does not meet. Of the forms that pip takes it knows those that we use: `name`,
    `name>=version`, and either of them with `; python_version >= "3.12"`."""
    lacking = []
    for requirement in requirements(extras):
        requirement, _, marker = requirement.partition(";")
        if marker and sys.version_info[:2] < tuple(numbers(marker)):
            continue
        name, _, oldest = requirement.partition(">=")
        try:
            version = importlib.metadata.version(name.strip())
        except importlib.metadata.PackageNotFoundError:
            lacking.append(requirement)
        else:
            if numbers(version) < numbers(oldest):
                lacking.append(requirement)
    return lacking


def numbers(version):
    return [int(number) for number in re.findall(r"\d+", version)[:3]]


def installed():
    """Whether the project is installed in this Python."""
    try:
        importlib.metadata.version("reuseport")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def stamp(extras):
    """What the environment is made from; another stamp means bringing it up to date."""
    digest = hashlib.sha256((CHECKOUT / "setup.cfg").read_bytes()).hexdigest()
    found = {"setup.cfg": digest, "checkout": str(CHECKOUT), "extras": extras}
    if BASE is not None:
        found["python"] = os.path.abspath(BASE)
    if CONSTRAINTS is not None:
        found["constraints"] = CONSTRAINTS.read_text()
    return found


def read_stamp():
    """The stamp of the environment that is there; empty if there is none, or its Python has gone."""
    if not os.access(PYTHON, os.X_OK):
        return {}
    try:
        return json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}


def make(wanted):
    """Make the virtual environment, or bring it up to date, and leave the stamp as the last step."""
    if not os.access(PYTHON, os.X_OK) or read_stamp().get("python") != wanted.get("python"):
        print(f"making {VENV.name} (once; about half a minute)", file=sys.stderr)
        base = BASE or sys.executable
        for module in ("venv", "ensurepip"):
            if subprocess.run([base, "-c", f"import {module}"], stderr=subprocess.DEVNULL).returncode:
                which = "this Python" if BASE is None else BASE
                raise Unusable(f"{which} has no {module} module (on Debian and Ubuntu: apt install python3-venv)")
        call([base, "-m", "venv", "--clear", VENV], f"could not make the virtual environment {VENV.name}")
    extras = f"[{','.join(wanted['extras'])}]" if wanted["extras"] else ""
    print(f"installing reuseport{extras} into {VENV.name}", file=sys.stderr)
    pip = [PYTHON, "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
    if CONSTRAINTS is not None:
        pip += ["--constraint", CONSTRAINTS]
    call([*pip, "--editable", f"{CHECKOUT}{extras}"], "could not install from the package index")
    STAMP.write_text(json.dumps(wanted))


def call(command, trouble):
    """Run a command; Unusable with the gist of its output if it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines
        # What pip ends with then is that there is no such package.
        broken = any("connection broken by" in line for line in lines)
        why = "; no connection: pip takes another index or a proxy from PIP_INDEX_URL, PIP_PROXY" if broken else ""
        raise Unusable(f"{trouble}: {(errors or [f'exit status {done.returncode}'])[-1]}{why}")
