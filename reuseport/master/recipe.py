"""What a release will load, worked out afresh at each release: directory, interpreter, application, environment.

A recipe is recorded with its generation, and a zygote of that generation that has to be started again gets the very
same one: whatever `current` points at by then, an old generation stays what it was.
"""

from __future__ import annotations

import json
import os
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


def application_variables(recipe: Mapping[str, Any]) -> dict[str, str]:
    """What --env-file and --env have said, for the environment of the application and its companions."""
    return {**recipe.get(FROM_FILES, {}), **recipe["environment"]}


def for_history(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe without the values of files: they may be secrets, and a history lasts for years."""
    return {name: value for name, value in recipe.items() if name != FROM_FILES}


def from_history(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe that `for_history` has made, with the values that the files have now. OptionError."""
    settings = Settings.from_json(recipe["settings"])
    return {**recipe, FROM_FILES: envfiles.read(settings, recipe["directory"], recipe.get("ids"))}


def resolve_script(extra: Mapping[str, Any]) -> dict[str, Any]:
    """Follow the links on the way to an embedding script now, so that a generation keeps running the same one."""
    script = extra.get("script")
    if not script or not script.get("path"):
        return dict(extra)
    head, tail = os.path.split(script["path"])
    return {**extra, "script": {**script, "path": os.path.join(os.path.realpath(head), tail)}}
