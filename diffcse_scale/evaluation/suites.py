"""The suites of `diffcse-scale evaluate`: one table that runs, report and model card read.

The help of `--suite` (`cli/`) and docs/evaluation.md list them for people. A test checks that the three agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffcse_scale.evaluation.geometry import check_pairs, evaluate_geometry
from diffcse_scale.evaluation.mteb import evaluate_mteb, load_mteb
from diffcse_scale.evaluation.scores import Results
from diffcse_scale.evaluation.sensitivity import evaluate_edits, load_edits
from diffcse_scale.evaluation.sentence_encoder import Encode
from diffcse_scale.evaluation.sts import evaluate_sts
from diffcse_scale.evaluation.tasks import HUB, STS_TASKS, TaskPairs, load_sts
from diffcse_scale.evaluation.transfer import evaluate_transfer, require_sklearn
from diffcse_scale.evaluation.transfer_tasks import TRANSFER_TASKS, load_transfer
from diffcse_scale.foundation.errors import InputError, quoted
from diffcse_scale.foundation.paths import given_path
from diffcse_scale.text.cache import cache_folder, fingerprint
from diffcse_scale.text.remote import copy_folder, is_remote

if TYPE_CHECKING:  # a training rank need not import it
    from sentence_transformers import SentenceTransformer

Report = dict[str, Any]
"""The results of a suite in the form of `as_json`."""

NEARLY = 0.9  # share of a standard set that must be there: some copies, such as the Hub's SICK-R, lack a few rows
GEOMETRY = "STS-B dev"


@dataclass(frozen=True)
class Subject:
    """A model to evaluate, the function that encodes with it, and that function's arguments."""

    model: SentenceTransformer
    encode: Encode
    arguments: dict[str, Any]


Measure = Callable[[Subject], Results]
Load = Callable[[str | Path | None, list[str] | None], tuple[Measure, str]]
"""From data and task names (None: all available) to a function that measures and a fingerprint of the data."""


@dataclass(frozen=True)
class Suite:
    """A suite of tasks.

    Attributes:
        name: its name on the command line, in results and in the names of their files.
        title: its title in the report.
        load: loads the data. Raises InputError if data are missing or malformed, a task is unknown, or a library is
            missing.
        is_standard: whether all tasks of a report were measured on their published standard data.
        hub_task: the Hub's type of task for its numbers.
        scale_free: its numbers are from cosines, which do not change when embeddings are normalized.
        descriptive: it describes where embeddings lie and not how good they are. The report shows it last.
        has_data: its data come with the package.
        collection: its tasks must be named because nobody measures all of them. It downloads what `data` lacks.
    """

    name: str
    title: str
    load: Load
    is_standard: Callable[[Report], bool]
    hub_task: str
    scale_free: bool = False
    descriptive: bool = False
    collection: bool = False
    has_data: bool = False

    @property
    def usage(self) -> str:
        """How to request the suite on the command line."""
        return f"{self.name}:TASK,TASK" if self.collection else self.name


def _load_sts(data: str | Path | None, tasks: list[str] | None) -> tuple[Measure, str]:
    loaded = load_sts(_graded_pairs(data), tasks)
    return lambda subject: evaluate_sts(subject.encode, loaded), _identity(loaded)


def _load_transfer(data: str | Path | None, tasks: list[str] | None) -> tuple[Measure, str]:
    require_sklearn()
    loaded = load_transfer(_subfolder(data, "transfer"), tasks)
    rows = [(one.task.name, {stem: (f.labels, f.texts) for stem, f in one.files.items()}) for one in loaded]
    return lambda subject: evaluate_transfer(subject.encode, loaded), fingerprint(rows)


def _load_geometry(data: str | Path | None, tasks: list[str] | None) -> tuple[Measure, str]:
    if tasks is not None:
        raise InputError(
            "Suite geometry has no tasks to choose from; it measures STS-B dev, or your own file of pairs."
        )
    (pairs,) = load_sts(_graded_pairs(data), [GEOMETRY])
    check_pairs(pairs)
    return lambda subject: evaluate_geometry(subject.encode, pairs), _identity([pairs])


def _load_edits(data: str | Path | None, kinds: list[str] | None) -> tuple[Measure, str]:
    triples = load_edits(kinds)
    return lambda subject: evaluate_edits(subject.encode, triples), fingerprint(sorted(triples.items()))


def _load_mteb(data: str | Path | None, tasks: list[str] | None) -> tuple[Measure, str]:
    """The fingerprint covers only the tasks' names, because mteb manages its own data."""
    if tasks is None:
        raise InputError("Suite mteb needs the names of tasks: --suite mteb:STSBenchmark,Banking77Classification.")
    loaded = load_mteb(tasks, None if data is None else given_path(data) / "mteb")
    return lambda subject: evaluate_mteb(subject.model, loaded, **subject.arguments), fingerprint(sorted(tasks))


def _sized(sizes: dict[str, int]) -> Callable[[Report], bool]:
    """Whether the tasks of a report have their standard sizes."""

    def is_standard(report: Report) -> bool:
        own = any(task["group"] == "own" for task in report["tasks"])
        return not own and all(task["count"] >= NEARLY * sizes.get(task["name"], math.inf) for task in report["tasks"])

    return is_standard


def _transfer_sizes() -> dict[str, int]:
    sizes = {task.name: task.sizes["all" if "all" in task.sizes else "test"] for task in TRANSFER_TASKS}
    return sizes | {f"{name} F1": size for name, size in sizes.items()}


def _has_geometry_pairs(report: Report) -> bool:
    bands = (report.get("details") or {}).get("histograms", {}).get(GEOMETRY, {}).get("bands", {})
    (size,) = (task.standard_pairs for task in STS_TASKS if task.name == GEOMETRY)
    return sum(map(sum, bands.values())) >= NEARLY * size


SUITES = {
    suite.name: suite
    for suite in (
        Suite(
            name="sts",
            title="Semantic textual similarity",
            load=_load_sts,
            is_standard=_sized({task.name: task.standard_pairs for task in STS_TASKS}),
            hub_task="sentence-similarity",
            scale_free=True,
        ),
        Suite(
            name="transfer",
            title="Transfer",
            load=_load_transfer,
            is_standard=_sized(_transfer_sizes()),
            hub_task="transfer",
        ),
        Suite(
            name="geometry",
            title="Geometry",
            load=_load_geometry,
            is_standard=_has_geometry_pairs,
            hub_task="geometry",
            scale_free=True,
            descriptive=True,
        ),
        Suite(
            name="edits",
            title="Sensitivity to edits",
            load=_load_edits,
            is_standard=lambda report: True,
            hub_task="edits",
            scale_free=True,
            has_data=True,
        ),
        Suite(
            name="mteb",
            title="MTEB",
            load=_load_mteb,
            is_standard=lambda report: True,
            hub_task="mteb",
            collection=True,
        ),
    )
}
"""Suites in the order in which they are measured, printed, and shown on a card."""


@dataclass(frozen=True)
class LoadedSuite:
    """A suite whose data are loaded.

    Attributes:
        data: a fingerprint of the data.
        part: whether only some of its tasks were chosen.
    """

    name: str
    measure: Measure
    data: str
    part: bool = False


def load_suites(wanted: Sequence[str], data: str | Path | None) -> list[LoadedSuite]:
    """Load suites with their data, in the order of `SUITES`.

    Args:
        wanted: names of `SUITES`. "sts:TASK,...", "transfer:TASK,..." and "edits:KIND,..." choose some tasks; mteb
            always needs task names.
        data: a folder with a subfolder for each suite: `sts` (geometry reads it too), `transfer`, `mteb`. The
            subfolder of sts or transfer can also be given directly; sts and geometry also accept a file of graded
            pairs or "hub". None is enough for collections, which download their data, and for edits.

    Raises:
        InputError: a suite or task is unknown or repeated, data are missing or malformed, or a library is missing.
    """
    chosen: dict[str, list[str] | None] = {}
    for one in wanted:
        name, given, tasks = one.partition(":")
        if name not in SUITES:
            *first, last = (suite.usage for suite in SUITES.values())
            raise InputError(f"There is no suite {quoted(name)}; there are {', '.join(first)} and {last}.")
        if name in chosen:
            raise InputError(f"Suite {name} is given twice; name all its tasks in one: {name}:TASK,TASK.")
        chosen[name] = [task.strip() for task in tasks.split(",")] if given else None
    of_data = [name for name in chosen if not (SUITES[name].collection or SUITES[name].has_data)]
    if data is None and of_data:
        raise InputError(
            f"Suite {of_data[0]} needs --data: a folder with sts/ and transfer/, or the folder of that suite."
        )
    if data is not None and is_remote(data):
        data = copy_folder(str(data), cache_folder())
    loaded = []
    for name, suite in SUITES.items():
        if name in chosen:
            measure, identity = suite.load(data, chosen[name])
            part = chosen[name] is not None and not suite.collection
            loaded.append(LoadedSuite(name, measure, identity, part))
    return loaded


def _graded_pairs(data: str | Path | None) -> str | Path:
    """Location of the data of sts."""
    return HUB if str(data) == HUB else _subfolder(data, "sts")


def _identity(tasks: Sequence[TaskPairs]) -> str:
    return fingerprint([(task.name, task.pairs) for task in tasks])


def _subfolder(data: str | Path | None, name: str) -> Path:
    """The suite's own subfolder if there is one, otherwise the folder itself."""
    assert data is not None
    folder = given_path(data)
    return folder / name if (folder / name).is_dir() else folder
