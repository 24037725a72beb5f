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
from diffcse_scale.distributed import barrier, broadcast_object, is_main
from diffcse_scale.engine.engine import whole_state
from diffcse_scale.export import export_sentence_transformer
from diffcse_scale.export.model_card import write_run_card
from diffcse_scale.foundation.durable import publish, remove_folder
from diffcse_scale.foundation.errors import InputError, disk_errors_at, one_line
from diffcse_scale.foundation.file_digest import sha256_of
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
        files: SHA-256 of each of its files as they were written, on the main rank. Nothing else becomes `model/`.
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
        self.files: dict[str, str] = {}

    def offer(self, step: int, score: float, tick: Tick) -> None:
        """Keep the encoder if its development score is the best so far. Called on every rank."""
        if improves(score, self.facts.get("dev_spearman")):
            self.keep({"step": step, "dev_spearman": score if math.isfinite(score) else None}, tick)

    def keep(self, facts: dict[str, Any], tick: Tick) -> None:
        """Export the encoder as the best so far. Those of checkpoints stay too: a resume may go back to any of them."""
        tick("exporting")
        folder = self._run.best(facts["step"])
        self._export(folder)
        self.facts = facts
        if is_main():
            self.files = digests(folder)
            states = [*self._checkpoints.states(), {"best": facts}]
            kept = {self._run.best(state["best"]["step"]) for state in states if state["best"]}
            for old in {*folder.parent.glob("step-*"), *folder.parent.glob(".step-*")} - kept:  # half-written ones too
                if self._run.owned():
                    remove_folder(old)

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from the state of a checkpoint. Called on every rank.

        Raises:
            InputError: the files of the best encoder are not as they were written.
        """
        self.facts, self.files = state["best"], state.get("best_files", {})
        problem = self._damage(self._run.best(self.facts["step"])) if self.facts and is_main() else None
        if (problem := broadcast_object(problem)) is not None:
            raise InputError(problem)

    def _damage(self, folder: Path) -> str | None:
        """What is wrong with a copy of the best encoder, None if nothing is."""
        found = digests(folder)
        wrong = sorted(name for name, digest in self.files.items() if found.get(name) != digest)
        if folder.is_dir() and not wrong:
            return None
        best = self._run.best(self.facts["step"])
        which = f"{best / wrong[0]} is gone or damaged" if wrong else f"{best} is gone"
        return f"The best encoder so far cannot be used: {which}; bring {best} back, or give another --output."

    def _export(self, folder: Path) -> None:
        backbone, lora = self._model.encoder.backbone, self._recipe.model.lora
        state, projection = whole_state(backbone), whole_state(self._model.projection)
        self._run.check_owned()
        if is_main():
            remove_folder(folder)  # of an incarnation that was killed
            export_sentence_transformer(
                backbone,
                self._tokenizer,
                self._recipe.model.pooling,
                self._recipe.evaluation.max_length,
                folder,
                state=state,
                adapter=lora is not None and lora.export == "adapter",
                beside={PROJECTION: projection} if projection else {},
            )
        barrier()

    def place(self, result: dict[str, Any]) -> None:
        """It becomes `model/`, with a card; its projection, which no user needs, lies beside it. On the main rank.

        Raises:
            InputError: its files are not as they were written.
        """
        best, partial = self._run.best(self.facts["step"]), self._run.model.with_suffix(".partial")
        if not self._run.owned():
            return
        shutil.rmtree(partial, ignore_errors=True)
        with disk_errors_at(partial):
            if best.is_dir():
                for name in self.files or digests(best):  # an earlier version has not written them down
                    (partial / name).parent.mkdir(parents=True, exist_ok=True)
                    if (best / name).is_file():
                        shutil.copyfile(best / name, partial / name)
            if problem := self._damage(partial):
                raise InputError(problem)
            if (partial / PROJECTION).is_file():
                publish(partial / PROJECTION, self._run.path / PROJECTION)
            try:
                write_run_card(partial, self._run.path, result)
            except Exception as error:  # whatever it is, a card is not worth a run
                log.warning("The model has no card: %s.", one_line(error))
            if not self._run.owned():
                return
            shutil.rmtree(self._run.model, ignore_errors=True)  # of an incarnation that was killed before its result
            publish(partial, self._run.model)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file in a folder, by its relative name; empty if there is none."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {file.relative_to(folder).as_posix(): sha256_of(file) for file in files}


def improves(score: float, best: float | None) -> bool:
    """Whether `score` is the new best. NaN (collapsed embeddings) is better than nothing, and than nothing else."""
    if best is None or math.isnan(best):
        return True
    return score > best
