"""Releases that bring a virtual environment of their own: made as a deployment makes them, with venv and pip."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from base64 import urlsafe_b64encode
from pathlib import Path

from proving.bootstrap import CHECKOUT
from proving.round import Round
from proving.server import ServerTrouble


class TwoEnvironments(Round):
    """A round whose releases each bring a virtual environment of their own, with a package in its own version."""

    def prepare(self) -> None:
        self.interpreters = interpreters()
        self.newest = self.interpreters[-1]
        self.equip(1, self.interpreters[0])

    def equip(self, version: int, python: str) -> None:
        self.tell(f"making the virtual environment of release {version} with {Path(python).name}")
        venv = self.releases.directory(version) / "venv"
        quietly([python, "-m", "venv", str(venv)])
        pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        quietly([*pip, "--editable", str(CHECKOUT), str(wheel(self.root, version))])
        code = self.releases.directory(version) / "monolith.py"
        code.write_text(
            code.read_text() + "\n\nimport sys  # noqa: E402\n\nimport tariff  # noqa: E402\n\n"
            'PAGES["/where"] = lambda environ, query, start_response: answer(\n'
            "    environ, query, start_response,\n"
            "    prefix=sys.prefix, package=tariff.VERSION, python=sys.version_info[:2],\n)\n"
        )


def interpreters() -> list[str]:
    """The Pythons from 3.11 on that are here and can make environments; this one first."""
    found = [sys.executable]
    for minor in range(11, 16):
        path = shutil.which(f"python3.{minor}")
        if path and minor != sys.version_info.minor and _makes_environments(path):
            found.append(path)
    return found


def _makes_environments(python: str) -> bool:
    return subprocess.run([python, "-c", "import ensurepip, venv"], capture_output=True).returncode == 0


def wheel(root: Path, version: int) -> Path:
    """A package `tariff` in this version, as a wheel: a wheel is a zip file and a record of what is in it."""
    name = f"tariff-{version}.0"
    path = root / f"{name}-py3-none-any.whl"
    files = {
        "tariff.py": f"VERSION = {version}\n",
        f"{name}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: tariff\nVersion: {version}.0\n",
        f"{name}.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: proving\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{file},sha256={urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b'=').decode()},{len(text)}\n"
        for file, text in files.items()
    )
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in {**files, f"{name}.dist-info/RECORD": record + f"{name}.dist-info/RECORD,,\n"}.items():
            archive.writestr(file, text)
    return path


def quietly(command: list[str]) -> None:
    """Run a command that only speaks when it fails."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise ServerTrouble(f"{' '.join(command[:4])} ... failed: {lines[-1] if lines else done.returncode}")
