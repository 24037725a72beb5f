"""Reads the folders of runs, finished or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from diffcse_scale.evaluation.recorded import evaluations
from diffcse_scale.foundation import run_files
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.model_files import MODULES_FILE
from diffcse_scale.foundation.objects import read_object
from diffcse_scale.foundation.paths import given_path
from diffcse_scale.foundation.recorded_recipe import check_recipe
from diffcse_scale.recipe import Recipe
from diffcse_scale.recipe_file import load_recorded
from diffcse_scale.runs.incarnation import Incarnation, incarnations
from diffcse_scale.runs.metrics_file import NOTHING, MetricsFile, Series
from diffcse_scale.runs.records import Record, Result, Status


@dataclass(frozen=True)
class Run:
    """The content of a run folder, which is only read.

    Attributes:
        label: its name on the page: as much of the end of its path as distinguishes it from the others.
        facts: `run.json`.
        metrics: the numbers of `metrics.jsonl` by name.
        result: `result.json`, empty if the run has not finished.
        status: `status.json`, empty if there is none.
        evaluations: the content of the files in `evaluation/`, by file name without the ending.
    """

    path: Path
    label: str
    recipe: Recipe
    facts: dict[str, Any]
    metrics: dict[str, Series]
    result: dict[str, Any]
    status: dict[str, Any]
    evaluations: dict[str, dict[str, Any]]
    incarnations: list[Incarnation]

    @property
    def finished(self) -> bool:
        """Whether the run has a result."""
        return bool(self.result)

    def series(self, name: str) -> Series:
        """One number of `metrics.jsonl`; an empty series if no row has it."""
        return self.metrics.get(name, NOTHING)

    @property
    def step(self) -> int:
        """Steps done."""
        return int(self.series("step").steps.max(initial=0))

    @property
    def best(self) -> dict[str, Any]:
        """`step` and `dev_spearman` of the kept encoder, or of the best so far; empty before the first evaluation."""
        if self.result:
            return dict(self.result.get("best") or {})
        steps, scores = self.series("dev_spearman").known
        steps, scores = steps[steps > 0], scores[steps > 0]
        if not len(scores):
            return {}
        best = scores.argmax()
        return {"step": int(steps[best]), "dev_spearman": float(scores[best])}

    @property
    def before(self) -> dict[str, float]:
        """Development scores of the untrained encoder by pooling, the recipe's pooling first."""
        poolings = {"dev_spearman": self.recipe.model.pooling}
        return {
            poolings.get(name, name.rsplit("_")[-1]): float(series.known.values[0])
            for name, series in self.metrics.items()
            if name.startswith("dev_spearman") and 0 in series.known.steps[:1]
        }

    @cached_property
    def model(self) -> Path | None:
        """The folder of the trained encoder, or of the best so far; None before there is one."""
        best = sorted((self.path / run_files.BEST).glob("step-*"))
        folders = [self.path / run_files.MODEL, *reversed(best)]
        return next((folder for folder in folders if (folder / MODULES_FILE).is_file()), None)


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Read runs in the order given, each only once.

    Raises:
        InputError: a folder does not contain a run, or a file in it is not what a run writes.
    """
    paths = list(dict.fromkeys(given_path(folder).resolve() for folder in folders))
    if not paths:
        raise InputError("No run to report on; give the folder of at least one.")
    return [_read(path, label) for path, label in zip(paths, _labels(paths), strict=True)]


def _read(path: Path, label: str) -> Run:
    if not (path / run_files.RECIPE).is_file():
        raise InputError(f"{path} holds no run: recipe.yaml is not there; give the folder that training wrote.")
    check_recipe(path)
    return Run(
        path=path,
        label=label,
        recipe=load_recorded(path / run_files.RECIPE),
        facts=_object(path / run_files.RECORD, Record),
        metrics=MetricsFile(path / run_files.METRICS).series(),
        result=_object(path / run_files.RESULT, Result),
        status=_object(path / run_files.STATUS, Status),
        evaluations=evaluations(path),
        incarnations=incarnations(path / run_files.INCARNATIONS),
    )


def _object(file: Path, schema: type[BaseModel]) -> dict[str, Any]:
    return read_object(file, schema) if file.exists() else {}


def _labels(paths: Sequence[Path]) -> list[str]:
    """The shortest path ends that are all different."""
    for length in range(1, max(len(path.parts) for path in paths) + 1):
        ends = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(ends)) == len(paths):
            return ends
    raise AssertionError("the paths are different")
