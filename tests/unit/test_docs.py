"""The documentation names what there is: messages, options, commands, pages; and its page of options is the table's."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from reuseport.cli.main import COMMANDS
from reuseport.options.manual import options_page
from reuseport.options.table import FOREIGN, OPTIONS

ROOT = Path(__file__).resolve().parents[2]
OF_THE_SYSTEM = ("Too many open files", "No space left on device")  # messages (strerror(3))
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "ARCHITECTURE.md"]


def texts() -> str:
    """Every string of the package, joined as the compiler joins them; where a value is filled in there is a NUL."""
    found = []
    for path in (ROOT / "reuseport").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(str(v.value) if isinstance(v, ast.Constant) else "\0" for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_messages_that_troubleshooting_quotes_are_said():
    page = (ROOT / "docs/troubleshooting.md").read_text()
    said = texts()
    symptoms = [line.split("|")[1] for line in page.splitlines() if line.startswith("| ")]
    quotes = [quote for symptom in symptoms for quote in re.findall(r"`([^`]+)`", symptom)]
    messages = [quote for quote in quotes if " " in quote and not quote.startswith(("systemctl", "reuseport"))]
    assert len(messages) > 5
    for message in messages:
        for part in message.split("..."):
            words = part.strip(" :")
            assert words in said or message in OF_THE_SYSTEM, f"nobody says {words!r}"


def test_the_page_of_options_is_made_from_their_declarations():
    assert (ROOT / "docs/options.md").read_text() == options_page(), "make it anew: scripts/docs"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_option_and_command_that_is_named_exists(page):
    text = page.read_text()
    known = {option.flag for option in OPTIONS} | {flag for one in FOREIGN for flag in one.flags}
    known |= {alias for option in OPTIONS for alias in (*option.flags, *option.aliases)}
    known |= {f"--no-{option.flag.removeprefix('--')}" for option in OPTIONS if option.is_switch}
    for line in text.splitlines():
        for command in re.findall(r"(?:^|`|\$ |&& )reuseport ([a-z]+)\b", line):
            assert command in (*COMMANDS, "help"), f"{page.name} names reuseport {command}"
    own = set()
    for path in [*(ROOT / "reuseport/cli").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]:
        own |= set(re.findall(r"--[a-z][a-z0-9-]+", path.read_text()))
        own |= {f"--{name.replace('_', '-')}" for name in re.findall(r'Option\(\s*"(\w+)"', path.read_text())}
    for flag in re.findall(r"(?<![\w-])(--[a-z][a-z0-9-]*[a-z0-9])", text):
        others = {"--cov", "--retry", "--retry-delay", "--retry-connrefused", "--prefix", "--short", "--project"}
        others |= {"--frozen", "--no-dev", "--concurrency", "--dry-run"}
        others |= {"--no-periodic", "--graceful-signal", "--with-scheduler", "--worker-shutdown-timeout"}  # companions
        others |= {"--no-input", "--skip-old-files"}  # static files
        others |= {"--disable-prefetch", "--ready", "--processes", "--quiet", "--config"}
        group = any(one.startswith(f"{flag}-") for one in known)  # as in --limit-request-*
        assert flag in known | own | others or group, f"{page.name} names {flag}"


def test_links_are_flipped_in_one_step():
    """`ln -sf` removes the old link before it makes the new one, so a release between the two finds none."""
    places = [path for part in ("reuseport", "scripts", "findings") for path in (ROOT / part).rglob("*")]
    for path in [*PAGES, *(path for path in places if path.suffix in ("", ".py", ".sh") and path.is_file())]:
        for line in path.read_text(errors="replace").splitlines():
            if re.search(r"\bln (-\w+ )*-\w*s", line):
                assert "mv -T" in line, f"{path.name}: {line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_tests_that_show_what_is_guaranteed_exist():
    names = re.findall(r"`(tests/[\w/]+\.py)`", (ROOT / "docs/guarantees.md").read_text())
    assert len(names) > 8
    for name in names:
        assert (ROOT / name).exists(), name
