"""A run that is given more steps than it was begun with: as if it had been begun with them.

Whether it can be is the schedule's to say: a learning rate that has come down for the end would have to go up again.
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

LENGTH = ("max_steps", "epochs")  # fields that say how long a run is, and nothing else


def check_extension(folder: Path, recipe: Recipe) -> None:
    """Look whether the run may have the length that `recipe` gives it.

    Raises:
        InputError: its steps would have had another learning rate, or it has as many steps already.
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
    """How to train on where a run cannot be extended, to go on a sentence with."""
    return f"to train further, start another run with model.encoder={folder / MODEL} and another --output"


def extend(folder: Path, recipe: Recipe, record: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Take the mark of a finished run away, and keep what was measured of its model under another name.

    Args:
        record: of the run, as it is going to be.

    Returns:
        The text of the run's recipe with the length of this one, and the record that knows both.
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
