"""train.py whose encoder gives NaN for the batches of steps $POISON (`3,4`, from 0)."""

from __future__ import annotations

import os
import runpy
from pathlib import Path
from typing import Any

import torch

from diffcse_scale.model.encoder import Encoder
from diffcse_scale.text.batches import Batch
from diffcse_scale.training.trainer import Trainer

steps = {int(step) for step in os.environ["POISON"].split(",") if step}
compute, forward = Trainer.compute, Encoder.forward
poisons = False


def compute_and_poison(self: Trainer, batch: Batch) -> Any:
    global poisons
    poisons = batch.step in steps
    output = compute(self, batch)
    poisons = False
    return output


def poisoned_forward(self: Encoder, *tokens: torch.Tensor) -> torch.Tensor:
    h = forward(self, *tokens)
    return h * float("nan") if poisons else h


Trainer.compute = compute_and_poison  # type: ignore[method-assign]
Encoder.forward = poisoned_forward  # type: ignore[method-assign]
runpy.run_path(str(Path(__file__).parents[3] / "train.py"), run_name="__main__")
