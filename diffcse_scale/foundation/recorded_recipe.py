"""Whether the recipe of a run is as it was written: what is cut off would be taken for its default."""

from __future__ import annotations

import hashlib
from pathlib import Path

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.file_digest import sha256_of
from diffcse_scale.foundation.objects import read_object
from diffcse_scale.foundation.run_files import RECIPE, RECORD

KEY = "recipe_sha256"  # in the record


def digest_of(text: str) -> dict[str, str]:
    """What the record of a run says of its recipe."""
    return {KEY: hashlib.sha256(text.encode()).hexdigest()}


def check_recipe(run: Path) -> None:
    """Raises InputError if the recipe is not as it was written. Runs of earlier versions do not know."""
    recorded = read_object(run / RECORD).get(KEY) if (run / RECORD).is_file() else None
    if recorded is not None and sha256_of(run / RECIPE) != recorded:
        raise InputError(f"{run / RECIPE} is not as it was written when the run began; bring it back.")
