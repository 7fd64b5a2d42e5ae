"""What a release will load, worked out afresh at each release: directory, interpreter, application, environment.

A recipe is recorded with its generation, and a zygote of that generation that has to be started again gets the very
same one: whatever `current` points at by then, an old generation stays what it was.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from reuseport.core.model import Release
from reuseport.options import Settings
from reuseport.options.machine import directory_of, group_of, interpreter_of, user_of


class RecipeError(Exception):
    """The release cannot even be tried; the message names the option."""


def release_of(settings: Settings) -> Release:
    """The release that these settings stand for now. RecipeError where a directory or an interpreter is missing."""
    try:
        directory = directory_of(settings.chdir)
    except ValueError as error:
        raise RecipeError(f"{settings.where('chdir')}: {error}") from None
    try:
        interpreter = interpreter_of(settings.python, directory)
    except ValueError as error:
        raise RecipeError(f"{settings.where('python')}: {error}") from None
    recipe: dict[str, Any] = {
        "app": settings.app,
        "directory": directory,
        "interpreter": interpreter,
        "environment": dict(settings.env),
        "ids": ids_of(settings),
        "settings": settings.to_json(),
    }
    return Release(recipe, settings.workers, settings.boot_timeout, settings.kill_blocked)


def ids_of(settings: Settings) -> tuple[int, int] | None:
    """(uid, gid) that zygotes become, or None where they stay what the master is. RecipeError for unknown names."""
    try:
        user, group = user_of(settings.user), group_of(settings.group)
    except ValueError as error:
        raise RecipeError(f"--user, --group: {error}") from None
    if user is None and group is None:
        return None
    uid = user[0] if user else os.geteuid()
    gid = group if group is not None else user[1] if user else os.getegid()
    return uid, gid


def resolve_script(extra: Mapping[str, Any]) -> dict[str, Any]:
    """Follow the links on the way to an embedding script now, so that a generation keeps running the same one."""
    script = extra.get("script")
    if not script or not script.get("path"):
        return dict(extra)
    head, tail = os.path.split(script["path"])
    return {**extra, "script": {**script, "path": os.path.join(os.path.realpath(head), tail)}}
