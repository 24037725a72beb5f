"""Any task of the Massive Text Embedding Benchmark, through the `mteb` package and its own scoring.

A task is read from a local copy of its data set, in any form that `datasets.load_dataset(folder)` reads. Without a
copy it is downloaded. To make a copy, run on a machine with network access

    hf download mteb/stsbenchmark-sts --repo-type dataset --local-dir data/mteb/STSBenchmark
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset, DatasetDict

from diffcse_scale.evaluation.scores import NOT_FINITE, Results, Score
from diffcse_scale.foundation.errors import InputError, one_line
from diffcse_scale.foundation.finite import NotFinite, check_rows

if TYPE_CHECKING:  # a training rank need not import it
    from sentence_transformers import SentenceTransformer


def load_mteb(names: Sequence[str], folder: Path | None = None) -> list[Any]:
    """Load tasks of `mteb` with their data.

    Args:
        names: mteb's names of the tasks, such as "STSBenchmark".
        folder: holds a local copy of each task in a subfolder with the task's name.

    Raises:
        InputError: mteb is not installed, does not know a task, or the data cannot be loaded.
    """
    try:
        import mteb
    except ImportError:
        raise InputError("The suite mteb needs the package mteb: pip install 'diffcse-scale[eval]'.") from None
    tasks = []
    for name in names:
        try:
            task = mteb.get_task(name)
        except KeyError as error:
            raise InputError(f"mteb has no such task: {str(error.args[0]).removeprefix('KeyError: ')}") from None
        copy = folder / name if folder is not None else None
        if copy is not None and copy.is_dir():
            local = {**task.metadata.dataset, "path": str(copy)}
            task.metadata = task.metadata.model_copy(update={"dataset": local})
        _load(task, copy)
        tasks.append(task)
    return tasks


def evaluate_mteb(model: SentenceTransformer, tasks: Sequence[Any], **encode: Any) -> Results:
    """Compute each task's main score with mteb, x 100. Nothing is written to mteb's cache.

    Args:
        encode: arguments of `model.encode`: batch_size, device, pool.
    """
    import mteb

    found, quiet = [], {"cache": None, "co2_tracker": False, "show_progress_bar": False}
    with _looked_at(model):
        for task in tasks:
            value, remark = math.nan, NOT_FINITE
            with suppress(NotFinite):
                (result,) = mteb.evaluate(model, [task], encode_kwargs=encode, **quiet).task_results
                value, remark = 100 * float(result.get_score()), ""
            measure = f"{task.metadata.main_score} x 100"
            found.append(Score(task.metadata.name, task.metadata.type, measure, value, _items(task), remark))
    return Results("mteb", tuple(found), details={"mteb": metadata.version("mteb")})


@contextmanager
def _looked_at(model: SentenceTransformer) -> Iterator[None]:
    """Inside, non-finite embeddings raise an error, because mteb would score them or fail in one of many ways."""
    import torch  # takes seconds, so it is imported after the task names have been checked

    plain = model.encode

    def encode(*arguments: Any, **options: Any) -> Any:
        rows = plain(*arguments, **options)
        check_rows(torch.as_tensor(rows).float().cpu().numpy(), "of mteb's texts", "choose another model")
        return rows

    model.encode = encode
    try:
        yield
    finally:
        del model.encode


def _load(task: Any, copy: Path | None) -> None:
    try:
        task.load_data()
    except Exception as error:  # data sets fail in many ways: the Hub, files, scripts
        reason = one_line(error, 200).rstrip(".")
        place = copy if copy is not None else f"DATA/mteb/{task.metadata.name}"
        raise InputError(
            f"The data of {task.metadata.name} cannot be loaded: {reason}; without a network, put a copy into {place}."
        ) from error


def _items(task: Any) -> int:
    """Number of rows (for retrieval: queries) in the evaluated splits, over all languages."""
    subsets = [task.dataset] if isinstance(task.dataset, DatasetDict) else task.dataset.values()
    parts = [subset[split] for subset in subsets for split in task.eval_splits]
    return sum(len(part if isinstance(part, Dataset) else part["queries"]) for part in parts)
