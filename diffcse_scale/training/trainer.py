"""The training loop: forward, backward, optimizer step. Hooks do the logging, evaluating, saving and stopping."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from diffcse_scale.checkpoints.checkpoint import Checkpoints
from diffcse_scale.checkpoints.manifest import checkpoint_name
from diffcse_scale.distributed import barrier, is_main
from diffcse_scale.engine.engine import optimizer_step
from diffcse_scale.engine.launch import device
from diffcse_scale.engine.optimizer import set_learning_rate
from diffcse_scale.foundation.errors import RunEnded
from diffcse_scale.foundation.exit_codes import Reason
from diffcse_scale.model.generator import Generator
from diffcse_scale.model.networks import DiffCSENetworks
from diffcse_scale.model.packing import packs
from diffcse_scale.objective.objective import StepOutput
from diffcse_scale.recipe import Recipe
from diffcse_scale.runs.directory import RunDirectory
from diffcse_scale.runs.metric_table import DEVELOPMENT
from diffcse_scale.runs.metrics import Window
from diffcse_scale.supervision.supervision import StopRequested, Supervision
from diffcse_scale.text.batches import Batch, Batches
from diffcse_scale.training.best_model import BestModel
from diffcse_scale.training.curves_png import draw_curves
from diffcse_scale.training.dry_run import dry_run
from diffcse_scale.training.hook import Hook
from diffcse_scale.training.log_lines import LogLines
from diffcse_scale.training.replicas import compare_replicas
from diffcse_scale.training.schedule import Due, Plan, learning_rate
from diffcse_scale.training.skipped_steps import SkippedSteps
from diffcse_scale.training.step import TrainingStep

log = logging.getLogger(__name__)


class Trainer:
    """Trains one recipe to its end. Every rank has one trainer. `Hook` lists the attributes that hooks may read.

    Args:
        engine: the DeepSpeed engine around a `DiffCSENetworks`.
        generator: None if `rtd_weight` is 0.
        supervision: handles requests to stop the run.
        hooks: called in this order (`all_hooks`).
    """

    def __init__(
        self,
        recipe: Recipe,
        plan: Plan,
        engine: Any,
        generator: Generator | None,
        batches: Batches,
        tokenizer: PreTrainedTokenizerBase,
        run: RunDirectory,
        supervision: Supervision,
        hooks: Sequence[Hook],
    ) -> None:
        self.recipe, self.plan, self.engine, self.generator = recipe, plan, engine, generator
        self.batches, self.run, self.supervision, self.hooks = batches, run, supervision, hooks
        self.model: DiffCSENetworks = engine.module
        self.packed = batches.packed and packs(self.model.encoder.backbone.config, recipe.data.max_length)
        self.training_step = TrainingStep(engine, generator, recipe)
        self.checkpoints = Checkpoints(
            engine, run.checkpoints, recipe.keep_checkpoints, recipe.checkpoint_background, run.owned
        )
        self.best = BestModel(recipe, self.model, tokenizer, run, self.checkpoints)
        self.skipped = SkippedSteps(self)
        self.window, self.lines = Window(device()), LogLines(plan.steps)
        self.step = 0  # steps done
        self.due = Due.nothing()  # what is due after `step`
        self.evaluation_due = True  # whether the weights after `step` are still to be evaluated
        self.before: dict[str, Any] = {}  # scores of the untrained encoder
        self.learning_rate = 0.0
        self.gradient_norm: Tensor | float = 0.0

    def fit(self) -> dict[str, Any]:
        """Train to the last step, export the best encoder, and return what `result.json` says.

        Raises:
            RunEnded: the run was stopped, or stopped itself.
            InputError: a checkpoint could not be written.
        """
        self.checkpoints.begin()
        self.run.status.update(steps=self.plan.steps)
        try:
            for hook in self.hooks:
                hook.on_start(self)
            self.engine.train()
            self.window.begin_timing()
            with (
                # no bar in a log file: the lines of `Logging` show the same there
                tqdm(total=self.plan.steps, initial=self.step, unit="step", disable=None if is_main() else True) as bar,
                self.batches.prefetch(self.step, self.plan.steps) as batches,
            ):
                for batch in self.training_step.ahead(self.window.waiting(batches)):
                    self._train_step(batch)
                    bar.update()
            return self._finish()
        except StopRequested as stop:
            raise self._leave(stop.reason) from None

    def _train_step(self, batch: Batch) -> None:
        self.learning_rate = learning_rate(self.recipe.optimizer, batch.step, self.plan.steps)
        set_learning_rate(self.engine.optimizer, self.learning_rate)
        self.skipped.begin()
        output = self.compute(batch)
        taken = optimizer_step(self.engine)
        self.gradient_norm = taken.norm
        if self.skipped.counts(taken.applied, output, batch):
            self.window.add(output, batch.sentences, *self._sizes(batch))
        self.step = batch.step + 1
        self.due = Due.after(self.step, self.recipe, self.plan.steps)
        self.evaluation_due = self.due.evaluation
        if self.due.log or self.due.evaluation:
            self.skipped.check(batch)
        for hook in self.hooks:
            hook.after_step(self)
        with self.window.paused():
            for hook in self.hooks:
                hook.at_pause(self)

    def without_training(self, arguments: Namespace) -> None:
        """Do what `--dry-run` or `--replay` asks for. Called on every rank."""
        if arguments.start == "replay":
            self.skipped.replay()
        else:
            dry_run(self, arguments.deepspeed_config)

    def compute(self, batch: Batch) -> StepOutput:
        """Forward and backward of this rank's share of a global batch."""
        return self.training_step(batch)

    def _sizes(self, batch: Batch) -> tuple[int, int]:
        """This rank's real tokens, and the positions computed for them (padding included)."""
        real_tokens = sum(int(chunk.attention_mask.sum()) for chunk in batch.chunks)
        computed = ((chunk.real if self.packed else None, chunk.attention_mask) for chunk in batch.chunks)
        return real_tokens, sum((mask if real is None else real).numel() for real, mask in computed)

    def record(self, row: dict[str, Any]) -> None:
        """Write a row of metrics.jsonl and pass it to the hooks. Called on every rank."""
        if is_main():
            self.run.metrics.write({"step": self.step, **row})
        for hook in self.hooks:
            hook.on_row(self, row)

    def _finish(self) -> dict[str, Any]:
        self.checkpoints.finish()
        self.skipped.check_end()
        result: dict[str, Any] = {"steps": self.step}
        for hook in self.hooks:
            hook.on_end(self, result)
        self.tick("exporting")
        if is_main():
            draw_curves(self.run.metrics, self.run.curves)
        self.best.place(result)
        if is_main():
            self.run.finish(**result)
        barrier()
        self.run.check_owned()
        return result

    def tick(self, doing: str) -> None:
        """Give a sign of life, at a point where the run can be stopped. Called on every rank.

        Raises:
            StopRequested: some rank was asked to stop.
        """
        self.supervision.tick(doing, self.checkpoints)
        self._tell()

    def _tell(self) -> None:
        newest = self.checkpoints.step
        self.run.status.update(step=self.step, last_checkpoint=checkpoint_name(newest) if newest else None)

    def _leave(self, reason: Reason) -> RunEnded:
        """Save what is not saved yet, unless another process now owns the run. Called on every rank.

        Raises:
            RunEnded: the weights differ between ranks, so they are not saved.
        """
        name = None
        if reason is not Reason.SUPERSEDED and self.step > 0:
            compare_replicas(self)
            self.save_now(self.step, self.state())
            name = f"checkpoint {checkpoint_name(self.step)}"
        return self.supervision.ended(reason, name, self.step, self.plan.steps)

    def save_now(self, step: int, state: dict[str, Any]) -> None:
        """Write a complete checkpoint of `step` before returning. Called on every rank."""
        with self.supervision.slowly("checkpointing"):
            self.checkpoints.finish()
            if step > 0 and self.checkpoints.step != step:
                self.run.metrics.sync()
                self.checkpoints.save(step, state)
                self.checkpoints.finish()
        self._tell()

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds besides weights and optimizer. Called on every rank."""
        best = self.best.facts
        return {
            "best": best,
            "best_files": self.best.files,
            "before": self.before,
            "score": best.get("dev_spearman") if best.get("step") == self.step else None,
            "evaluation_due": self.evaluation_due,
            "window": self.window.state(),
            "objective": self.training_step.objective.state(),
        }

    def resume(self) -> None:
        """Continue from the newest complete checkpoint of the run folder, or from the start if there is none."""
        state = self.checkpoints.load()
        if state is not None:
            self.step, self.evaluation_due, self.before = state["step"], state["evaluation_due"], self._before(state)
            self.best.restore(state)
            self.window.restore(state["window"], device())
            self.training_step.objective.restore(state.get("objective", {}))
            self.skipped.resume()
        if is_main():
            self.run.metrics.keep(self._stays)
            log.info("Resuming after step %d of %d.", self.step, self.plan.steps)

    def _before(self, state: dict[str, Any]) -> dict[str, Any]:
        """The scores of the untrained encoder. Earlier versions wrote them only to metrics.jsonl."""
        if "before" in state:
            return dict(state["before"])
        first = next((row for row in self.run.metrics.rows() if row["step"] == 0), {})
        return {name: value for name, value in first.items() if name.startswith(DEVELOPMENT)}

    def _stays(self, row: dict[str, Any]) -> bool:
        """Whether a row of metrics stays, because the resumed run will not write it again."""
        if row["step"] < self.step:
            return True
        return row["step"] == self.step and not (self.evaluation_due and "dev_spearman" in row)
