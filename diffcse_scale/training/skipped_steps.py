"""What a run does about a step whose loss or gradient is not finite: skips it, or stops and says where that arises."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import torch

from diffcse_scale.distributed import agree, broadcast_object, is_main
from diffcse_scale.engine.launch import device
from diffcse_scale.foundation.errors import InputError, RunEnded
from diffcse_scale.foundation.exit_codes import ExitCode
from diffcse_scale.model.weights import check_finite
from diffcse_scale.objective.objective import StepOutput
from diffcse_scale.runs.replay import newest_dump
from diffcse_scale.text.batches import Batch
from diffcse_scale.training.nonfinite import Buffers, describe, diagnose, write_dump

if TYPE_CHECKING:
    from diffcse_scale.training.trainer import Trainer

log = logging.getLogger(__name__)


class SkippedSteps:
    """Counts skipped steps, and ends the run after too many in a row; every rank has one.

    Args:
        trainer: the loop, which computes steps and saves checkpoints.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._in_a_row = 0
        self._trained = False  # whether a step was taken, by this process or before it resumed
        self._before: tuple[int, dict[str, Any]] = (0, {})  # step and state before the first of them
        self._buffers: Buffers | None = None  # before this step

    def begin(self) -> None:
        """A step is about to be computed."""
        self._buffers = Buffers(self._trainer.model)

    def counts(self, applied: bool, output: StepOutput, batch: Batch) -> bool:
        """Whether the step was taken; one that was not leaves everything as it was. Called on every rank.

        Raises:
            RunEnded: too many in a row were not.
        """
        if applied:
            self._in_a_row, self._trained = 0, True
        else:
            assert self._buffers is not None
            self._buffers.put_back()
            self._skip(output, batch)
        return applied

    def _skip(self, output: StepOutput, batch: Batch) -> None:
        finite = not any(agree(not math.isfinite(float(output.loss.detach()))))
        if finite and self._trainer.engine.fp16_enabled():
            return  # a loss scale that was too large, and is smaller now
        if self._in_a_row == 0:
            self._before = (batch.step, self._trainer.state())
        self._in_a_row += 1
        if is_main():
            log.warning("Step %d is skipped: its loss or gradient is not finite.", batch.step + 1)
        if self._in_a_row >= self._trainer.recipe.max_skipped_steps:
            raise self.ended(batch)

    def check(self, batch: Batch) -> None:
        """Look at the losses of all steps since the last log line. Called on every rank.

        Raises:
            RunEnded: one was not finite.
        """
        if not self._trainer.window.finite():
            raise self.ended(batch)

    def check_weights(self) -> None:
        """Look at the weights before they are measured or exported. Called on every rank.

        Raises:
            RunEnded: some are not finite.
        """
        try:
            check_finite(self._trainer.model, "the run")
        except InputError:
            raise self.ended() from None

    def check_end(self) -> None:
        """Look, after the last step, at what was trained. Called on every rank.

        Raises:
            RunEnded: weights, or embeddings of the last batch, are not finite, or all steps were skipped.
        """
        self.check_weights()
        if not self._trained or any(agree(not self._embeds())):
            raise self.ended()

    @torch.no_grad()
    def _embeds(self) -> bool:
        """Whether the embeddings of this rank's first chunk of the last batch are finite."""
        model, chunk = self._trainer.model, self._trainer.batches.batch(self._trainer.step - 1).chunks[0]
        model.eval()
        found = model.encode(chunk.to(device()))
        model.train()
        return bool(torch.isfinite(found).all())

    def resume(self) -> None:
        """What a checkpoint holds was trained."""
        self._trained = True

    def ended(self, batch: Batch | None = None) -> RunEnded:
        """Keep the weights that met such numbers first, look for where they come from, and stop.

        Args:
            batch: of the step that met them; None for the last step.
        """
        path = self._trainer.run.path
        if batch is None:
            batch = self._trainer.batches.batch(self._trainer.step - 1)
        if self._in_a_row:
            step, state = self._before
            self._trainer.save_now(step, state)
            batch = self._trainer.batches.batch(step)
        found = self._diagnose(batch)
        file = broadcast_object(write_dump(path, found) if is_main() else None)
        return RunEnded(
            f"{describe(found)}; all computed values are in {file}; recompute the step with `diffcse-scale replay "
            f"{path}`, then lower optimizer.learning_rate or fix the data.",
            ExitCode.NOT_FINITE,
        )

    def replay(self) -> None:
        """Compute the step at which the run stopped again, and print where its numbers cease to be finite."""
        path = self._trainer.run.path
        step = newest_dump(path)["step"] - 1
        if step > 0:
            state = self._trainer.checkpoints.load(at=step)
            self._trainer.training_step.objective.restore(state["objective"] if state and "objective" in state else {})
        self._trainer.engine.train()
        found = self._diagnose(self._trainer.batches.batch(step))
        if is_main():
            print(f"{describe(found)}.\nAll computed values: {write_dump(path, found, 'replay-')}")

    def _diagnose(self, batch: Batch) -> dict[str, Any]:
        trainer = self._trainer
        return diagnose(trainer.model, lambda: trainer.compute(batch), batch, trainer.batches)
