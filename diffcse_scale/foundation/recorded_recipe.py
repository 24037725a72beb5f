"""Checks that the recipe of a run is unchanged, because a field that is cut off would silently get its default."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.file_digest import sha256_of
from diffcse_scale.foundation.objects import read_object
from diffcse_scale.foundation.run_files import RECIPE, RECORD

KEY = "recipe_sha256"  # in the record


def digest_of(text: str) -> dict[str, str]:
    """What the record of a run says of its recipe."""
    return {KEY: hashlib.sha256(text.encode()).hexdigest()}


def added_digest(record: dict[str, Any], text: str) -> dict[str, Any]:
    """The same of a recipe that takes the place of the one in `record`: either may be there when a process is killed.

    Nothing where the run was begun by an earlier version.
    """
    return {KEY: [*_recorded(record), *digest_of(text).values()]} if KEY in record else {}


def _recorded(record: dict[str, Any]) -> list[str]:
    found = record[KEY]
    return found if isinstance(found, list) else [found]


def check_recipe(run: Path) -> None:
    """Raises InputError if the recipe is not as it was written. Runs of earlier versions do not know."""
    record = read_object(run / RECORD) if (run / RECORD).is_file() else {}
    if record.get(KEY) is not None and sha256_of(run / RECIPE) not in _recorded(record):
        raise InputError(f"{run / RECIPE} has changed since the run began; restore it.")
