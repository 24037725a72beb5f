"""The suites that `diffcse-scale evaluate` knows, and where each finds its data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer

from diffcse_scale.errors import InputError
from diffcse_scale.evaluation.encoder import Encode
from diffcse_scale.evaluation.geometry import check_scores, evaluate_geometry
from diffcse_scale.evaluation.mteb import evaluate_mteb, load_mteb
from diffcse_scale.evaluation.scores import Results
from diffcse_scale.evaluation.sts import evaluate_sts
from diffcse_scale.evaluation.tasks import HUB, TaskPairs, load_sts
from diffcse_scale.evaluation.transfer import evaluate_transfer, require_sklearn
from diffcse_scale.evaluation.transfer_tasks import load_transfer

SUITES = ("sts", "transfer", "geometry", "mteb")


@dataclass(frozen=True)
class Subject:
    """A model under measurement: itself, the function that encodes with it, and the arguments that function uses."""

    model: SentenceTransformer
    encode: Encode
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Suite:
    """A suite whose data are loaded; `part` tells that tasks were chosen from it."""

    name: str
    measure: Callable[[Subject], Results]
    part: bool = False


def load_suites(wanted: Sequence[str], data: str | Path | None) -> list[Suite]:
    """Suites with their data, in the order of `SUITES`.

    Args:
        wanted: "sts", "transfer", "geometry", "mteb:TASK,TASK"; "sts:TASK,..." and "transfer:TASK,..." are parts.
        data: a folder with a subfolder for each suite: `sts` (geometry reads it too), `transfer`, `mteb`. Those of sts
            and transfer can be given themselves, for sts and geometry also a file of graded pairs or "hub". None
            serves mteb alone, which downloads.

    Raises:
        InputError: an unknown or repeated suite or task, data that are missing or malformed, a library that is missing.
    """
    chosen: dict[str, list[str] | None] = {}
    for one in wanted:
        name, given, tasks = one.partition(":")
        if name not in SUITES:
            raise InputError(f"There is no suite {name!r}; there are {', '.join(SUITES[:3])} and mteb:TASK,TASK.")
        if name in chosen:
            raise InputError(f"Suite {name} is given twice; name all its tasks in one: {name}:TASK,TASK.")
        chosen[name] = [task.strip() for task in tasks.split(",")] if given else None
    if data is None and set(chosen) != {"mteb"}:
        raise InputError(f"Suite {next(name for name in chosen if name != 'mteb')} needs --data.")
    return [_load(name, chosen[name], data) for name in SUITES if name in chosen]


def _load(name: str, tasks: list[str] | None, data: str | Path | None) -> Suite:
    if name == "mteb":
        if tasks is None:
            raise InputError("Suite mteb needs the names of tasks: --suite mteb:STSBenchmark,Banking77Classification.")
        of_mteb = load_mteb(tasks, None if data is None else Path(data) / name)
        return Suite(name, lambda subject: evaluate_mteb(subject.model, of_mteb, **subject.arguments))
    assert data is not None
    if name == "transfer":
        require_sklearn()
        of_transfer = load_transfer(_subfolder(data, name), tasks)
        return Suite(name, lambda subject: evaluate_transfer(subject.encode, of_transfer), tasks is not None)
    source = data if str(data) == HUB else _subfolder(data, "sts")
    if name == "sts":
        of_sts = load_sts(source, tasks)
        return Suite(name, lambda subject: evaluate_sts(subject.encode, of_sts), tasks is not None)
    if tasks is not None:
        raise InputError(
            "Suite geometry has no tasks to choose from; it measures STS-B dev, or your own file of pairs."
        )
    pairs = _geometry_pairs(source)
    return Suite(name, lambda subject: evaluate_geometry(subject.encode, pairs))


def _subfolder(data: str | Path, name: str) -> Path:
    """The suite's part of a folder that has parts for several; else the folder itself."""
    folder = Path(data)
    return folder / name if (folder / name).is_dir() else folder


def _geometry_pairs(source: str | Path) -> TaskPairs:
    (task,) = load_sts(source, ["STS-B dev"])
    check_scores(task)
    return task
