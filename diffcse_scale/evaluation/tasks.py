"""The semantic textual similarity tasks: one table, read from a folder or from the Hub.

A folder holds, for each task, files of `score TAB sentence TAB sentence` lines in UTF-8:

    STS12/*.tsv ... STS16/*.tsv         one file per subset
    STSB/dev.tsv  STSB/test.tsv
    SICK/trial.tsv  SICK/test.tsv
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from datasets.exceptions import DatasetsError

from diffcse_scale.evaluation.graded_files import graded_rows
from diffcse_scale.foundation.errors import InputError, one_line, quoted
from diffcse_scale.foundation.paths import given_path, refuse_stream
from diffcse_scale.text.cache import cache_folder
from diffcse_scale.text.hub_dataset import load_split
from diffcse_scale.text.remote import copy_folder, is_remote
from diffcse_scale.text.undecodable import undecodable

GradedPair = tuple[float, str, str]
"""Human similarity score, first sentence, second sentence."""

Split = Literal["dev", "test", "own"]
HUB = "hub"


@dataclass(frozen=True)
class HubSource:
    """Location of a task on the Hub; `columns` are score, first and second sentence."""

    dataset: str
    split: str
    columns: tuple[str, str, str] = ("score", "sentence1", "sentence2")
    revision: str | None = None


@dataclass(frozen=True)
class STSTask:
    """A standard task.

    `files` is a pattern below the data folder. The pairs of all files are concatenated and ranked together. This is
    the 'all' setting of the SimCSE and DiffCSE papers, not the mean over subsets.
    """

    name: str
    split: Split
    files: str
    standard_pairs: int
    hub: HubSource


@dataclass(frozen=True)
class TaskPairs:
    """The pairs of one task.

    Attributes:
        name: name of the task.
        split: "dev", "test" or "own".
        pairs: triples of a human score and two sentences.
        standard_pairs: number of pairs in the standard task; None for a user's own file.

    Example:
        >>> from diffcse_scale.evaluation import TaskPairs
        >>> TaskPairs("mine", "own", [(4.5, "A dog runs.", "A dog is running.")]).standard_pairs is None
        True
    """

    name: str
    split: Split
    pairs: list[GradedPair]
    standard_pairs: int | None = None


def _sick(split: str) -> HubSource:
    # mteb/sickr-sts is unsuitable: its "test" split holds all 9,927 pairs of SICK, including training and trial.
    # This copy lacks a few (it has 4,906 of 4,927 test pairs and 495 of 500 trial pairs); results have a remark.
    columns = ("relatedness_score", "sentence_A", "sentence_B")
    return HubSource("RobZamp/sick", split, columns, revision="refs/convert/parquet")


STS_TASKS: tuple[STSTask, ...] = (
    STSTask("STS-B dev", "dev", "STSB/dev.tsv", 1500, HubSource("mteb/stsbenchmark-sts", "validation")),
    STSTask("SICK-R trial", "dev", "SICK/trial.tsv", 500, _sick("validation")),
    STSTask("STS12", "test", "STS12/*.tsv", 3108, HubSource("mteb/sts12-sts", "test")),
    STSTask("STS13", "test", "STS13/*.tsv", 1500, HubSource("mteb/sts13-sts", "test")),
    STSTask("STS14", "test", "STS14/*.tsv", 3750, HubSource("mteb/sts14-sts", "test")),
    STSTask("STS15", "test", "STS15/*.tsv", 3000, HubSource("mteb/sts15-sts", "test")),
    STSTask("STS16", "test", "STS16/*.tsv", 1186, HubSource("mteb/sts16-sts", "test")),
    STSTask("STS-B test", "test", "STSB/test.tsv", 1379, HubSource("mteb/stsbenchmark-sts", "test")),
    STSTask("SICK-R test", "test", "SICK/test.tsv", 4927, _sick("test")),
)


def load_sts(source: str | Path, names: Sequence[str] | None = None) -> list[TaskPairs]:
    r"""Load tasks from a folder, from the Hub, or from a user's own file.

    Args:
        source: a folder in the form above, `"hub"`, or one file of graded pairs (`names` is then ignored). Folder
            and file may be remote.
        names: tasks that must be there, as named in `STS_TASKS`. None takes those that the folder holds.

    Returns:
        The tasks that were found, in the order of `STS_TASKS`.

    Raises:
        InputError: the folder does not exist, a named task or every task is missing, a row is malformed, or the Hub
            cannot be reached.

    Example:
        >>> from pathlib import Path
        >>> from diffcse_scale.evaluation import load_sts
        >>> Path("data/STSB").mkdir(parents=True)
        >>> _ = Path("data/STSB/dev.tsv").write_text("4.5\tA dog.\tOne dog.\n0\tIt rains.\tA cat sleeps.\n")
        >>> [(task.name, len(task.pairs)) for task in load_sts("data")]
        [('STS-B dev', 2)]
    """
    if str(source) == HUB:
        return [TaskPairs(task.name, task.split, _from_hub(task), task.standard_pairs) for task in _select(names)]
    path = copy_folder(str(source), cache_folder()) if is_remote(source) else given_path(source)
    if path.is_file():
        return [TaskPairs(path.stem, "own", read_pairs(path))]
    refuse_stream(path, f"Evaluation data {path}")
    if not path.is_dir():
        raise InputError(f"Evaluation data {path}: no such file or folder; give one, or 'hub' to download.")
    found = []
    for task in _select(names):
        files = sorted(path.glob(task.files))
        if files:
            pairs = [pair for file in files for pair in read_pairs(file)]
            found.append(TaskPairs(task.name, task.split, pairs, task.standard_pairs))
        elif names is not None:
            raise InputError(f"Evaluation data {path} has no {task.name}: {path / task.files} does not exist.")
    if not found:
        expected = ", ".join(task.files for task in STS_TASKS)
        raise InputError(f"Evaluation data {path} holds none of the tasks; expected are {expected}.")
    return found


def read_pairs(file: Path) -> list[GradedPair]:
    r"""Read graded pairs: `score TAB sentence TAB sentence` lines, or a table that `graded_rows` accepts.

    Args:
        file: the file of pairs.

    Returns:
        Triples of a human score and two sentences.

    Raises:
        InputError: as for `graded_rows`, or a row is malformed (the message names file and line).

    Example:
        >>> from pathlib import Path
        >>> from diffcse_scale.evaluation import read_pairs
        >>> _ = Path("pairs.tsv").write_text("4.5\tA dog runs.\tA dog is running.\n0\tIt rains.\tA cat sleeps.\n")
        >>> read_pairs(Path("pairs.tsv"))
        [(4.5, 'A dog runs.', 'A dog is running.'), (0.0, 'It rains.', 'A cat sleeps.')]
    """
    return [_pair(*row) for row in graded_rows(file)]


def pairs_from_rows(rows: Iterable[dict[str, Any]], source: HubSource) -> list[GradedPair]:
    """Convert a data set's rows to graded pairs.

    Raises:
        InputError: a column is missing, or a value is not a number or text (the message names data set and row).
    """
    score, first, second = source.columns
    pairs = []
    for number, row in enumerate(rows):
        where = f"{source.dataset} ({source.split}), row {number}"
        absent = [column for column in source.columns if column not in row]
        if absent:
            raise InputError(f"{where} has no column {quoted(absent[0])}, only {', '.join(row)}.")
        pairs.append(_pair(row[score], row[first], row[second], where))
    return pairs


def _select(names: Sequence[str] | None) -> list[STSTask]:
    if names is None:
        return list(STS_TASKS)
    known = {task.name: task for task in STS_TASKS}
    for name in names:
        if name not in known:
            raise InputError(f"There is no evaluation task {quoted(name)}; there are {', '.join(known)}.")
    return [known[name] for name in names]


def _from_hub(task: STSTask) -> list[GradedPair]:
    source = task.hub
    try:
        rows = load_split(source.dataset, source.split, revision=source.revision)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        reason = one_line(error)
        raise InputError(
            f"{task.name} ({source.dataset} on the Hub) could not be loaded: {reason[:200].rstrip('.')}; "
            "give a folder with the tasks instead if this machine has no network."
        ) from error
    return pairs_from_rows(rows, source)


def _pair(score: Any, first: Any, second: Any, where: str) -> GradedPair:
    try:
        number = math.nan if isinstance(score, str) and "_" in score else float(score)  # Python reads 1_000 as 1000
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{where}: the score {quoted(score)} is not a finite number.")
    if not all(isinstance(sentence, str) and sentence.strip() for sentence in (first, second)):
        raise InputError(f"{where}: a sentence is empty or not text.")
    if undecodable(first) or undecodable(second):
        raise InputError(f"{where} is not UTF-8, or holds a NUL or half of a surrogate pair; convert the file.")
    return number, first, second
