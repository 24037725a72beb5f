"""Keeps the best encoder so far in a folder of its own, and turns it into the run's `model/` at the end."""

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
    """The best encoder of a run. Every rank has one such object.

    Attributes:
        facts: the encoder's `step` and `dev_spearman` (None if undefined); empty before there is a best encoder.
        files: SHA-256 of each of its files as written; main rank only. Only these files become `model/`.
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
        """Export the encoder as the best so far.

        The best encoders that checkpoints name are kept too, because a resume may go back to any checkpoint.
        """
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
        """Restore the best encoder from a checkpoint's state. Called on every rank.

        Raises:
            InputError: a file of the best encoder is missing or has changed.
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
        """Describe what is wrong with a copy of the best encoder, or return None; `read` has SHA-256 of some files."""
        found = digests(folder, read)
        wrong = sorted(name for name, digest in self.files.items() if found.get(name) != digest)
        if folder.is_dir() and not wrong:
            return None
        best = self._run.best(self.facts["step"])
        which = f"{best / wrong[0]} is gone or damaged" if wrong else f"{best} is gone"
        return f"The best encoder so far cannot be used: {which}; restore {best}, or give another --output."

    def _export(self, folder: Path) -> dict[str, str]:
        """Write the encoder; return SHA-256 of the weight files that the ranks wrote in parallel."""
        backbone, lora = self._model.encoder.backbone, self._recipe.model.lora
        shared, written = in_several_files(backbone), dict[str, str]()
        state, projection = None if shared else whole_state(backbone), whole_state(self._model.projection)
        self._run.check_owned()

        def write(place: Path | None) -> None:
            written.update(write_encoder(backbone, place))

        if is_main():
            remove_folder(folder)  # a leftover of an incarnation that was killed
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
        """Copy the best encoder to `model/` and add a model card. Called on every rank.

        Its projection goes beside `model/`, because no user needs it.

        Raises:
            InputError: a file of the best encoder is missing or has changed.
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
            except Exception as error:  # a missing card must not fail the run
                log.warning("The model has no card: %s.", one_line(error))
            if not self._run.owned():
                return
            shutil.rmtree(self._run.model, ignore_errors=True)  # left by an incarnation killed before its result
            publish(partial, self._run.model)

    def _copy(self, best: Path, partial: Path, owned: bool) -> dict[str, str]:
        """Copy the best encoder, its weight files in parallel; return the SHA-256 of those. Called on every rank.

        The two folders share no links: a user may change `model/`, and `--resume` needs `best/` unchanged.
        """
        names: list[str] = []
        if owned and best.is_dir():
            partial.mkdir()
            names = sorted(self.files) or list(digests(best))  # earlier versions did not record `files`
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
    """The weight files of a model that has several of them."""
    return sorted(path.name for path in folder.glob(NUMBERED))


def digests(folder: Path, known: Mapping[str, str] | None = None) -> dict[str, str]:
    """SHA-256 of each file in a folder, by relative name; files in `known` are not read. Empty without a folder."""
    found = dict(known or {})
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = file.relative_to(folder).as_posix()
        if name not in found:
            found[name] = sha256_of(file)
    return found


def improves(score: float, best: float | None) -> bool:
    """Whether `score` is the new best. NaN (collapsed embeddings) counts only if there is no score yet, or a NaN."""
    if best is None or math.isnan(best):
        return True
    return score > best
