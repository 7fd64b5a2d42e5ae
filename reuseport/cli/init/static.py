"""Static files for nginx, as two living versions need them (`init nginx --static`).

While an old version drains, or holds a tenant, or after a release that failed, its pages are asked for beside those of
the new one. So a location must never lead through the link that a release flips.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import NamedTuple

from reuseport.cli import frame
from reuseport.cli.init.described import one_line_only
from reuseport.options import OptionError, Settings, kinds

RELEASE = "{release}"
OPTION = frame.option(
    "static",
    kinds.TEXT,
    "",
    "Only `init nginx`: where static files lie, repeatable; URL is /static/ unless it is said. DIR is a directory that "
    f"all releases share and that only grows, or has {RELEASE} in the place of the name of a release's directory.",
    metavar="[URL=]DIR",
    default_text="nginx serves none",
)
CACHE = "$static_cache"


class Static(NamedTuple):
    """`url` begins and ends with a slash. `directory` is absolute, and does not end with one."""

    url: str
    directory: str

    @property
    def by_release(self) -> bool:
        return RELEASE in self.directory


def take(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words without --static, and its values. OptionError where one has no value."""
    left, values = [], []
    given = iter(words)
    for word in given:
        name, equals, value = word.partition("=")
        if name != OPTION.flag:
            left.append(word)
            continue
        found = value if equals else next(given, "-")
        if not found.strip():
            text = "the value is empty (is a variable not set?); leave it out for its default"
            raise OptionError(f"{OPTION.flag}: {text}")
        if found.startswith("-"):
            raise OptionError(f"init: {OPTION.flag} needs [URL=]DIR, as in: {OPTION.flag} /srv/shop/shared/static")
        values.append(found)
    return left, values


def parse_all(values: Sequence[str], settings: Settings) -> list[Static]:
    """OptionError as of `parse`, and for a URL that is named twice, because nginx refuses a second location of it."""
    several = [parse(value, settings) for value in values]
    urls = [one.url for one in several]
    for value, url in zip(values, urls, strict=True):
        if urls.count(url) > 1:
            raise OptionError(f"init: {OPTION.flag} {value}: {url} is named twice; give each directory its own URL=")
    return several


def parse(value: str, settings: Settings) -> Static:
    """OptionError for a directory that cannot serve two versions, or that nginx's configuration cannot hold."""
    where = f"init: {OPTION.flag} {value}"
    url, equals, directory = value.rpartition("=")
    url = url if equals else "/static/"
    if url == "/":
        raise OptionError(f"{where}: / is the application's; name a URL below it, as in /static/")
    if not re.fullmatch(r"/(?:[A-Za-z0-9._~-]+/)*", url):
        raise OptionError(f"{where}: the URL {url!r} must begin and end with a slash, as in /static/, without blanks")
    one_line_only(directory, "nginx.conf")
    if not directory.startswith("/"):
        raise OptionError(f"{where}: nginx needs an absolute path, as in /srv/shop/shared/static")
    if bad := set(directory.replace(RELEASE, "")) & set("$\"'\\;{}"):
        raise OptionError(f"{where}: nginx.conf cannot hold {''.join(sorted(bad))!r} in a path; rename the directory")
    if directory.count(RELEASE) > 1 or (RELEASE in directory and f"/{RELEASE}/" not in directory + "/"):
        raise OptionError(f"{where}: {RELEASE} stands once, for one whole component of the path")
    if os.path.basename(os.path.normpath(directory)) == RELEASE:
        raise OptionError(
            f"{where}: nginx would serve the source and .env of each release; name a directory within each release, "
            f"as in {RELEASE}/static"
        )
    if link := _flipped(directory, settings.chdir):
        raise OptionError(
            f"{where}: {link} leads to one version, and pages of the other would lack their files during a release; "
            f"name a directory that all releases share, or write {RELEASE} in the place of the release's name"
        )
    return Static(url, os.path.normpath(directory))


def _flipped(directory: str, chdir: str) -> str:
    """The link that each release flips, if the directory lies behind it; or "". The file may be meant for another
    machine, so a path that does not exist is judged by its name."""
    below = os.path.normpath(directory) + "/"
    if below.startswith(os.path.normpath(chdir) + "/") and (
        os.path.islink(chdir) or os.path.basename(os.path.normpath(chdir)) == "current"
    ):
        return chdir
    head, current, _ = below.partition("/current/")
    link = head + current.rstrip("/")
    return link if current and (os.path.islink(link) or not os.path.exists(link)) else ""


def caching(several: Sequence[Static]) -> str:
    """A map for http { }: how long a browser may keep a file of a shared directory, by its name."""
    if all(one.by_release for one in several):
        return ""
    return f"""
# A name with a hash of the content (Django's ManifestStaticFilesStorage, webpack: 8 to 64 hexadecimal digits; Vite: 8
# characters, in assets/) never gets another content. Any other file is asked for again each time.
map $uri {CACHE} {{
    default                                                "no-cache";
    "~[.-](?=[a-f]*[0-9])[0-9a-f]{{8,64}}\\.[^/]+$"           "public, max-age=31536000, immutable";
    "~/assets/[^/]+-[A-Za-z0-9_-]{{8}}\\.[A-Za-z0-9.]+$"      "public, max-age=31536000, immutable";
}}
"""


def locations(several: Sequence[Static]) -> str:
    return "".join(_by_release(one) if one.by_release else _shared(one) for one in several)


def _shared(one: Static) -> str:
    return f"""
    # The static files of all versions that live. Each release adds its files before `reuseport release`, under names
    # that change with the content, and removes none: the version before still needs its own (docs/deploying.md).
    location {one.url} {{
        alias "{one.directory}/";
        add_header Cache-Control {CACHE};
    }}
"""


def _by_release(one: Static) -> str:
    pattern = re.escape(one.url)
    path = one.directory.replace(RELEASE, "$release")
    return f"""
    # The static files of each version, in its own directory. The application puts the name of its directory into the
    # URL, so a page gets the files of the version that made it. Remove a directory when no version needs it any more.
    location ~ "^{pattern}(?<release>[A-Za-z0-9][A-Za-z0-9._-]*)/(?<file>.+)$" {{
        alias "{path}/$file";
        add_header Cache-Control "public, max-age=31536000, immutable";
    }}
"""
