"""The toy run of a soak: its recipe, and what a run folder holds at any time, seen from outside."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from diffcse_scale.embedded.grammar import graded_pairs, training_sentences
from diffcse_scale.training.checkpoint import PARTIAL
from diffcse_scale.training.incarnation import Incarnation, incarnations
from diffcse_scale.training.manifest import checkpoint_steps, damage, newest_step
from diffcse_scale.training.run_directory import INCARNATIONS
from tests.training.conftest import save_toy_masked_lm, toy_tokenizer

STEPS, CHECKPOINT_EVERY, EVALUATION_EVERY = 60, 5, 8


def make_world(folder: Path) -> Path:
    """Corpus, model and recipe of the toy run in `folder`; returns the recipe. Dropout is on, as the model has it."""
    folder.mkdir(parents=True)
    sentences = training_sentences(600, seed=3)
    (folder / "corpus.txt").write_text("\n".join(sentences) + "\n")
    pairs = graded_pairs(400, seed=3)
    (folder / "pairs.tsv").write_text("".join(f"{score}\t{a}\t{b}\n" for score, a, b in pairs))
    save_toy_masked_lm(folder / "model", toy_tokenizer(sentences))
    recipe = {
        "name": "soak",
        "seed": 1,
        "epochs": 100,
        "max_steps": STEPS,
        "log_every": 1,
        "checkpoint_every": CHECKPOINT_EVERY,
        "model": {"encoder": str(folder / "model"), "generator": str(folder / "model")},
        "data": {
            "files": str(folder / "corpus.txt"),
            "max_length": 16,
            "cache_dir": str(folder / "cache"),
            "workers": 1,
        },
        "batch": {"sentences": 64},
        "objective": {"rtd_weight": 0.1},
        "optimizer": {"learning_rate": 1e-4},
        "evaluation": {"data": str(folder / "pairs.tsv"), "every": EVALUATION_EVERY, "max_length": 32},
    }
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
