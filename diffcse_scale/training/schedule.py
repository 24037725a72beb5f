"""Batch arithmetic, what is due after each step, and the learning rate: pure functions of recipe and world size."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from diffcse_scale.recipe import OptimizerRecipe, Recipe
from diffcse_scale.text.batches import share_of


@dataclass(frozen=True)
class Plan:
    """How the ranks share a recipe's global batch, and how many steps the run has."""

    global_batch: int
    world_size: int
    share: int  # sentences of the device that has the most
    chunk: int  # sentences whose activations are alive at once
    negatives: int  # negatives per anchor
    steps: int
    steps_per_epoch: int

    def table(self) -> list[tuple[str, str]]:
        """The rows printed at the start of every run."""
        even = self.global_batch % self.world_size == 0
        return [
            ("global batch", f"{self.global_batch:,} sentences"),
            ("world size", f"{self.world_size:,}"),
            ("sentences per device", f"{self.share:,}{'' if even else f' or {self.share - 1:,}'}"),
            ("chunk", f"{self.chunk:,} sentences"),
            ("negatives per anchor", f"{self.negatives:,}"),
            ("steps", f"{self.steps:,} ({self.steps_per_epoch:,} an epoch)"),
            ("sentences in all", f"{self.steps * self.global_batch:,}"),
        ]


def make_plan(recipe: Recipe, sentences: int, views: int, world_size: int) -> Plan:
    """Plan a run over a corpus of `sentences` rows with `views` views each.

    Raises:
        InputError: as `share_of` (`Batches` has already refused a corpus smaller than a batch).
    """
    batch = recipe.batch.sentences
    share = share_of(recipe.batch, world_size)
    per_epoch = sentences // batch
    # hard negatives add one column for each sentence of the batch
    negatives = batch - 1 + (batch if views > 2 else 0)
    return Plan(
        batch, world_size, share, min(recipe.batch.chunk or share, share), negatives, recipe.steps(per_epoch), per_epoch
    )


@dataclass(frozen=True)
class Due:
    """What is due after a step: a log line, an evaluation, a checkpoint."""

    log: bool
    evaluation: bool
    checkpoint: bool

    @classmethod
    def nothing(cls) -> Due:
        """Nothing is due, as before the first step."""
        return cls(log=False, evaluation=False, checkpoint=False)

    @classmethod
    def after(cls, step: int, recipe: Recipe, steps: int) -> Due:
        """What is due after `step` of `steps`. The last step is logged and evaluated, and needs no checkpoint."""
        last = step == steps
        checkpoint = step % recipe.checkpoint_every == 0 and not last
        return cls(
            log=step % recipe.log_every == 0 or checkpoint or last,
            evaluation=step % recipe.evaluation.every == 0 or last,
            checkpoint=checkpoint,
        )


SCHEDULES: dict[str, Callable[[float, OptimizerRecipe], float]] = {
    "linear": lambda progress, _: 1 - progress,
    "cosine": lambda progress, _: (1 + math.cos(math.pi * progress)) / 2,
    "constant": lambda progress, _: 1.0,
}
"""Each schedule maps the progress after the warm-up (0 to 1) and the recipe's settings to a factor of the largest
learning rate. The names are the values of `optimizer.schedule` in a recipe."""


def learning_rate(optimizer: OptimizerRecipe, step: int, steps: int) -> float:
    """The learning rate of step `step` (from 0) of `steps`: linear warm-up, then its schedule.

    Without warm-up and with `linear`, step s gets lr * (1 - s / steps), as in the official program.
    """
    warmup = round(optimizer.warmup * steps)
    if step < warmup:
        return optimizer.learning_rate * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, steps - warmup)
    return optimizer.learning_rate * SCHEDULES[optimizer.schedule](progress, optimizer)
