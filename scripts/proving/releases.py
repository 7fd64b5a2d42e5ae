"""Release directories of the sample monolith, and the `current` symlink that says which is next.

As a deployment leaves them: releases/1, releases/2, ... each complete, and `current` flipped by a rename, so that it
always points somewhere. Each release has really changed code: its version, the formula of its prices, its banner.
"""

from __future__ import annotations

from pathlib import Path

SAMPLE = Path(__file__).resolve().parent.parent / "sample" / "monolith.py"

# What a release may do while it is imported, as code. `{version}` is the release's own.
VARIANTS = {
    "good": "",
    "slow import": "time.sleep(3)",
    "raises": 'raise LookupError("release {version}: the table customers has no column currency")',
    "hangs": "while True:\n    time.sleep(3600)",
    "exits": 'raise SystemExit("release {version}: LICENSE_KEY is not set")',
    "syntax error": "def price(amount:\n    return amount",
    "kills its zygote": "os.kill(os.getpid(), 9)",
    "with tasks": """\
import tasks


def ask_for(environ, query, start_response):
    tasks.work(int(query["number"]), float(query["seconds"]))
    return answer(environ, query, start_response)


PAGES["/ask"] = ask_for""",
}

# The variants that must never serve, and a word that the asker must be shown.
BROKEN = {
    "raises": "LookupError",
    "hangs": "time",
    "exits": "LICENSE_KEY",
    "syntax error": "SyntaxError",
    "kills its zygote": "SIGKILL",
}


def price(version: int, number: int) -> int:
    """What release `version` answers for `number`: the clients' own idea of it."""
    return number * (2 * version + 1) + version


def banner(version: int) -> str:
    return f"release {version}"


class Releases:
    """The directories under `root`. Numbers are given out from 1."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.current = root / "current"
        self.newest = 0

    def directory(self, version: int) -> Path:
        return self.root / "releases" / str(version)

    def write(self, variant: str = "good", *, heap_mb: int = 0, version: int | None = None) -> int:
        """Write a release, the next one unless told otherwise, and return its number. It is not current yet."""
        if version is None:
            version = self.newest = self.newest + 1
        directory = self.directory(version)
        directory.mkdir(parents=True, exist_ok=True)
        code = SAMPLE.read_text().replace("VERSION = 1\n", f"VERSION = {version}\n", 1)
        code += "\n\n" + VARIANTS[variant].replace("{version}", str(version)) + "\n"
        if heap_mb:
            code += heap(heap_mb)
        (directory / "monolith.py").write_text(code)
        (directory / "pricing.py").write_text(
            f'"""How release {version} computes a price."""\n\n\n'
            f"def price(number):\n    return number * {2 * version + 1} + {version}\n"
        )
        (directory / "banner.txt").write_text(banner(version))
        return version

    def point(self, version: int) -> None:
        """Make `current` this release, in one step."""
        link = self.root / "current.next"
        link.unlink(missing_ok=True)
        link.symlink_to(Path("releases", str(version)))
        link.replace(self.current)

    def next(self, variant: str = "good", **more: int) -> int:
        """Write the next release and make it current: what a deployment does before it asks for the release."""
        version = self.write(variant, **more)
        self.point(version)
        return version


def heap(megabytes: int) -> str:
    """Code that fills the heap with small objects, as a large application's modules and tables do.

    Small objects because each carries a reference count: the memory that forked processes stop sharing when they
    look at it. A request looks at a few of them.
    """
    return f"""
# About {megabytes} MB of rows: each a dict, a tuple and strings of its own.
ROWS = [
    {{"id": n, "name": f"customer {{n}}", "mail": f"customer{{n}}@example.test", "place": (n % 90, -n % 180, str(n))}}
    for n in range({megabytes} * 2050)
]


def looked_at(number):
    return [ROWS[(number * 31 + step) % 2000]["name"] for step in range(20)]


PAGES["/rows"] = lambda environ, query, start_response: answer(
    environ, query, start_response, names=looked_at(int(query["id"]))
)
"""
