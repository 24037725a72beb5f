"""The hooks of every run: log lines, DeepSpeed monitors, evaluations, checkpoints, and the point where it can stop."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from diffcse_scale.distributed import is_main
from diffcse_scale.engine.launch import device
from diffcse_scale.foundation.finite import NotFinite
from diffcse_scale.foundation.working import Working
from diffcse_scale.model.encoder import Encoder
from diffcse_scale.recipe import Recipe
from diffcse_scale.runs.metric_table import EVALUATION
from diffcse_scale.runs.metrics import Idleness
from diffcse_scale.runs.own_time import Slowness
from diffcse_scale.training.development import ENOUGH_AT_END, ENOUGH_DURING, DevelopmentSet
from diffcse_scale.training.hook import Hook
from diffcse_scale.training.replicas import Replicas
from diffcse_scale.training.tracking import Tracking

if TYPE_CHECKING:
    from diffcse_scale.training.trainer import Trainer

log = logging.getLogger(__name__)


def all_hooks(
    recipe: Recipe,
    development: DevelopmentSet | None,
    added: Iterable[Hook] = (),
    track: Iterable[str] = (),
    start: Mapping[str, str] | None = None,
) -> list[Hook]:
    """The hooks of a run, in the order in which they are called.

    Args:
        development: the pairs that select the best encoder; None to keep the last one.
        added: the user's hooks; they finish their work before the run may be stopped.
        track, start: as for `Tracking`.
    """
    hooks = [Logging(recipe), Monitors(), Replicas(), Evaluation(development), Checkpointing(), *added]
    return [*hooks, Tracking(track, start or {}), Stopping()]


class Logging(Hook):
    """Logs progress: a row of metrics.jsonl, a line on the console, and the rate in status.json."""

    def __init__(self, recipe: Recipe) -> None:
        self._idleness = Idleness(contrastive=recipe.objective.contrastive_weight > 0)
        self._slowness = Slowness()

    def after_step(self, trainer: Trainer) -> None:
        if not (trainer.due.log and trainer.window.steps):
            return
        norm = float(trainer.gradient_norm)
        row = {**trainer.window.read(), "gradient_norm": norm, "learning_rate": trainer.learning_rate}
        if trainer.recipe.objective.rtd_share is not None:
            row["rtd_weight"] = trainer.training_step.objective.used["rtd"]
        trainer.record(row)
        slow = self._slowness.warning(row)
        if is_main():
            speed, steps = row["sentences_per_second"], trainer.plan.steps
            left = (steps - trainer.step) * trainer.recipe.batch.sentences / speed if speed else None
            trainer.run.status.update(sentences_per_second=speed, seconds_left=left)
            tqdm.write(trainer.lines.add(trainer.step, row, left))
            for warning in filter(None, (slow, self._idleness.warning(row))):
                log.warning(warning)


class Monitors(Hook):
    """Sends the numbers of each row to DeepSpeed's own monitors, if its configuration enables any."""

    def on_row(self, trainer: Trainer, row: dict[str, Any]) -> None:
        monitor = trainer.engine.monitor
        if monitor.enabled:
            numbers = {name: value for name, value in row.items() if value is not None and name != EVALUATION}
            monitor.write_events([(f"train/{name}", value, trainer.step) for name, value in numbers.items()])


class Evaluation(Hook):
    """Evaluates on the development set, keeps the best encoder, and adds scores before and after to the result."""

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
        start, encoder = time.perf_counter(), trainer.model.encoder
        if trainer.step > 0:
            trainer.skipped.check_weights()
        with _shown(trainer, "development set") as tick:
            try:
                score = development.spearman(encoder, tick)
            except NotFinite:
                if trainer.step == 0:
                    raise
                raise trainer.skipped.ended() from None
            row, scores = {"dev_spearman": score}, {encoder.pooling: score}
            if trainer.step == 0 and encoder.pooling in ("cls", "mean"):
                # training has to beat the better of the two untrained poolings
                other = "mean" if encoder.pooling == "cls" else "cls"
                row[f"dev_spearman_{other}"] = development.spearman(Encoder(encoder.backbone, other), tick)
                scores[other] = row[f"dev_spearman_{other}"]
        if trainer.step > 0:
            trainer.best.offer(trainer.step, score, trainer.tick)
        else:
            trainer.before = {name: value if math.isfinite(value) else None for name, value in row.items()}
        found = self._detection(development, trainer, ENOUGH_DURING)
        trainer.record({**row, **found, EVALUATION: time.perf_counter() - start})
        if is_main():
            shown = ", ".join(f"{score:.2f} ({pooling})" for pooling, score in scores.items())
            tqdm.write(f"{trainer.lines.step(trainer.step)} development Spearman x 100: {shown}")

    def on_end(self, trainer: Trainer, result: dict[str, Any]) -> None:
        if self._development is None:
            trainer.best.keep({"step": trainer.step}, trainer.tick)
            return
        result["before"] = trainer.before
        result["best"] = trainer.best.facts
        result.update(self._detection(self._development, trainer, ENOUGH_AT_END))

    def _detection(self, development: DevelopmentSet, trainer: Trainer, enough: int) -> dict[str, float | None]:
        """Measure the discriminator on `enough` replaced words; empty if there is no generator."""
        model, generator = trainer.model, trainer.generator
        if generator is None:
            return {}
        with _shown(trainer, "replaced-token detection") as tick:
            return development.detection(model, generator, trainer.recipe, device(), enough, tick)


@contextmanager
def _shown(trainer: Trainer, measured: str) -> Iterator[Callable[[], None]]:
    """Yield a function to call before each batch of a measurement; there the run shows progress and can be stopped."""
    with Working(f"evaluating, {measured}", "batches", shown=is_main()) as line:

        def tick() -> None:
            trainer.tick("evaluating")
            line.advance()

        yield tick


class Checkpointing(Hook):
    """Saves a checkpoint every `checkpoint_every` steps."""

    def at_pause(self, trainer: Trainer) -> None:
        if trainer.due.checkpoint:
            with trainer.supervision.slowly("checkpointing"), trainer.window.checkpointing():
                trainer.run.metrics.sync()
                trainer.checkpoints.save(trainer.step, trainer.state())


class Stopping(Hook):
    """Lets all ranks agree whether to continue."""

    def at_pause(self, trainer: Trainer) -> None:
        trainer.tick("training")
