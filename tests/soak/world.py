"""The toy run of a soak: its recipe, and what a run folder holds at any time, seen from outside."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from diffcse_scale.checkpoints.checkpoint import PARTIAL
from diffcse_scale.checkpoints.manifest import checkpoint_steps, damage, newest_step
from diffcse_scale.foundation.run_files import INCARNATIONS
from diffcse_scale.runs.incarnation import Incarnation, incarnations
from tests.support.toy_world import write_toy_world

STEPS, CHECKPOINT_EVERY, EVALUATION_EVERY = 60, 5, 8


def make_world(folder: Path) -> Path:
    """Corpus, model and recipe of the toy run in `folder`; returns the recipe. Dropout is on, as the model has it."""
    folder.mkdir(parents=True)
    recipe = write_toy_world(folder, pairs=400)
    recipe |= {"name": "soak", "epochs": 100, "max_steps": STEPS, "checkpoint_every": CHECKPOINT_EVERY}
    del recipe["keep_checkpoints"]
    recipe["batch"]["sentences"] = 64
    recipe["optimizer"]["learning_rate"] = 1e-4
    recipe["evaluation"]["every"] = EVALUATION_EVERY
    (folder / "soak.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "soak.yaml"


class Run(NamedTuple):
    """A run folder, read only."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def newest(self) -> int:
        """Step of the checkpoint that a resume is going to take, 0 if there is none yet."""
        return newest_step(self.checkpoints)

    def half_written(self) -> list[int]:
        """Steps of the checkpoints that are being written, or that were when their writer died."""
        return [int(folder.name.split(PARTIAL)[0][5:]) for folder in self.checkpoints.glob(f"step-*{PARTIAL}*")]

    def damages(self) -> Iterator[str]:
        """What is wrong with the checkpoints that have their final name."""
        for step in checkpoint_steps(self.checkpoints):
            if problem := damage(self.checkpoints / f"step-{step:08d}"):
                yield f"checkpoint of step {step}: {problem}"

    def rows(self) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl; a last one cut short is left out."""
        return read_lines(self.path / "metrics.jsonl")

    def state(self) -> str:
        """What status.json says the run is doing."""
        try:
            return str(json.loads((self.path / "status.json").read_text())["state"])
        except (OSError, ValueError):
            return "not begun"

    def incarnations(self) -> list[Incarnation]:
        """Lines of incarnations.jsonl."""
        return incarnations(self.path / INCARNATIONS)

    def result(self) -> dict[str, Any] | None:
        """result.json, None until the run has finished."""
        file = self.path / "result.json"
        return json.loads(file.read_text()) if file.is_file() else None


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The lines of a .jsonl file that may not be there, without a last one that is cut short."""
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text().split("\n")[:-1]]
