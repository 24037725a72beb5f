"""Transfer to classification by SentEval's protocol: logistic regression on frozen embeddings, accuracy x 100.

The protocol follows SentEval (Conneau & Kiela 2018, arXiv 1803.05449) with scikit-learn (`usepytorch=False`), ten
folds, seed 1111, and rows sorted by length and label:

- MR, CR, SUBJ, MPQA: ten folds for testing; C is chosen for each from 2^-2 ... 2^3 by ten folds of the other nine.
- SST2: C is chosen from 2^-2 ... 2^3 on the development set.
- TREC, MRPC: C is chosen from 2^-1 ... 2^5 by ten folds of the training set. The features of a pair (u, v) are |u - v|
  and u * v.

The tables of SimCSE and DiffCSE come from SentEval's other classifier (`usepytorch=True`: the same linear model,
trained by Adam on minibatches and stopped early). Differences from them within the intervals mean nothing.

Two things differ from SentEval. First, every fit converges, while SentEval's fits stop at scikit-learn's default
tolerance; the fits of one fold go from small to large C, each starting from the previous solution. Second, the
accuracy of cross-validated tasks is over all rows together and not the mean of the folds' rounded accuracies; the two
agree within 0.01.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffcse_scale.evaluation import scores
from diffcse_scale.evaluation.bootstrap import f1, share
from diffcse_scale.evaluation.scores import Results, Score
from diffcse_scale.evaluation.sentence_encoder import Encode, Once
from diffcse_scale.evaluation.transfer_tasks import POSITIVE, TRANSFER_TASKS, Labelled, TransferData
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.finite import rows_not_finite

ACCURACY, F1 = "accuracy x 100", "F1 x 100"
MEAN = "mean of the seven tasks"

FOLDS = 10
SEED = 1111
SPLIT_GRID = [2.0**t for t in range(-2, 4)]
TRAIN_GRID = [2.0**t for t in range(-1, 6)]
# Truncated Newton with a tenth of scikit-learn's tolerance brings coefficients within 0.2% of their limits. With its
# default solver and tolerance some of them are a sixth away.
FIT = {"solver": "newton-cg", "tol": 1e-5, "max_iter": 1000}

Features = NDArray[np.float32]
Labels = NDArray[np.str_]


def evaluate_transfer(encode: Encode, tasks: Sequence[TransferData]) -> Results:
    r"""Measure an encoder on transfer tasks. Each distinct sentence of a task is encoded once.

    The mean is over the accuracies of all seven tasks and exists only if all seven were measured. `details` has the C
    that was chosen for each task, or for each of its folds.

    Source: SentEval (Conneau and Kiela, 2018, arXiv 1803.05449). The docstring of this module lists the differences.

    Args:
        encode: a function from n sentences to embeddings [n, hidden].
        tasks: the tasks from `load_transfer`.

    Returns:
        The accuracies x 100, and for MRPC also F1.

    Example:
        >>> from pathlib import Path
        >>> import numpy as np
        >>> def encode(sentences):  # any function from sentences to rows
        ...     return np.array([[len(text), text.count("e"), 1.0] for text in sentences])
        >>> from diffcse_scale.evaluation import evaluate_transfer, load_transfer
        >>> Path("data/MR").mkdir(parents=True)
        >>> lines = [f"1\tFilm {n}." if n % 2 else f"0\tTedious, endless film {n}." for n in range(40)]
        >>> _ = Path("data/MR/all.tsv").write_text("\n".join(lines))
        >>> evaluate_transfer(encode, load_transfer("data"))["MR"].value
        100.0
    """
    import sklearn

    measured: list[Score] = []
    chosen: dict[str, list[float]] = {}
    for data in tasks:
        of_task, chosen[data.task.name] = _evaluate(Once(encode), data)
        measured += of_task
    accuracies = [score for score in measured if score.measure == ACCURACY]
    return Results(
        suite="transfer",
        scores=tuple(measured),
        means=(scores.mean_score(MEAN, accuracies),) if len(accuracies) == len(TRANSFER_TASKS) else (),
        missing=tuple(task.name for task in TRANSFER_TASKS if task.name not in chosen),
        details={"C": chosen, "scikit-learn": sklearn.__version__},
    )


def require_sklearn() -> None:
    """Raise InputError if scikit-learn is not installed."""
    if importlib.util.find_spec("sklearn") is None:
        raise InputError("The transfer tasks need scikit-learn: pip install 'diffcse-scale[eval]'.")


def _evaluate(encode: Encode, data: TransferData) -> tuple[list[Score], list[float]]:
    """The scores of a task (accuracy, and F1 for pairs) and the chosen C, for each fold if there are folds."""
    name, group = data.task.name, "cross-validated" if "all" in data.files else "test"
    files = {stem: _sorted(file) for stem, file in data.files.items()}
    encode([text for file in files.values() for texts in file.texts for text in texts])
    features = {stem: _features(encode, file) for stem, file in files.items()}
    gold = np.array(files["all" if "all" in files else "test"].labels)
    remark = _size_remark(data)
    measures = [(name, ACCURACY), *([(f"{name} F1", F1)] if data.task.texts == 2 else [])]
    if any(len(rows_not_finite(of_file)) for of_file in features.values()):
        remark = "; ".join(filter(None, (remark, scores.NOT_FINITE)))
        return [Score(title, group, measure, math.nan, len(gold), remark) for title, measure in measures], []

    predicted, chosen = _predict(features, {stem: np.array(file.labels) for stem, file in files.items()})
    right, positive = predicted == gold, (gold == POSITIVE, predicted == POSITIVE)
    found = []
    for title, measure in measures:
        statistic = share(right) if measure == ACCURACY else f1(*positive)
        value = float(statistic(np.ones((1, len(gold)), dtype=np.int64))[0])
        found.append(scores.score(title, group, measure, len(gold), value, statistic, remark))
    return found, chosen


def _predict(features: dict[str, Features], labels: dict[str, Labels]) -> tuple[Labels, list[float]]:
    """Labels predicted for the test rows, and the chosen C, for each fold if there are folds."""
    from sklearn.model_selection import StratifiedKFold

    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=SEED)
    if "all" in features:
        x, y = features["all"], labels["all"]
        predicted, chosen = np.empty_like(y), []
        for train, test in folds.split(x, y):
            chosen.append(_choose(x[train], y[train], SPLIT_GRID, folds))
            predicted[test] = _fit(x[train], y[train], chosen[-1]).predict(x[test])
        return predicted, chosen
    x, y = features["train"], labels["train"]
    if "dev" in features:
        rows = np.arange(len(x) + len(features["dev"]))
        both = np.concatenate([x, features["dev"]]), np.concatenate([y, labels["dev"]])
        best = _choose(*both, SPLIT_GRID, cv=[(rows[: len(x)], rows[len(x) :])])
    else:
        best = _choose(x, y, TRAIN_GRID, folds)
    return _fit(x, y, best).predict(features["test"]), [best]


def _choose(x: Features, y: Labels, grid: list[float], cv: Any) -> float:
    """The C of `grid` with the best accuracy on the held-out rows of `cv`, rounded to 0.01 points; ties: the first."""
    from sklearn.linear_model import LogisticRegressionCV

    search = LogisticRegressionCV(
        Cs=grid, cv=cv, refit=False, scoring="accuracy", l1_ratios=(0.0,), use_legacy_attributes=False, **FIT
    ).fit(x, y)
    accuracies = 100 * search.scores_.mean(axis=0).ravel()
    return grid[int(np.argmax(np.round(accuracies, 2)))]


def _fit(x: Features, y: Labels, c: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=c, **FIT).fit(x, y)


def _sorted(file: Labelled) -> Labelled:
    """The rows in SentEval's order: by number of words, then by label. The folds depend on this order."""
    lengths = [[len(text.split()) for text in texts] for texts in file.texts]
    order = sorted(range(len(file.labels)), key=lambda row: (lengths[row], file.labels[row]))
    return Labelled([file.labels[row] for row in order], [file.texts[row] for row in order])


def _features(encode: Encode, file: Labelled) -> Features:
    """Embeddings [rows, hidden] of sentences; for pairs (u, v) [rows, 2 x hidden]: |u - v| and u * v."""
    columns = [encode(list(texts)).astype(np.float32) for texts in zip(*file.texts, strict=True)]
    if len(columns) == 1:
        return columns[0]
    first, second = columns
    return np.concatenate([np.abs(first - second), first * second], axis=1)


def _size_remark(data: TransferData) -> str:
    remarks = (
        scores.size_remark(len(data.files[stem].labels), size, "rows" if stem == "all" else f"{stem} rows")
        for stem, size in data.task.sizes.items()
    )
    return "; ".join(filter(None, remarks))
