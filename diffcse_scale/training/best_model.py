"""Which encoder is the best so far, the folder that it is kept in, and how it becomes the run's `model/`."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from diffcse_scale.checkpoints.checkpoint import Checkpoints
from diffcse_scale.distributed import barrier, is_main
from diffcse_scale.engine.engine import whole_state
from diffcse_scale.export import export_sentence_transformer
from diffcse_scale.export.model_card import write_run_card
from diffcse_scale.foundation.durable import publish, save_weights
from diffcse_scale.foundation.errors import one_line
from diffcse_scale.foundation.run_files import PROJECTION
from diffcse_scale.model.networks import DiffCSENetworks
from diffcse_scale.recipe import Recipe
from diffcse_scale.runs.directory import RunDirectory

log = logging.getLogger(__name__)

Tick = Callable[[str], None]


class BestModel:
    """The best encoder of a run; every rank has one.

    Attributes:
        facts: its `step` and `dev_spearman`, None where that is undefined; empty before there is one.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: DiffCSENetworks,
        tokenizer: PreTrainedTokenizerBase,
        run: RunDirectory,
        checkpoints: Checkpoints,
    ) -> None:
        self._recipe, self._model, self._tokenizer = recipe, model, tokenizer
        self._run, self._checkpoints = run, checkpoints
        self.facts: dict[str, Any] = {}

    def offer(self, step: int, score: float, tick: Tick) -> None:
        """Keep the encoder if its development score is the best so far. Called on every rank."""
        if improves(score, self.facts.get("dev_spearman")):
            self.keep({"step": step, "dev_spearman": score if math.isfinite(score) else None}, tick)

    def keep(self, facts: dict[str, Any], tick: Tick) -> None:
        """Export the encoder as the best so far. Those of checkpoints stay too: a resume may go back to any of them."""
        tick("exporting")
        self._export(self._run.best(facts["step"]))
        self.facts = facts
        if is_main():
            states = [*self._checkpoints.states(), {"best": facts}]
            kept = {self._run.best(state["best"]["step"]) for state in states if state["best"]}
            for folder in self._run.best(facts["step"]).parent.glob("step-*"):
                if folder not in kept and self._run.owned():
                    shutil.rmtree(folder)

    def _export(self, folder: Path) -> None:
        backbone, lora = self._model.encoder.backbone, self._recipe.model.lora
        state, projection = whole_state(backbone), whole_state(self._model.projection)
        self._run.check_owned()
        if is_main():
            export_sentence_transformer(
                backbone,
                self._tokenizer,
                self._recipe.model.pooling,
                self._recipe.evaluation.max_length,
                folder,
                state=state,
                adapter=lora is not None and lora.export == "adapter",
                overwrite=True,  # the run's own, of an incarnation that was killed
            )
            if projection:
                save_weights(projection, folder / PROJECTION)
        barrier()

    def place(self, result: dict[str, Any]) -> None:
        """It becomes `model/`, with a card; its projection, which no user needs, lies beside it. On the main rank."""
        best, partial = self._run.best(self.facts["step"]), self._run.model.with_suffix(".partial")
        if not self._run.owned():
            return
        shutil.rmtree(partial, ignore_errors=True)
        left_out = shutil.ignore_patterns(PROJECTION)
        shutil.copytree(best, partial, ignore=left_out, copy_function=shutil.copyfile)
        if (best / PROJECTION).is_file():
            shutil.copyfile(best / PROJECTION, self._run.path / PROJECTION)
        try:
            write_run_card(partial, self._run.path, result)
        except Exception as error:  # whatever it is, a card is not worth a run
            log.warning("The model has no card: %s.", one_line(error))
        if not self._run.owned():
            return
        shutil.rmtree(self._run.model, ignore_errors=True)  # of an incarnation that was killed before its result
        publish(partial, self._run.model)


def improves(score: float, best: float | None) -> bool:
    """Whether `score` is the new best. NaN (collapsed embeddings) is better than nothing, and than nothing else."""
    if best is None or math.isnan(best):
        return True
    return score > best
