"""The folder of one run.

recipe.yaml      what was trained, every field
run.json         how: DeepSpeed configuration, batch table, data fingerprint, machine, versions, command; the same again
                 for each time it was resumed
metrics.jsonl    a row a log line and a row an evaluation
checkpoints/     to resume from
best/            the encoder with the best development score so far
model/           the result: loads in sentence-transformers and transformers
curves.png       losses and development score against steps
result.json      written last; a run without it has not finished
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from diffcse_scale.distributed import barrier, broadcast_object, is_main
from diffcse_scale.environment import environment
from diffcse_scale.errors import InputError
from diffcse_scale.recipe import Recipe
from diffcse_scale.training.metrics import MetricsFile

# fields that may change when a run is resumed: they do not touch the result
FREE_TO_CHANGE = ("log_every", "checkpoint_every", "keep_checkpoints", "data.workers", "data.cache_dir")


LOCK, OWNER = ".lock", ".owner"


class FolderInUse(InputError):
    """Another process writes there."""


class RunDirectory:
    """Paths of a run; opening one refuses to touch another run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.model = path / "model"
        self.curves = path / "curves.png"
        self.metrics = MetricsFile(path / "metrics.jsonl")
        self.lock: FileLock | None = None  # held by the main rank as long as this object lives

    def best(self, step: int) -> Path:
        """Where the encoder lies that was the best after `step`."""
        return self.path / "best" / f"step-{step:08d}"

    @classmethod
    def open(cls, path: str | None, recipe: Recipe, resume: bool) -> RunDirectory:
        """Create the folder of a new run, or find that of a run to resume. Called on every rank.

        Args:
            path: None means `runs/<recipe name>`, numbered if that is taken.

        Raises:
            InputError: the folder holds a run and `resume` is False, holds none and it is True, or holds another
                recipe's run (names what differs).
        """
        answer: str | InputError | None = None
        lock = None
        if is_main():
            try:
                folder, lock = _open(path, recipe, resume)
                answer = str(folder)
            except InputError as error:
                answer = error
        answer = broadcast_object(answer)  # one rank looks, all leave together
        if isinstance(answer, InputError):
            raise answer
        run = cls(Path(str(answer)))
        run.lock = lock
        return run

    def describe(self, recipe: Recipe, resume: bool, **facts: Any) -> None:
        """Write `recipe.yaml` and `run.json`: from now on the folder holds a run. Called on every rank.

        A resumed run may have another shape: its facts are appended to those that it began with.

        Raises:
            InputError: on resume, the corpus or the precision is not that of the run.
        """
        record = self.path / "run.json"
        written = {"command": " ".join(sys.argv), **facts, "environment": environment()}
        if resume:
            begun = json.loads(record.read_text(encoding="utf-8"))
            for name in ("data_fingerprint", "precision"):
                if begun[name] != facts[name]:
                    raise InputError(
                        f"{self.path} cannot be resumed: its {name.replace('_', ' ')} was {begun[name]}, now it is "
                        f"{facts[name]}; restore it or give another --output."
                    )
            written = {**begun, "resumed": [*begun.get("resumed", []), written]}
        if is_main():
            fresh = record.with_suffix(".tmp")
            fresh.write_text(json.dumps(written, indent=1), encoding="utf-8")
            os.replace(fresh, record)
            if not resume:
                text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
                (self.path / "recipe.yaml").write_text(text, encoding="utf-8")
        barrier()

    def finish(self, **result: Any) -> None:
        """Write `result.json`, the mark of a finished run."""
        (self.path / "result.json").write_text(json.dumps(result, indent=1), encoding="utf-8")


def _open(path: str | None, recipe: Recipe, resume: bool) -> tuple[Path, FileLock]:
    if path is not None or resume:
        return _claim(Path(path or f"runs/{recipe.name}"), recipe, resume)
    for number in itertools.count(1):
        folder = Path(f"runs/{recipe.name}" if number == 1 else f"runs/{recipe.name}-{number}")
        if not _occupied(folder):
            try:
                return _claim(folder, recipe, resume)
            except FolderInUse:
                continue
    raise AssertionError("unreachable")


def _claim(folder: Path, recipe: Recipe, resume: bool) -> tuple[Path, FileLock]:
    saved = folder / "recipe.yaml"
    if resume and not saved.is_file():
        raise InputError(f"There is no run to resume in {folder}; give its folder with --output.")
    if saved.is_file():
        _same_recipe(recipe, saved)
        if not resume:
            raise InputError(
                f"{folder} holds a run of this recipe; continue it with --resume or give another --output."
            )
        if (folder / "result.json").is_file():
            raise InputError(f"The run in {folder} has finished; its model lies in {folder / 'model'}.")
    elif _occupied(folder):
        raise InputError(f"{folder} exists and is no run of this program; give another --output.")
    return folder, _lock(folder)


def _lock(folder: Path) -> FileLock:
    """One run, one writer."""
    lock, owner = FileLock(folder / LOCK), folder / OWNER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
    except Timeout:
        raise FolderInUse(
            f"{folder} is being written by {owner.read_text(encoding='utf-8')}; wait for it or give another --output."
        ) from None
    except OSError as error:
        raise InputError(f"Output folder {folder} cannot be written: {error.strerror}.") from None
    return lock


def _occupied(folder: Path) -> bool:
    """Whether something is there. A start that a mistake has stopped leaves an empty folder, which is free."""
    return folder.exists() and (not folder.is_dir() or any(e.name not in (LOCK, OWNER) for e in folder.iterdir()))


def _same_recipe(recipe: Recipe, saved: Path) -> None:
    differences = [
        line
        for line in recipe.differences(yaml.safe_load(saved.read_text(encoding="utf-8")))
        if line.split(":")[0] not in FREE_TO_CHANGE
    ]
    if differences:
        raise InputError(
            f"{saved.parent} holds a run of another recipe, which stays as it is; give another --output "
            f"(this recipe has {'; '.join(differences)})."
        )
