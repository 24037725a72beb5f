"""The loop: edit, forward, backward, step; log, evaluate, checkpoint, export."""

from __future__ import annotations

import logging
import math
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from diffcse_scale.distributed import barrier, is_main
from diffcse_scale.errors import InputError
from diffcse_scale.export import export_sentence_transformer
from diffcse_scale.model.diffcse import DiffCSE, StepOutput
from diffcse_scale.model.encoder import Encoder
from diffcse_scale.model.generator import Generator
from diffcse_scale.recipe import Recipe
from diffcse_scale.text.batches import Batch, Batches, Chunk
from diffcse_scale.training.checkpoint import load_checkpoint, save_checkpoint
from diffcse_scale.training.chunking import ChunkedStep
from diffcse_scale.training.curves import draw_curves
from diffcse_scale.training.development import DevelopmentSet
from diffcse_scale.training.engine import device, optimizer_step, whole_state
from diffcse_scale.training.metrics import Window, console_line
from diffcse_scale.training.run_directory import RunDirectory
from diffcse_scale.training.schedule import Plan, learning_rate

log = logging.getLogger(__name__)


class Trainer:
    """Trains one recipe to its end; every rank has one.

    Args:
        engine: the DeepSpeed engine around a `DiffCSE`.
        generator: None when `rtd_weight` is 0.
        development: what chooses the best checkpoint; None to keep the last.
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
    ) -> None:
        self.recipe, self.plan, self.engine, self.generator = recipe, plan, engine, generator
        self.batches, self.tokenizer, self.development, self.run = batches, tokenizer, development, run
        self.model: DiffCSE = engine.module
        self.chunked_step = ChunkedStep(engine) if recipe.batch.chunk else None
        self.step = 0  # steps done
        self.best: dict[str, Any] = {}
        self.saved_best: dict[str, Any] = {}  # as of the newest checkpoint
        self.window = Window()

    def resume(self) -> None:
        """Continue from the newest whole checkpoint of the run directory, or from the start if there is none yet."""
        state = load_checkpoint(self.engine, self.run.checkpoints) or {"step": 0, "best": {}}
        self.step, self.best, self.saved_best = state["step"], state["best"], state["best"]
        if is_main():
            self.run.metrics.forget_after(self.step if self.step else -1)
            log.info("Resuming after step %d of %d.", self.step, self.plan.steps)

    def fit(self) -> dict[str, Any]:
        """Train to the last step, export the best encoder, and return what `result.json` says."""
        if self.step == 0:
            self._evaluate()
        self.engine.train()
        self.window = Window()
        with (
            tqdm(total=self.plan.steps, initial=self.step, unit="step", disable=not is_main()) as bar,
            self.batches.prefetch(self.step, self.plan.steps) as batches,
        ):
            for batch in batches:
                self._train_step(batch)
                bar.update()
        return self._finish()

    def _train_step(self, batch: Batch) -> None:
        self.step = batch.step + 1
        last = self.step == self.plan.steps
        checkpoint = self.step % self.recipe.checkpoint_every == 0 and not last
        real_tokens = sum(int(chunk.attention_mask.sum()) for chunk in batch.chunks)
        positions = sum(chunk.attention_mask.numel() for chunk in batch.chunks)
        chunks = [chunk.to(device(), non_blocking=True) for chunk in batch.chunks]
        edited = [self.generator.edit(chunk) for chunk in chunks] if self.generator else None
        rate = learning_rate(self.recipe.optimizer, batch.step, self.plan.steps)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        output = self._forward_backward(chunks, edited)
        logs = self.step % self.recipe.log_every == 0 or checkpoint or last
        evaluates = self.step % self.recipe.evaluation.every == 0 or last
        norm = optimizer_step(self.engine, want_norm=logs)
        self.window.add(output, batch.sentences, real_tokens, positions)
        if logs or evaluates:
            self._check_finite()
        if logs:
            self._log(rate, norm)
        with self.window.paused():
            if evaluates:
                self._evaluate()
            if checkpoint:
                self._checkpoint()

    def _forward_backward(self, chunks: list[Chunk], edited: list[Tensor] | None) -> StepOutput:
        if self.chunked_step is not None:
            return self.chunked_step(chunks, edited)
        output: StepOutput = self.engine(chunks, edited)
        self.engine.backward(output.loss)
        return output

    def _check_finite(self) -> None:
        """Stop before anything that is not finite is measured or saved."""
        if not self.window.finite():
            raise InputError(
                f"The loss is not finite at or shortly before step {self.step}; nothing was saved since the last "
                "checkpoint; lower optimizer.learning_rate and start again."
            )

    def _checkpoint(self) -> None:
        save_checkpoint(self.engine, self.run.checkpoints, self.step, {"best": self.best}, self.recipe.keep_checkpoints)
        self.saved_best = self.best

    def _log(self, rate: float, norm: float) -> None:
        row = {**self.window.read(), "gradient_norm": norm, "learning_rate": rate}
        if is_main():
            self.run.metrics.write({"step": self.step, **row})
            tqdm.write(console_line(self.step, self.plan.steps, row))
        self._monitor(row)

    def _monitor(self, row: dict[str, Any]) -> None:
        """The same numbers to DeepSpeed's own monitors, if its configuration names any."""
        if self.engine.monitor.enabled:
            numbers = {name: value for name, value in row.items() if value is not None and name != "step"}
            self.engine.monitor.write_events([(f"train/{name}", value, self.step) for name, value in numbers.items()])

    def _evaluate(self) -> None:
        """Measure the development set; keep the encoder if it is the best so far."""
        if self.development is None:
            return
        score = self.development.spearman(self.model.encoder)
        row = {"step": self.step, "dev_spearman": score}
        if self.step == 0 and self.model.encoder.pooling in ("cls", "mean"):
            # what training has to beat is the better of the two untrained poolings
            other = "mean" if self.model.encoder.pooling == "cls" else "cls"
            row[f"dev_spearman_{other}"] = self.development.spearman(Encoder(self.model.encoder.backbone, other))
        if is_main():
            self.run.metrics.write(row)
            shown = "  ".join(f"{name} {value:.2f}" for name, value in row.items() if name != "step")
            tqdm.write(f"step {self.step:>{len(str(self.plan.steps))}}/{self.plan.steps}  {shown}  (Spearman x 100)")
        self._monitor(row)
        if self.step > 0 and improves(score, self.best.get("dev_spearman")):
            self.best = {"step": self.step, "dev_spearman": score}
            self._keep_best()

    def _keep_best(self) -> None:
        """Export the encoder as the best so far. That of the newest checkpoint stays too: a resume goes back to it."""
        self._export(self.run.best(self.step))
        if is_main():
            kept = {self.run.best(best["step"]) for best in (self.best, self.saved_best) if best}
            for folder in self.run.best(self.step).parent.iterdir():
                if folder not in kept:
                    shutil.rmtree(folder)

    def _export(self, folder: Path) -> None:
        lora = self.recipe.model.lora
        state = whole_state(self.model.encoder.backbone)
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
        barrier()

    def _finish(self) -> dict[str, Any]:
        result: dict[str, Any] = {"steps": self.step}
        if self.development is not None:
            before = next(row for row in self.run.metrics.rows() if row["step"] == 0) if is_main() else {}
            result["before"] = {name: value for name, value in before.items() if name != "step"}
            result["best"] = self.best
            if self.generator is not None:
                result.update(self.development.rtd_accuracy(self.model, self.generator, self.recipe, device()))
        else:
            self.best = {"step": self.step}
            self._keep_best()
        if is_main():
            partial = self.run.model.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(self.run.best(self.best["step"]), partial)
            partial.rename(self.run.model)
            draw_curves(self.run.metrics.rows(), self.run.curves)
            self.run.finish(**result)
        barrier()
        return result


def improves(score: float, best: float | None) -> bool:
    """Whether `score` is the new best. NaN (collapsed embeddings) is better than nothing, and than nothing else."""
    if best is None or math.isnan(best):
        return True
    return score > best
