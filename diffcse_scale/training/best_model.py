"""Which encoder is the best so far, the folder that it is kept in, and how it becomes the run's `model/`."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from diffcse_scale.checkpoints.checkpoint import Checkpoints
from diffcse_scale.distributed import barrier, broadcast_object, is_main
from diffcse_scale.engine.engine import whole_state
from diffcse_scale.export import export_sentence_transformer
from diffcse_scale.export.model_card import write_run_card
from diffcse_scale.foundation.durable import publish, remove_folder, sync_file
from diffcse_scale.foundation.errors import InputError, disk_errors_at, one_line
from diffcse_scale.foundation.file_digest import sha256_of
from diffcse_scale.foundation.run_files import PROJECTION
from diffcse_scale.model.networks import DiffCSENetworks
from diffcse_scale.model_folder.layout import NUMBERED
from diffcse_scale.model_folder.weight_files import in_several_files
from diffcse_scale.recipe import Recipe
from diffcse_scale.runs.directory import RunDirectory
from diffcse_scale.training.writers import side_by_side, write_encoder

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
        written = self._export(folder)
        self.facts = facts
        if is_main():
            self.files = digests(folder, written)
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
        problem = None
        if self.facts:
            best = self._run.best(self.facts["step"])
            read = side_by_side(lambda name: sha256_of(best / name), numbered(best), best)
            problem = self._damage(best, read) if is_main() else None
        if (problem := broadcast_object(problem)) is not None:
            raise InputError(problem)

    def _damage(self, folder: Path, read: Mapping[str, str]) -> str | None:
        """What is wrong with a copy of the best encoder, None if nothing is; of some files SHA-256 is known."""
        found = digests(folder, read)
        wrong = sorted(name for name, digest in self.files.items() if found.get(name) != digest)
        if folder.is_dir() and not wrong:
            return None
        best = self._run.best(self.facts["step"])
        which = f"{best / wrong[0]} is gone or damaged" if wrong else f"{best} is gone"
        return f"The best encoder so far cannot be used: {which}; restore {best}, or give another --output."

    def _export(self, folder: Path) -> dict[str, str]:
        """Write the encoder; SHA-256 of the files that ranks have written side by side."""
        backbone, lora = self._model.encoder.backbone, self._recipe.model.lora
        shared, written = in_several_files(backbone), dict[str, str]()
        state, projection = None if shared else whole_state(backbone), whole_state(self._model.projection)
        self._run.check_owned()

        def write(place: Path | None) -> None:
            written.update(write_encoder(backbone, place))

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
                write=write if shared else None,
            )
        elif shared:
            write(None)
        barrier()
        return written

    def place(self, result: dict[str, Any]) -> None:
        """It becomes `model/`, with a card; its projection, which no user needs, lies beside it. Called on every rank.

        Raises:
            InputError: its files are not as they were written.
        """
        best, partial = self._run.best(self.facts["step"]), self._run.model.with_suffix(".partial")
        owned = is_main() and self._run.owned()
        if owned:
            shutil.rmtree(partial, ignore_errors=True)
        with disk_errors_at(partial):
            copied = self._copy(best, partial, owned)
            if not owned:
                return
            if problem := self._damage(partial, copied):
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

    def _copy(self, best: Path, partial: Path, owned: bool) -> dict[str, str]:
        """Copy the best encoder, files of weights side by side; SHA-256 of the copies of these. Called on every rank.

        Nothing joins the two folders: a user may change `model/`, and `--resume` needs `best/` as it was written.
        """
        names: list[str] = []
        if owned and best.is_dir():
            partial.mkdir()
            names = sorted(self.files) or list(digests(best))  # an earlier version has not written them down
        large = [name for name in numbered(best) if name in names]

        def copy(name: str) -> str:
            shutil.copyfile(best / name, partial / name)
            sync_file(partial / name)
            return sha256_of(partial / name)

        for name in names:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            if name not in large and (best / name).is_file():
                shutil.copyfile(best / name, partial / name)
        return side_by_side(copy, large, partial)


def numbered(folder: Path) -> list[str]:
    """The files of weights of a model that has several."""
    return sorted(path.name for path in folder.glob(NUMBERED))


def digests(folder: Path, known: Mapping[str, str] | None = None) -> dict[str, str]:
    """SHA-256 of each file in a folder, by its relative name; empty if there is none. Those of `known` are not read."""
    found = dict(known or {})
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = file.relative_to(folder).as_posix()
        if name not in found:
            found[name] = sha256_of(file)
    return found


def improves(score: float, best: float | None) -> bool:
    """Whether `score` is the new best. NaN (collapsed embeddings) is better than nothing, and than nothing else."""
    if best is None or math.isnan(best):
        return True
    return score > best
