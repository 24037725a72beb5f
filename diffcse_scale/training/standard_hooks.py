"""What every run has: log lines, DeepSpeed monitors, evaluations, checkpoints, and a place where it can be stopped."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from diffcse_scale.distributed import is_main
from diffcse_scale.engine.launch import device
from diffcse_scale.foundation.finite import NotFinite
from diffcse_scale.model.encoder import Encoder
from diffcse_scale.recipe import Recipe
from diffcse_scale.runs.metric_table import EVALUATION
from diffcse_scale.runs.metrics import Idleness, console_line
from diffcse_scale.training.development import DevelopmentSet
from diffcse_scale.training.hook import Hook

if TYPE_CHECKING:
    from diffcse_scale.training.trainer import Trainer

log = logging.getLogger(__name__)


def all_hooks(recipe: Recipe, development: DevelopmentSet | None, added: Iterable[Hook] = ()) -> list[Hook]:
    """The hooks of a run in the order in which they are called.

    Args:
        development: what chooses the best checkpoint; None to keep the last.
        added: the user's; whatever they do is done before the run may be stopped.
    """
    return [Logging(recipe), Monitors(), Evaluation(development), Checkpointing(), *added, Stopping()]


class Logging(Hook):
    """A log line: a row of metrics.jsonl, the console, the rate in status.json."""

    def __init__(self, recipe: Recipe) -> None:
        self._idleness = Idleness(contrastive=recipe.objective.contrastive_weight > 0)

    def after_step(self, trainer: Trainer) -> None:
        if not (trainer.due.log and trainer.window.steps):
            return
        norm = float(trainer.gradient_norm)
        row = {**trainer.window.read(), "gradient_norm": norm, "learning_rate": trainer.learning_rate}
        trainer.record(row)
        if is_main():
            speed, steps = row["sentences_per_second"], trainer.plan.steps
            left = (steps - trainer.step) * trainer.recipe.batch.sentences / speed if speed else None
            trainer.run.status.update(sentences_per_second=speed, seconds_left=left)
            tqdm.write(console_line(trainer.step, steps, row))
            if warning := self._idleness.warning(row):
                log.warning(warning)


class Monitors(Hook):
    """The numbers of each row to DeepSpeed's own monitors, if its configuration names any."""

    def on_row(self, trainer: Trainer, row: dict[str, Any]) -> None:
        monitor = trainer.engine.monitor
        if monitor.enabled:
            numbers = {name: value for name, value in row.items() if value is not None and name != EVALUATION}
            monitor.write_events([(f"train/{name}", value, trainer.step) for name, value in numbers.items()])


class Evaluation(Hook):
    """Measures the development set, has the best encoder kept, and says in the result what training has changed."""

    def __init__(self, development: DevelopmentSet | None) -> None:
        self._development = development

    def on_start(self, trainer: Trainer) -> None:
        self.at_pause(trainer)

    def at_pause(self, trainer: Trainer) -> None:
        if not trainer.evaluation_due:
            return
        if self._development is not None:
            self._measure(self._development, trainer)
        trainer.evaluation_due = False

    def _measure(self, development: DevelopmentSet, trainer: Trainer) -> None:
        def tick() -> None:
            trainer.tick("evaluating")

        start, encoder = time.perf_counter(), trainer.model.encoder
        if trainer.step > 0:
            trainer.skipped.check_weights()
        try:
            score = development.spearman(encoder, tick)
        except NotFinite:
            if trainer.step == 0:
                raise
            raise trainer.skipped.ended() from None
        row = {"dev_spearman": score}
        if trainer.step == 0 and encoder.pooling in ("cls", "mean"):
            # what training has to beat is the better of the two untrained poolings
            other = "mean" if encoder.pooling == "cls" else "cls"
            row[f"dev_spearman_{other}"] = development.spearman(Encoder(encoder.backbone, other), tick)
        if trainer.step > 0:
            trainer.best.offer(trainer.step, score, trainer.tick)
        else:
            trainer.before = {name: value if math.isfinite(value) else None for name, value in row.items()}
        trainer.record({**row, EVALUATION: time.perf_counter() - start})
        if is_main():
            shown = "  ".join(f"{name} {value:.2f}" for name, value in row.items())
            steps = trainer.plan.steps
            tqdm.write(f"step {trainer.step:>{len(str(steps))}}/{steps}  {shown}  (Spearman x 100)")

    def on_end(self, trainer: Trainer, result: dict[str, Any]) -> None:
        if self._development is None:
            trainer.best.keep({"step": trainer.step}, trainer.tick)
            return
        result["before"] = trainer.before
        result["best"] = trainer.best.facts
        if trainer.generator is not None:
            accuracy = self._development.rtd_accuracy(
                trainer.model, trainer.generator, trainer.recipe, device(), lambda: trainer.tick("evaluating")
            )
            result.update(accuracy)


class Checkpointing(Hook):
    """A checkpoint every `checkpoint_every` steps."""

    def at_pause(self, trainer: Trainer) -> None:
        if trainer.due.checkpoint:
            with trainer.supervision.slowly("checkpointing"), trainer.window.checkpointing():
                trainer.run.metrics.sync()
                trainer.checkpoints.save(trainer.step, trainer.state())


class Stopping(Hook):
    """All ranks agree whether to go on."""

    def at_pause(self, trainer: Trainer) -> None:
        trainer.tick("training")
