"""Handles steps with a loss or gradient that is not finite: skips them, or stops the run and reports the origin."""

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
    """Counts skipped steps, and ends the run after too many in a row. Every rank has one such object.

    Args:
        trainer: the loop; it computes steps and saves checkpoints.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._in_a_row = 0
        self._trained = False  # whether any step was taken, also before a resume
        self._before: tuple[int, dict[str, Any]] = (0, {})  # step and state before the first skipped step in a row
        self._buffers: Buffers | None = None  # as they were before this step

    def begin(self) -> None:
        """Called before a step is computed: saves the buffers."""
        self._buffers = Buffers(self._trainer.model)

    def counts(self, applied: bool, output: StepOutput, batch: Batch) -> bool:
        """Return whether the step was taken; a step that was not changes nothing. Called on every rank.

        Raises:
            RunEnded: too many steps in a row were skipped.
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
            return  # the loss scale was too large; DeepSpeed has lowered it
        if self._in_a_row == 0:
            self._before = (batch.step, self._trainer.state())
        self._in_a_row += 1
        if is_main():
            log.warning("Step %d is skipped: its loss or gradient is not finite.", batch.step + 1)
        if self._in_a_row >= self._trainer.recipe.max_skipped_steps:
            raise self.ended(batch)

    def check(self, batch: Batch) -> None:
        """Check the losses of all steps since the last log line. Called on every rank.

        Raises:
            RunEnded: a loss was not finite.
        """
        if not self._trainer.window.finite():
            raise self.ended(batch)

    def check_weights(self) -> None:
        """Check the weights before they are evaluated or exported. Called on every rank.

        Raises:
            RunEnded: some weights are not finite.
        """
        try:
            check_finite(self._trainer.model, "the run")
        except InputError:
            raise self.ended() from None

    def check_end(self) -> None:
        """Check the result after the last step. Called on every rank.

        Raises:
            RunEnded: weights or embeddings of the last batch are not finite, or all steps were skipped.
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
        """Called when a checkpoint was loaded: its weights were trained."""
        self._trained = True

    def ended(self, batch: Batch | None = None) -> RunEnded:
        """Save the weights from before the first such step, diagnose that step, and return the error to raise.

        Args:
            batch: the batch of the step; None for the last step.
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
        """Recompute the step at which the run stopped, and print where its numbers stop being finite."""
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
