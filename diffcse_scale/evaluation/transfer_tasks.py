"""The transfer tasks of SentEval: one table, read from a folder.

A folder holds, for each task, UTF-8 files of `label TAB sentence` lines (MRPC: `label TAB sentence TAB sentence`):

    MR/all.tsv  CR/all.tsv  SUBJ/all.tsv  MPQA/all.tsv      cross-validated
    SST2/train.tsv  SST2/dev.tsv  SST2/test.tsv
    TREC/train.tsv  TREC/test.tsv
    MRPC/train.tsv  MRPC/test.tsv
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffcse_scale.evaluation.graded_files import read_lines
from diffcse_scale.foundation.errors import InputError, quoted
from diffcse_scale.foundation.paths import given_path

HEADER = {"label", "sentence", "text", "class"}  # column names that never are labels

POSITIVE = "1"  # MRPC: the pairs that are paraphrases
SMALLEST_CLASS = 20  # rows per class, so that every nested fold has some


@dataclass(frozen=True)
class TransferTask:
    """A standard task: `sizes` are the standard numbers of rows of its files, `texts` the sentences per row."""

    name: str
    sizes: dict[str, int]
    texts: int = 1


TRANSFER_TASKS: tuple[TransferTask, ...] = (
    TransferTask("MR", {"all": 10662}),
    TransferTask("CR", {"all": 3775}),
    TransferTask("SUBJ", {"all": 10000}),
    TransferTask("MPQA", {"all": 10606}),
    TransferTask("SST2", {"train": 67349, "dev": 872, "test": 1821}),
    TransferTask("TREC", {"train": 5452, "test": 500}),
    TransferTask("MRPC", {"train": 4076, "test": 1725}, texts=2),
)


@dataclass(frozen=True)
class Labelled:
    """One file: `texts[i]` are the sentences of row i (one, or a pair), `labels[i]` is its class."""

    labels: list[str]
    texts: list[tuple[str, ...]]


@dataclass(frozen=True)
class TransferData:
    """A task and its files, by name without `.tsv`."""

    task: TransferTask
    files: dict[str, Labelled]


def load_transfer(folder: str | Path, names: Sequence[str] | None = None) -> list[TransferData]:
    r"""Load the transfer tasks of a folder in the form above.

    Args:
        folder: holds a subfolder for each task.
        names: tasks that must be there. None takes those that the folder holds.

    Returns:
        The tasks that were found, with their files.

    Raises:
        InputError: the folder does not exist, a task is unknown, a named task or every task is missing, or a row is
            malformed.

    Example:
        >>> from pathlib import Path
        >>> from diffcse_scale.evaluation import load_transfer
        >>> Path("data/MR").mkdir(parents=True)
        >>> _ = Path("data/MR/all.tsv").write_text("1\tA fine film.\n0\tA dull film.\n" * 20)
        >>> [(data.task.name, len(data.files["all"].labels)) for data in load_transfer("data")]
        [('MR', 40)]
    """
    folder = given_path(folder)
    known = {task.name: task for task in TRANSFER_TASKS}
    for name in names or ():
        if name not in known:
            raise InputError(f"There is no transfer task {quoted(name)}; there are {', '.join(known)}.")
    if not folder.is_dir():
        raise InputError(f"Transfer tasks are read from a folder, but {folder} is not one.")
    found = []
    for task in [known[name] for name in names] if names is not None else TRANSFER_TASKS:
        if names is not None or (folder / task.name).is_dir():
            found.append(TransferData(task, _files(folder / task.name, task)))
    if not found:
        expected = ", ".join(f"{task.name}/{stem}.tsv" for task in TRANSFER_TASKS for stem in task.sizes)
        raise InputError(f"{folder} holds none of the transfer tasks; expected are {expected}.")
    return found


def _files(folder: Path, task: TransferTask) -> dict[str, Labelled]:
    files = {stem: read_labelled(folder / f"{stem}.tsv", task.texts) for stem in task.sizes}
    for stem in {"all", "train"} & files.keys():
        classes = Counter(files[stem].labels).most_common()
        label, rows = classes[-1]
        if len(classes) < 2:
            raise InputError(
                f"{folder / stem}.tsv: all rows have the label {quoted(label)}; there is nothing to classify."
            )
        if rows < SMALLEST_CLASS and "dev" not in files:
            raise InputError(
                f"{folder / stem}.tsv has {rows} rows of the class {quoted(label)}; cross-validation in ten folds "
                f"needs {SMALLEST_CLASS} of each."
            )
        if task.texts == 2 and POSITIVE not in files[stem].labels:
            raise InputError(f"{folder / stem}.tsv has no pair with the label {POSITIVE}, that of paraphrases.")
    for stem in {"dev", "test"} & files.keys():
        if not set(files[stem].labels) & set(files["train"].labels):
            raise InputError(
                f"{folder / stem}.tsv has the label {quoted(files[stem].labels[0])} and others, but none that is in "
                "train.tsv; use the same labels in both files."
            )
    return files


def read_labelled(file: Path, texts: int) -> Labelled:
    """Read lines of a label and `texts` sentences with tabs between.

    Raises:
        InputError: the file cannot be read or is empty, or a row is malformed (the message names the line).
    """
    form = ["label", *["sentence"] * texts]
    rows = read_lines(file, form)
    if HEADER & {field.strip().lower() for field in rows[0]}:
        raise InputError(f"{file}, line 1 is a header and would be read as a row with its own class; remove it.")
    for number, (label, *sentences) in enumerate(rows, start=1):
        if not label.strip():
            raise InputError(f"{file}, line {number}: the label is empty.")
        if not all(sentence.strip() for sentence in sentences):
            raise InputError(f"{file}, line {number}: a sentence is empty.")
    return Labelled([row[0] for row in rows], [tuple(row[1:]) for row in rows])
