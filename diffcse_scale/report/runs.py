"""What a run folder says about itself, whether the run has finished or not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from diffcse_scale.errors import InputError
from diffcse_scale.export.sentence_transformer import MODULES_FILE
from diffcse_scale.recipe import Recipe, load_recipe
from diffcse_scale.training.incarnation import Incarnation, incarnations
from diffcse_scale.training.metrics import MetricsFile
from diffcse_scale.training.run_directory import INCARNATIONS
from diffcse_scale.training.status import STATUS


@dataclass(frozen=True)
class Run:
    """A run folder that is read and never written.

    Attributes:
        label: what the page calls it: as much of the end of its path as tells it from the others.
        facts: `run.json`.
        rows: of `metrics.jsonl`.
        result: `result.json`, empty if the run has not finished.
        status: `status.json`, empty if there is none.
        evaluations: suite name to what `evaluation/<suite>.json` holds.
    """

    path: Path
    label: str
    recipe: Recipe
    facts: dict[str, Any]
    rows: list[dict[str, Any]]
    result: dict[str, Any]
    status: dict[str, Any]
    evaluations: dict[str, dict[str, Any]]
    incarnations: list[Incarnation]

    @property
    def finished(self) -> bool:
        """Whether it has a result."""
        return bool(self.result)

    @property
    def step(self) -> int:
        """Steps done."""
        return max((row["step"] for row in self.rows), default=0)

    @property
    def best(self) -> dict[str, Any]:
        """`step` and `dev_spearman` of the encoder that is kept, or of the best so far; empty before the first."""
        if self.result:
            return dict(self.result.get("best", {}))
        scores = [row for row in self.rows if row["step"] > 0 and row.get("dev_spearman") is not None]
        return max(scores, key=lambda row: row["dev_spearman"], default={})

    @property
    def before(self) -> dict[str, float]:
        """Development scores of the untrained encoder by pooling, this recipe's first."""
        first = next((row for row in self.rows if row["step"] == 0), {})
        poolings = {"dev_spearman": self.recipe.model.pooling}
        return {
            poolings.get(name, name.rsplit("_")[-1]): value
            for name, value in first.items()
            if name.startswith("dev_spearman") and value is not None
        }

    @cached_property
    def model(self) -> Path | None:
        """The trained encoder, or the best so far; None before there is one."""
        best = sorted((self.path / "best").glob("step-*"))
        folders = [self.path / "model", *reversed(best)]
        return next((folder for folder in folders if (folder / MODULES_FILE).is_file()), None)


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Read runs, each once, in the order given.

    Raises:
        InputError: a folder holds no run, or a file in it is not what a run writes.
    """
    paths = list(dict.fromkeys(Path(folder).expanduser().resolve() for folder in folders))
    if not paths:
        raise InputError("No run to report on; give the folder of at least one.")
    return [_read(path, label) for path, label in zip(paths, _labels(paths), strict=True)]


def _read(path: Path, label: str) -> Run:
    if not (path / "recipe.yaml").is_file():
        raise InputError(f"{path} holds no run: recipe.yaml is not there; give the folder that training wrote.")
    suites = sorted((path / "evaluation").glob("*.json"))
    return Run(
        path=path,
        label=label,
        recipe=load_recipe(str(path / "recipe.yaml")),
        facts=_json(path / "run.json"),
        rows=MetricsFile(path / "metrics.jsonl").rows(),
        result=_json(path / "result.json"),
        status=_json(path / STATUS),
        evaluations={file.stem: _json(file) for file in suites},
        incarnations=incarnations(path / INCARNATIONS),
    )


def _json(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read ({error}); delete it or bring it back.") from None
    return content


def _labels(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that are all different."""
    for length in range(1, max(len(path.parts) for path in paths) + 1):
        ends = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(ends)) == len(paths):
            return ends
    raise AssertionError("the paths are different")
