"""Checks that the recipe of a run is unchanged, because a truncated recipe would silently get default values."""

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
    """The entry for a recipe in a run's record."""
    return {KEY: hashlib.sha256(text.encode()).hexdigest()}


def added_digest(record: dict[str, Any], text: str) -> dict[str, Any]:
    """The entry for a recipe that replaces the one in `record`; both count, because a kill may leave either.

    Empty if an earlier version began the run.
    """
    return {KEY: [*_recorded(record), *digest_of(text).values()]} if KEY in record else {}


def _recorded(record: dict[str, Any]) -> list[str]:
    found = record[KEY]
    return found if isinstance(found, list) else [found]


def check_recipe(run: Path) -> None:
    """Raise InputError if the recipe has changed. Runs of earlier versions have no digest and are not checked."""
    record = read_object(run / RECORD) if (run / RECORD).is_file() else {}
    if record.get(KEY) is not None and sha256_of(run / RECIPE) not in _recorded(record):
        raise InputError(f"{run / RECIPE} has changed since the run began; restore it.")
