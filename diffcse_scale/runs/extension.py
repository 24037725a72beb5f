"""Extends a run to more steps than it began with; the result is as if it had begun with them.

The schedule decides if that is possible: a learning rate that was already lowered for the end would have to rise again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.objects import read_object
from diffcse_scale.foundation.recorded_recipe import added_digest
from diffcse_scale.foundation.run_files import EVALUATIONS, MODEL, RECIPE, RECORD, RESULT
from diffcse_scale.recipe import Recipe
from diffcse_scale.recipe_file import load_recorded
from diffcse_scale.runs.records import Record

LENGTH = ("max_steps", "epochs")  # fields that determine only the length of a run


def check_extension(folder: Path, recipe: Recipe) -> None:
    """Check that the run may have the length that `recipe` gives it.

    Raises:
        InputError: its past steps would have had other learning rates, or it already has as many steps.
    """
    optimizer = recipe.optimizer
    if not optimizer.open_ended:
        why = f"its learning rate depends on its length (schedule {optimizer.schedule}, warmup {optimizer.warmup})"
        if (folder / RESULT).is_file():
            raise InputError(f"{folder} has finished and cannot be extended: {why}; {from_its_model(folder)}.")
        raise InputError(
            f"{folder} was begun with another {' or '.join(LENGTH)}, and {why}; keep these as they were, or give "
            "another --output."
        )
    plan = read_object(folder / RECORD, Record).get("plan") or {}
    if per_epoch := plan.get("steps_per_epoch"):
        before, now = _of(folder).steps(per_epoch), recipe.steps(per_epoch)
        if now <= before:
            raise InputError(
                f"{folder} has {before:,} steps, and this recipe gives it {now:,} ({per_epoch:,} per epoch); raise "
                f"{' or '.join(LENGTH)}, whichever limits the run."
            )


def from_its_model(folder: Path) -> str:
    """How to train further if a run cannot be extended, as the second half of a sentence."""
    return f"to train further, start another run with model.encoder={folder / MODEL} and another --output"


def extend(folder: Path, recipe: Recipe, record: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Remove `result.json`, which marks a finished run, and keep its evaluations under another name.

    Args:
        record: the future record of the run.

    Returns:
        The text of the run's recipe with the new length, and the record with the digests of both recipes.
    """
    earlier, plan = _of(folder), record.get("plan") or {}
    per_epoch = plan.get("steps_per_epoch", 0)
    (folder / RESULT).unlink(missing_ok=True)
    aside = folder / f"{EVALUATIONS}-{earlier.steps(per_epoch)}-steps"
    if (folder / EVALUATIONS).is_dir() and not aside.exists():
        (folder / EVALUATIONS).rename(aside)
    longer = earlier.model_copy(update={field: getattr(recipe, field) for field in LENGTH})
    text = yaml.safe_dump(longer.model_dump(mode="json"), sort_keys=False)
    if per_epoch:
        record = {**record, "plan": {**plan, "steps": longer.steps(per_epoch)}}
    return text, record | added_digest(record, text)


def _of(folder: Path) -> Recipe:
    return load_recorded(folder / RECIPE)
