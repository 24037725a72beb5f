"""Checkpoints that are complete or absent, written while training continues (`manifest.py` lists their files).

Every rank copies its shards to host memory; a step waits for nothing else. A thread writes them into
`step-00000100.partial-.../`. When all ranks have finished, the folder gets its manifest and its final name, and
`latest` is changed to name it. A checkpoint has no random state, because random numbers and the order of sentences are
derived from seed, step and rank (`randomness.py`). It has neither the frozen generator nor the frozen weights under
adapters. Weights that ZeRO-1 and 2 have in shards are only there. The model file, which one rank writes, has the
buffers and whatever no shard has.
"""

from __future__ import annotations

import functools
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from diffcse_scale.checkpoints.manifest import (
    LATEST,
    NONE_YET,
    STATE,
    checkpoint_name,
    checkpoint_steps,
    damage,
    newest_step,
    read_state,
    write_manifest,
)
from diffcse_scale.checkpoints.resharding import load_resharded, readable, sharded_names
from diffcse_scale.checkpoints.shards import ShardWriter
from diffcse_scale.distributed import barrier, broadcast_object, gather_objects, is_main, rank, world_size
from diffcse_scale.foundation.durable import STAYS, remove_files, remove_folder, sync_folder, write_durably
from diffcse_scale.foundation.environment import host_name
from diffcse_scale.foundation.errors import InputError, RunEnded, system_reason
from diffcse_scale.foundation.exit_codes import ExitCode
from diffcse_scale.foundation.strict_json import to_json

log = logging.getLogger(__name__)

PARTIAL = ".partial-"


class _Pending(NamedTuple):
    step: int
    partial: Path
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run. Every rank has one such object.

    All methods except `writing` and `states` must be called on every rank.

    Args:
        engine: the DeepSpeed engine.
        folder: `checkpoints/` of the run.
        keep: how many of the newest checkpoints stay; the one with the best score stays too.
        background: if False, everything is written before `save` returns.
        owned: whether this process may still write there; asked on the main rank before a checkpoint gets its name.
    """

    def __init__(
        self,
        engine: Any,
        folder: Path,
        keep: int = 1,
        background: bool = True,
        owned: Callable[[], bool] = lambda: True,
    ) -> None:
        self._engine, self._folder, self._keep, self._owned = engine, folder, keep, owned
        self._writer = engine.checkpoint_engine = ShardWriter(background)
        self._background = background
        self._pending: _Pending | None = None
        self.step: int | None = None  # step of the newest complete checkpoint that this process has written or read

    def begin(self) -> None:
        """Record on disk that there is no checkpoint yet, so that a `latest` that is missing later counts as lost."""
        if is_main() and self._owned():
            self._folder.mkdir(parents=True, exist_ok=True)
            if not (self._folder / LATEST).exists():
                write_durably(NONE_YET + "\n", self._folder / LATEST)

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Take the checkpoint after `step`. It is complete when `finish` or `commit_if_written` has returned.

        Args:
            state: JSON-serialisable state of the loop; the best checkpoint is the one with the highest `score` in it.

        Raises:
            InputError: this checkpoint or the one before could not be written (names the rank and the reason).
            RunEnded: a later incarnation owns the run.
        """
        self._make_whole()
        partial = self._folder / broadcast_object(_partial(checkpoint_name(step)))
        if is_main():
            partial.mkdir(parents=True)
        barrier()
        frozen = _has_frozen(self._engine)
        with _without_sharded_weights(self._engine):
            self._engine.save_checkpoint(
                str(self._folder), tag=partial.name, save_latest=False, exclude_frozen_parameters=frozen
            )
        if is_main():
            written = {**state, "step": step, **_shape(self._engine)}
            self._writer.write_text(to_json(written, indent=1), partial / STATE)
        self._pending = _Pending(step, partial, state)
        if not self._background:
            self.finish()

    @property
    def pending(self) -> int | None:
        """The step of the checkpoint that is not complete yet; None if there is none."""
        return None if self._pending is None else self._pending.step

    def writing(self) -> bool:
        """Whether this rank's files of a checkpoint are still being written."""
        return self._writer.writing()

    def commit_if_written(self, writing: bool) -> None:
        """Complete the pending checkpoint if no rank is `writing`. All ranks must have agreed on `writing`."""
        if not writing:
            self._make_whole()

    def finish(self) -> None:
        """Wait until the pending checkpoint, if any, is complete, and the checkpoints that it replaces are deleted.

        Raises:
            InputError: it could not be written; earlier checkpoints are still complete.
            RunEnded: a later incarnation owns the run, and will write its own checkpoint of this step.
        """
        self._make_whole()
        self._writer.finish()

    def _make_whole(self) -> None:
        if self._pending is None:
            return
        (step, partial, _), self._pending = self._pending, None
        entries, error = [], None
        try:
            entries = self._writer.written()
        except OSError as failure:
            error = _reason(failure)
        outcomes = gather_objects((entries, error))
        errors = {number: error for number, (_, error) in enumerate(outcomes) if error is not None}
        retired: list[Path] | None = None
        if is_main():
            try:
                if not errors:
                    retired = self._commit(step, partial, [entry for entries, _ in outcomes for entry in entries])
            except OSError as failure:
                errors[0] = _reason(failure)
            if retired is None:
                shutil.rmtree(partial, ignore_errors=True)
            with suppress(OSError):  # the first error counts
                if errors and not self._owned():
                    errors = {}  # a later incarnation has removed the half-written files
        errors, retired = broadcast_object((errors, retired))
        if errors:
            number, (host, problem) = next(iter(errors.items()))
            before = f"{checkpoint_name(self.step)} is complete" if self.step else "there is no earlier one"
            raise InputError(
                f"Checkpoint {checkpoint_name(step)} in {self._folder} could not be written by rank {number} "
                f"on {host} ({problem}); {before}; repair the disk, then continue with --resume."
            )
        if retired is None:
            raise RunEnded(
                f"A later incarnation has taken over {self._folder.parent}; checkpoint {checkpoint_name(step)} of this "
                "one was not kept.",
                ExitCode.SUPERSEDED,
            )
        self.step = step
        names = [{entry.name for entry in entries} for entries, _ in outcomes]
        for folder in retired:
            # in the background: a file server may take long to delete
            self._writer.later(functools.partial(self._remove_share, folder, names))

    def _commit(self, step: int, partial: Path, entries: list[Any]) -> list[Path] | None:
        """Give a written checkpoint its name.

        Returns:
            The renamed checkpoints that it replaces; None where another process owns the run and nothing was done.
        """
        write_manifest(partial, entries)
        sync_folder(partial)
        if not self._owned():
            return None
        # newer ones are damaged (a resume passed over them) or from skipped steps; the run resumes from an earlier one
        for newer in checkpoint_steps(self._folder):
            if newer >= step:
                shutil.rmtree(self._folder / checkpoint_name(newer))
        whole = partial.rename(self._folder / checkpoint_name(step))
        write_durably(whole.name + "\n", self._folder / LATEST)
        steps = checkpoint_steps(self._folder)
        scores = {old: self._score(old) for old in steps}
        best = max((old for old in steps if scores[old] is not None), key=lambda old: scores[old], default=None)
        retired = (self._retire(self._folder / checkpoint_name(old)) for old in steps[: -self._keep] if old != best)
        return [folder for folder in retired if folder is not None]

    def _retire(self, folder: Path) -> Path | None:
        """Rename a checkpoint that is no longer needed before it is deleted, so that half of it never counts as one."""
        aside = folder.with_name(_partial(folder.name))
        try:
            folder.rename(aside)
        except OSError as error:
            log.warning(STAYS, folder, system_reason(error))
            return None
        return aside

    def _remove_share(self, folder: Path, names: list[set[str]]) -> None:
        """Delete this rank's files of a retired checkpoint; the main rank deletes all that no other rank has.

        Args:
            names: for each rank, the files that it has just written, which have the same names in every checkpoint.
        """
        own = names[rank()]
        if is_main():
            if not self._owned():
                return
            own = {entry.name for entry in folder.iterdir()}.difference(*names[1:])
        remove_files(folder, own)

    def _remove(self, folder: Path) -> None:
        """Delete a folder if this process still owns the run; a leftover does no harm."""
        if self._owned():
            remove_folder(folder)

    def _score(self, step: int) -> Any:
        try:
            score = read_state(self._folder / checkpoint_name(step)).get("score")
        except (OSError, ValueError):
            return None
        return score if score == score else None  # NaN means that the embeddings have collapsed

    def states(self) -> list[dict[str, Any]]:
        """The states of all checkpoints that a resume may use, the pending one included. Main rank only."""
        states = [self._pending.state] if self._pending is not None else []
        for step in checkpoint_steps(self._folder):
            try:
                states.append(read_state(self._folder / checkpoint_name(step)))
            except (OSError, ValueError):
                log.warning("Checkpoint %s has no readable state.", checkpoint_name(step))
        return states

    def load(self, at: int | None = None) -> dict[str, Any] | None:
        """Load the checkpoint that `latest` names, or the newest complete one before it if that one is damaged.

        Every rank checks its own files before any rank loads. Then it reads its parts from the shards that have them,
        bit for bit, for any world size and ZeRO stage of the resumed run (`resharding`). DeepSpeed loads only what
        `resharding` cannot read, and ZeRO-3 with an unchanged layout.

        Args:
            at: load only the checkpoint of this step.

        Returns:
            The state that it was saved with; None if the run has no checkpoint yet.

        Raises:
            InputError: there are checkpoints but none is complete, or `latest` is missing.
        """
        latest, steps = self._candidates()
        if at is not None:
            steps = [step for step in steps if step == at]
        elif is_main() and self._owned():  # else partial folders may belong to the run's owner
            for entry in self._folder.glob(f"*{PARTIAL}*"):
                log.warning("Checkpoint %s is half-written or half-deleted; it is deleted.", entry.name)
                self._remove(entry)
        if latest == 0:
            return None
        for step in reversed(steps):
            folder = self._folder / checkpoint_name(step)
            found = [problem for problem in gather_objects(damage(folder, rank(), world_size())) if problem]
            if not found:
                self.step = step
                return self._load(folder)
            if is_main():
                log.warning("Checkpoint %s is damaged and not used: %s.", folder, "; ".join(sorted(set(found))))
        raise InputError(
            f"No checkpoint in {self._folder} is complete, although {LATEST} names {checkpoint_name(latest)}; restore "
            "one, or start over with another --output."
        )

    def _candidates(self) -> tuple[int, list[int]]:
        """The step that `latest` names, and the steps of the folders up to it; an error is raised on every rank."""
        answer: Any = None
        if is_main():
            try:
                latest = newest_step(self._folder)
                steps = [step for step in checkpoint_steps(self._folder) if step <= latest]
                if latest and latest not in steps:
                    log.warning("Checkpoint %s, which %s names, is missing.", checkpoint_name(latest), LATEST)
                answer = latest, steps
            except InputError as error:
                answer = error
        answer = broadcast_object(answer)
        if isinstance(answer, InputError):
            raise answer
        return answer[0], answer[1]

    def _load(self, folder: Path) -> dict[str, Any]:
        state, stage = read_state(folder), self._engine.zero_optimization_stage()
        same = all(state.get(key) == value for key, value in _shape(self._engine).items())
        if not same or (stage < 3 and readable(self._engine, stage)):
            load_resharded(self._engine, folder, state["zero_stage"], state["world_size"])
            if is_main() and not same:
                log.info(
                    "A checkpoint of %d devices at ZeRO-%d was loaded by %d devices at ZeRO-%d.",
                    state["world_size"], state["zero_stage"], world_size(), stage,
                )  # fmt: skip
            return state
        strict = not _has_frozen(self._engine)
        path, _ = self._engine.load_checkpoint(str(folder.parent), tag=folder.name, load_module_strict=strict)
        if path is None:
            raise InputError(f"Checkpoint {folder} could not be loaded; delete it to resume from the previous one.")
        return state


def _partial(name: str) -> str:
    """A unique name for a checkpoint that is not complete yet, or no longer."""
    return f"{name}{PARTIAL}{uuid4().hex[:8]}"


def _reason(error: OSError) -> tuple[str, str]:
    """This rank's host, and the system's reason with the file's name."""
    where = f": {Path(os.fsdecode(error.filename)).name}" if error.filename is not None else ""
    return host_name(), system_reason(error) + where


@contextmanager
def _without_sharded_weights(engine: Any) -> Iterator[None]:
    """Leave weights that are in shards out of the model's state, because rank 0 would write them all a second time."""
    sharded = sharded_names(engine)
    shared = {
        name for name, value in engine.module.named_parameters(remove_duplicate=False)
        if engine.param_names.get(value) in sharded
    }  # fmt: skip

    def leave_out(module: Any, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        for name in shared & state.keys():
            del state[name]

    handle = engine.module.register_state_dict_post_hook(leave_out)
    try:
        yield
    finally:
        handle.remove()


def _shape(engine: Any) -> dict[str, Any]:
    """What determines the layout of an engine's shards."""
    return {
        "world_size": world_size(),
        "zero_stage": engine.zero_optimization_stage(),
        "zero_optimization": engine.config.get("zero_optimization", {}),
    }


def _has_frozen(engine: Any) -> bool:
    return any(not parameter.requires_grad for parameter in engine.module.parameters())
