"""The loop: edit, forward, backward, step; log, evaluate, checkpoint, export; and stop when asked to."""

from __future__ import annotations

import logging
import math
import shutil
import time
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from diffcse_scale.distributed import agree, barrier, broadcast_object, is_main
from diffcse_scale.errors import RunEnded
from diffcse_scale.exit_codes import ExitCode
from diffcse_scale.export import export_sentence_transformer
from diffcse_scale.export.model_card import write_run_card
from diffcse_scale.export.projection import PROJECTION
from diffcse_scale.model.diffcse import DiffCSE, StepOutput
from diffcse_scale.model.encoder import Encoder
from diffcse_scale.model.generator import Generator
from diffcse_scale.model.packing import packs
from diffcse_scale.recipe import Recipe
from diffcse_scale.text.batches import Batch, Batches
from diffcse_scale.training.checkpoint import Checkpoints
from diffcse_scale.training.curves import draw_curves
from diffcse_scale.training.development import DevelopmentSet
from diffcse_scale.training.engine import device, optimizer_step, whole_state
from diffcse_scale.training.manifest import checkpoint_name
from diffcse_scale.training.metrics import EVALUATION, Window, console_line
from diffcse_scale.training.nonfinite import Buffers, describe, diagnose, newest_dump, write_dump
from diffcse_scale.training.run_directory import RunDirectory
from diffcse_scale.training.schedule import Plan, learning_rate
from diffcse_scale.training.step import TrainingStep
from diffcse_scale.training.supervision import Reason, StopRequested, Supervision

log = logging.getLogger(__name__)


class Trainer:
    """Trains one recipe to its end; every rank has one.

    Args:
        engine: the DeepSpeed engine around a `DiffCSE`.
        generator: None when `rtd_weight` is 0.
        development: what chooses the best checkpoint; None to keep the last.
        supervision: what may stop the run.
    """

    def __init__(
        self,
        recipe: Recipe,
        plan: Plan,
        engine: Any,
        generator: Generator | None,
        batches: Batches,
        tokenizer: PreTrainedTokenizerBase,
        development: DevelopmentSet | None,
        run: RunDirectory,
        supervision: Supervision,
    ) -> None:
        self.recipe, self.plan, self.engine, self.generator = recipe, plan, engine, generator
        self.batches, self.tokenizer, self.development, self.run = batches, tokenizer, development, run
        self.supervision = supervision
        self.model: DiffCSE = engine.module
        self.packed = batches.packed and packs(self.model.encoder.backbone.config, recipe.data.max_length)
        self.training_step = TrainingStep(engine, generator, recipe)
        self.checkpoints = Checkpoints(
            engine, run.checkpoints, recipe.keep_checkpoints, recipe.checkpoint_background, run.owned
        )
        self.step = 0  # steps done
        self.evaluation_due = True  # of the weights after `step`
        self.best: dict[str, Any] = {}
        self.window = Window()
        self.skipped = 0  # steps in a row
        self.before_skipped: tuple[int, dict[str, Any]] = (0, {})  # step and state before the first of them

    def resume(self) -> None:
        """Continue from the newest whole checkpoint of the run directory, or from the start if there is none yet."""
        state = self.checkpoints.load()
        if state is not None:
            self.step, self.best, self.evaluation_due = state["step"], state["best"], state["evaluation_due"]
            self.window.restore(state["window"], device())
        if is_main():
            self.run.metrics.keep(self._stays)
            log.info("Resuming after step %d of %d.", self.step, self.plan.steps)

    def _stays(self, row: dict[str, Any]) -> bool:
        """Whether a row of metrics is not going to be written again."""
        if row["step"] < self.step:
            return True
        return row["step"] == self.step and not (self.evaluation_due and "dev_spearman" in row)

    def fit(self) -> dict[str, Any]:
        """Train to the last step, export the best encoder, and return what `result.json` says.

        Raises:
            RunEnded: it was stopped, or stopped itself.
            InputError: a checkpoint could not be written.
        """
        self.checkpoints.begin()
        self.run.status.update(steps=self.plan.steps)
        try:
            if self.evaluation_due:
                self._evaluate()
            self.engine.train()
            self.window.begin_timing()
            with (
                # in a log file the lines of `_log` tell the same
                tqdm(total=self.plan.steps, initial=self.step, unit="step", disable=None if is_main() else True) as bar,
                self.batches.prefetch(self.step, self.plan.steps) as batches,
            ):
                for batch in self.training_step.ahead(self.window.waiting(batches)):
                    self._train_step(batch)
                    bar.update()
            return self._finish()
        except StopRequested as stop:
            raise self._leave(stop.reason) from None

    def _tick(self, doing: str) -> None:
        self.supervision.tick(doing, self.checkpoints)
        self._tell()

    def _tell(self) -> None:
        newest = self.checkpoints.step
        self.run.status.update(step=self.step, last_checkpoint=checkpoint_name(newest) if newest else None)

    def _save_now(self, step: int, state: dict[str, Any]) -> None:
        """Have a whole checkpoint of `step` before anything else is done."""
        with self.supervision.slowly("checkpointing"):
            self.checkpoints.finish()
            if step > 0 and self.checkpoints.step != step:
                self.checkpoints.save(step, state)
                self.checkpoints.finish()
        self._tell()

    def _leave(self, reason: Reason) -> RunEnded:
        """Save what is not saved yet, unless the run is another's by now."""
        name = None
        if reason is not Reason.SUPERSEDED and self.step > 0:
            self._save_now(self.step, self._state())
            name = f"checkpoint {checkpoint_name(self.step)}"
        return self.supervision.ended(reason, name, self.step, self.plan.steps)

    def _state(self) -> dict[str, Any]:
        """What a checkpoint holds beside weights and optimizer. Called on every rank."""
        return {
            "best": self.best,
            "score": self.best.get("dev_spearman") if self.best.get("step") == self.step else None,
            "evaluation_due": self.evaluation_due,
            "window": self.window.state(),
        }

    def _train_step(self, batch: Batch) -> None:
        last = batch.step + 1 == self.plan.steps
        checkpoint = (batch.step + 1) % self.recipe.checkpoint_every == 0 and not last
        real_tokens = sum(int(chunk.attention_mask.sum()) for chunk in batch.chunks)
        positions = real_tokens if self.packed else sum(chunk.attention_mask.numel() for chunk in batch.chunks)
        rate = learning_rate(self.recipe.optimizer, batch.step, self.plan.steps)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        buffers = Buffers(self.model)
        output = self._compute(batch)
        taken = optimizer_step(self.engine)
        if taken.applied:
            self.skipped = 0
            self.window.add(output, batch.sentences, real_tokens, positions)
        else:
            buffers.put_back()
            self._skip(output, batch)
        self.step = batch.step + 1
        self.evaluation_due = self.step % self.recipe.evaluation.every == 0 or last
        logs = self.step % self.recipe.log_every == 0 or checkpoint or last
        if (logs or self.evaluation_due) and not self.window.finite():
            raise self._not_finite(batch)
        if logs and self.window.steps:
            self._log(rate, float(taken.norm))
        with self.window.paused():
            if self.evaluation_due:
                self._evaluate()
            if checkpoint:
                with self.supervision.slowly("checkpointing"), self.window.checkpointing():
                    self.checkpoints.save(self.step, self._state())
            self._tick("training")

    def _compute(self, batch: Batch) -> StepOutput:
        """Forward and backward of this rank's share of a global batch."""
        return self.training_step(batch)

    def _skip(self, output: StepOutput, batch: Batch) -> None:
        """Count a step that left the weights as they were; too many in a row end the run.

        Raises:
            RunEnded: too many.
        """
        finite = not any(agree(not math.isfinite(float(output.loss.detach()))))
        if finite and self.engine.fp16_enabled():
            return  # a loss scale that was too large, and is smaller now
        if self.skipped == 0:
            self.before_skipped = (batch.step, self._state())
        self.skipped += 1
        if is_main():
            log.warning("Step %d is skipped: its loss or gradient is not finite.", batch.step + 1)
        if self.skipped >= self.recipe.max_skipped_steps:
            raise self._not_finite(batch)

    def _not_finite(self, batch: Batch) -> RunEnded:
        """Keep the weights that met such numbers first, look for where they come from, and stop."""
        if self.skipped:
            step, state = self.before_skipped
            self._save_now(step, state)
            batch = self.batches.batch(step)
        found = self._diagnose(batch)
        file = broadcast_object(write_dump(self.run.path, found) if is_main() else None)
        return RunEnded(
            f"{describe(found)}; all that was computed is in {file}; look again with `diffcse-scale replay "
            f"{self.run.path}`, then lower optimizer.learning_rate, or mend the data.",
            ExitCode.NOT_FINITE,
        )

    def replay(self) -> None:
        """Compute the step at which the run stopped again, and print where its numbers cease to be finite."""
        step = newest_dump(self.run.path)["step"] - 1
        if step > 0:
            self.checkpoints.load(at=step)
        self.engine.train()
        found = self._diagnose(self.batches.batch(step))
        if is_main():
            print(f"{describe(found)}.\nAll that was computed: {write_dump(self.run.path, found, 'replay-')}")

    def _diagnose(self, batch: Batch) -> dict[str, Any]:
        return diagnose(self.model, lambda: self._compute(batch), batch, self.batches)

    def _log(self, rate: float, norm: float) -> None:
        row = {**self.window.read(), "gradient_norm": norm, "learning_rate": rate}
        if is_main():
            self.run.metrics.write({"step": self.step, **row})
            speed = row["sentences_per_second"]
            left = (self.plan.steps - self.step) * self.recipe.batch.sentences / speed if speed else None
            self.run.status.update(sentences_per_second=speed, seconds_left=left)
            tqdm.write(console_line(self.step, self.plan.steps, row))
        self._monitor(row)

    def _monitor(self, row: dict[str, Any]) -> None:
        """The same numbers to DeepSpeed's own monitors, if its configuration names any."""
        if self.engine.monitor.enabled:
            numbers = {name: value for name, value in row.items() if value is not None and name != "step"}
            self.engine.monitor.write_events([(f"train/{name}", value, self.step) for name, value in numbers.items()])

    def _evaluate(self) -> None:
        """Measure the development set; keep the encoder if it is the best so far."""
        if self.development is not None:
            self._measure(self.development)
        self.evaluation_due = False

    def _measure(self, development: DevelopmentSet) -> None:
        def tick() -> None:
            self._tick("evaluating")

        start = time.perf_counter()
        score = development.spearman(self.model.encoder, tick)
        row = {"step": self.step, "dev_spearman": score}
        if self.step == 0 and self.model.encoder.pooling in ("cls", "mean"):
            # what training has to beat is the better of the two untrained poolings
            other = "mean" if self.model.encoder.pooling == "cls" else "cls"
            row[f"dev_spearman_{other}"] = development.spearman(Encoder(self.model.encoder.backbone, other), tick)
        if self.step > 0 and improves(score, self.best.get("dev_spearman")):
            self._keep_best({"step": self.step, "dev_spearman": score})
        if is_main():
            self.run.metrics.write({**row, EVALUATION: time.perf_counter() - start})
            shown = "  ".join(f"{name} {value:.2f}" for name, value in row.items() if name != "step")
            tqdm.write(f"step {self.step:>{len(str(self.plan.steps))}}/{self.plan.steps}  {shown}  (Spearman x 100)")
        self._monitor(row)

    def _keep_best(self, best: dict[str, Any]) -> None:
        """Export the encoder as the best so far. Those of checkpoints stay too: a resume may go back to any of them."""
        self._export(self.run.best(best["step"]))
        self.best = best
        if is_main():
            states = [*self.checkpoints.states(), {"best": best}]
            kept = {self.run.best(state["best"]["step"]) for state in states if state["best"]}
            for folder in self.run.best(self.step).parent.iterdir():
                if folder not in kept:
                    shutil.rmtree(folder)

    def _export(self, folder: Path) -> None:
        self._tick("exporting")
        lora = self.recipe.model.lora
        state, projection = whole_state(self.model.encoder.backbone), whole_state(self.model.projection)
        if is_main():
            export_sentence_transformer(
                self.model.encoder.backbone,
                self.tokenizer,
                self.recipe.model.pooling,
                self.recipe.evaluation.max_length,
                folder,
                state=state,
                adapter=lora is not None and lora.export == "adapter",
            )
            if projection:
                save_file(projection, folder / PROJECTION)
        barrier()

    def _finish(self) -> dict[str, Any]:
        self.checkpoints.finish()
        result: dict[str, Any] = {"steps": self.step}
        if self.development is not None:
            before = next(row for row in self.run.metrics.rows() if row["step"] == 0) if is_main() else {}
            result["before"] = {name: value for name, value in before.items() if name not in ("step", EVALUATION)}
            result["best"] = self.best
            if self.generator is not None:
                accuracy = self.development.rtd_accuracy(
                    self.model, self.generator, self.recipe, device(), lambda: self._tick("evaluating")
                )
                result.update(accuracy)
        else:
            self._keep_best({"step": self.step})
        self._tick("exporting")
        if is_main():
            draw_curves(self.run.metrics.rows(), self.run.curves)
            self._place_model(result)
            self.run.finish(**result)
        barrier()
        return result

    def _place_model(self, result: dict[str, Any]) -> None:
        """The best encoder becomes `model/`, with a card; its projection, which no user needs, lies beside it."""
        best, partial = self.run.best(self.best["step"]), self.run.model.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(best, partial, ignore=shutil.ignore_patterns(PROJECTION))
        if (best / PROJECTION).is_file():
            shutil.copyfile(best / PROJECTION, self.run.path / PROJECTION)
        try:
            write_run_card(partial, self.run.path, result)
        except Exception as error:  # whatever it is, a card is not worth a run
            log.warning("The model has no card: %s.", " ".join(str(error).split()))
        shutil.rmtree(self.run.model, ignore_errors=True)  # of an incarnation that was killed before its result
        partial.rename(self.run.model)


def improves(score: float, best: float | None) -> bool:
    """Whether `score` is the new best. NaN (collapsed embeddings) is better than nothing, and than nothing else."""
    if best is None or math.isnan(best):
        return True
    return score > best
