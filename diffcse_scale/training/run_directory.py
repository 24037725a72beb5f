"""The folder of one run.

recipe.yaml      what was trained, every field
run.json         how: DeepSpeed configuration, batch table, data fingerprint, machine, versions, command
metrics.jsonl    a row a log line and a row an evaluation
checkpoints/     to resume from
best/            the encoder with the best development score so far
model/           the result: loads in sentence-transformers and transformers
curves.png       losses and development score against steps
result.json      written last; a run without it has not finished
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from diffcse_scale.distributed import barrier, broadcast_object, is_main
from diffcse_scale.environment import environment
from diffcse_scale.errors import InputError
from diffcse_scale.recipe import Recipe
from diffcse_scale.training.metrics import MetricsFile

# fields that may change when a run is resumed: they do not touch the result
FREE_TO_CHANGE = ("log_every", "checkpoint_every", "keep_checkpoints", "data.workers", "data.cache_dir")


class RunDirectory:
    """Paths of a run; opening one refuses to touch another run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.best = path / "best"
        self.model = path / "model"
        self.curves = path / "curves.png"
        self.metrics = MetricsFile(path / "metrics.jsonl")

    @classmethod
    def open(cls, path: str | None, recipe: Recipe, resume: bool) -> RunDirectory:
        """Create the folder of a new run, or find that of a run to resume. Called on every rank.

        Args:
            path: None means `runs/<recipe name>`, numbered if that is taken.

        Raises:
            InputError: the folder holds a run and `resume` is False, holds none and it is True, or holds another
                recipe's run (names what differs).
        """
        answer: str | InputError | None = None
        if is_main():
            try:
                answer = str(_open(path, recipe, resume))
            except InputError as error:
                answer = error
        answer = broadcast_object(answer)  # one rank looks, all leave together
        if isinstance(answer, InputError):
            raise answer
        return cls(Path(str(answer)))

    def describe(self, recipe: Recipe, **facts: Any) -> None:
        """Write `recipe.yaml` and `run.json`: from now on the folder holds a run. Called on every rank."""
        if is_main():
            text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
            (self.path / "recipe.yaml").write_text(text, encoding="utf-8")
            record = {"command": " ".join(sys.argv), **facts, "environment": environment()}
            (self.path / "run.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
        barrier()

    def finish(self, **result: Any) -> None:
        """Write `result.json`, the mark of a finished run."""
        (self.path / "result.json").write_text(json.dumps(result, indent=1), encoding="utf-8")


def _open(path: str | None, recipe: Recipe, resume: bool) -> Path:
    folder = Path(path or f"runs/{recipe.name}")
    if path is None and not resume:
        number = 1
        while _occupied(folder):
            number += 1
            folder = Path(f"runs/{recipe.name}-{number}")
    saved = folder / "recipe.yaml"
    if resume:
        if not saved.is_file():
            raise InputError(f"There is no run to resume in {folder}; give its folder with --output.")
        _same_recipe(recipe, saved)
        if (folder / "result.json").is_file():
            raise InputError(f"The run in {folder} has finished; its model lies in {folder / 'model'}.")
        return folder
    if saved.is_file():
        _same_recipe(recipe, saved)
        raise InputError(f"{folder} holds a run of this recipe; continue it with --resume or give another --output.")
    if _occupied(folder):
        raise InputError(f"{folder} exists and is no run of this program; give another --output.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise InputError(f"Output folder {folder} cannot be written: {error.strerror}.") from None
    return folder


def _occupied(folder: Path) -> bool:
    """Whether something is there. A start that a mistake has stopped leaves an empty folder, which is free."""
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


def _same_recipe(recipe: Recipe, saved: Path) -> None:
    differences = [
        line
        for line in recipe.differences(yaml.safe_load(saved.read_text(encoding="utf-8")))
        if line.split(":")[0] not in FREE_TO_CHANGE
    ]
    if differences:
        raise InputError(
            f"{saved.parent} holds a run of another recipe, which stays as it is; give another --output "
            f"(this recipe has {'; '.join(differences)})."
        )
