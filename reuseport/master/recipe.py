"""What a release will load, worked out afresh at each release: directory, interpreter, application, environment.

A recipe is recorded with its generation, and a zygote of that generation that has to be started again gets the very
same one: whatever `current` points at by then, an old generation stays what it was.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from reuseport.core.model import Release, Terms
from reuseport.ipc.channel import PACKET
from reuseport.master import envfiles
from reuseport.options import OptionError, Settings
from reuseport.options.checks import check_certificates, find_directory, find_interpreter, find_user

LARGEST = PACKET - 8192  # bytes: it must fit into one message, with what else that holds
FROM_FILES = "from_files"  # the key of a recipe that has the variables of --env-file
_TERMS = tuple(field.name for field in fields(Terms))  # of all the keys of a [[companion]]


def release_of(settings: Settings, label: str = "") -> Release:
    """The release that these settings stand for now. OptionError where a directory, say, is not there (any more)."""
    directory = find_directory(settings)
    check_certificates(settings)
    ids = find_user(settings)
    recipe: dict[str, Any] = {
        "app": settings.app,
        "directory": directory,
        "interpreter": find_interpreter(settings, directory),
        "environment": dict(settings.env),
        FROM_FILES: envfiles.read(settings, directory, ids),
        "ids": ids,
        "settings": settings.to_json(),
        "label": label or settings.label or os.path.basename(directory),
    }
    if (size := len(json.dumps(recipe))) > LARGEST:
        text = f"the configuration is too large: {size} bytes, {LARGEST} at most"
        raise OptionError(f"{text}; look at --env, --env-file and [[companion]]")
    return Release(
        recipe,
        settings.workers,
        settings.boot_timeout,
        settings.kill_blocked,
        settings.standby,
        settings.probation,
        companions=tuple(Terms(**{key: one[key] for key in _TERMS if key in one}) for one in settings.companion),
    )


def files_gone(release: Release, number: int) -> str:
    """Why the version of generation `number` cannot be brought back, if its directory or interpreter has gone; else "".

    A zygote that stands by could still fork workers, but these fail at the first file that they have not read before.
    """
    for what in ("directory", "interpreter"):
        if not os.path.exists(release.recipe[what]):
            return f"the {what} of generation {number} has gone: {release.recipe[what]}"
    return ""


def application_variables(recipe: Mapping[str, Any]) -> dict[str, str]:
    """What --env-file and --env have said, for the environment of the application and its companions."""
    return {**recipe.get(FROM_FILES, {}), **recipe["environment"]}


def exec_variables(recipe: Mapping[str, Any]) -> dict[str, str]:
    """What the interpreter of a zygote or a probe is executed with, of `application_variables`.

    Where root starts it for another user, that user may be able to write the files. PYTHONPATH is one of many variables
    that would run the user's code as root. The process takes them after the change (worker/filevariables.py).
    """
    return dict(recipe["environment"]) if _begins_as_root(recipe) else application_variables(recipe)


def deferred_variables(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What bootstrap.py is told where `exec_variables` leaves some out: to refuse a package that does not take them."""
    return {"file_variables": True} if _begins_as_root(recipe) and recipe.get(FROM_FILES) else {}


def _begins_as_root(recipe: Mapping[str, Any]) -> bool:
    return os.geteuid() == 0 and bool(recipe.get("ids"))


def for_history(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe without the values of files: they may be secrets, and a history lasts for years."""
    return {name: value for name, value in recipe.items() if name != FROM_FILES}


def from_history(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe that `for_history` has made, with the values that the files have now. OptionError."""
    settings = Settings.from_json(recipe["settings"])
    return {**recipe, FROM_FILES: envfiles.read(settings, recipe["directory"], recipe.get("ids"))}


def tenancy(settings: Settings) -> tuple[str, str]:
    """How workers with these settings know tenants: --tenant and --tenant-isolation; ("", "") where they do not."""
    return (settings.tenant, settings.tenant_isolation) if settings.tenant else ("", "")


def rule_of(release: Release) -> tuple[str, str]:
    """The `tenancy` of a generation that this release begins."""
    return tenancy(Settings.from_json(release.recipe["settings"]))


def differs_on_disk(settings: Settings, release: Release, left: Release | None = None) -> str:
    """A warning where the next release, and a restart, would load another version than `release`, because these
    settings lead to another directory or interpreter than that was loaded from; "" where they do not.

    `left` is the version that has been left for this one. Where both have the same directory, its files can be those
    of either.
    """
    chdir, directory, interpreter = settings.chdir, release.recipe["directory"], release.recipe["interpreter"]
    later = "The next release, and a restart of the server, load"
    leads = os.path.realpath(chdir)
    if leads != directory:
        if leads == os.path.abspath(chdir):
            return f"--chdir is {chdir}, and what serves was loaded from {directory}. {later} the version in {chdir}"
        text = f"{chdir} still leads to {leads}, and what serves was loaded from {directory}"
        text = f"{text}. {later} the version in {leads}"
        return f"{text}. To change that: {_flip(chdir, directory)}" if os.path.islink(chdir) else text
    if left is not None and left.recipe["directory"] == directory:
        return f"the files in {directory} are as they were. {later} the version that they contain now"
    with contextlib.suppress(OptionError):
        if (found := find_interpreter(settings, directory)) != interpreter:
            return f"--python leads to {found}, and what serves runs on {interpreter}. {later} the version on {found}"
    return ""


def _flip(link: str, target: str) -> str:
    """The command that replaces a link in one step (rename(2)); ln(1) by itself needs two."""
    new = shlex.quote(f"{link}.new")
    return f"ln -sT {shlex.quote(target)} {new} && mv -T {new} {shlex.quote(link)}"


def resolve_script(extra: Mapping[str, Any]) -> dict[str, Any]:
    """Follow the links on the way to an embedding script now, so that a generation keeps running the same one."""
    script = extra.get("script")
    if not script or not script.get("path"):
        return dict(extra)
    head, tail = os.path.split(script["path"])
    return {**extra, "script": {**script, "path": os.path.join(os.path.realpath(head), tail)}}
