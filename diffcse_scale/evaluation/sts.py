"""Semantic textual similarity: Spearman's rank correlation (x 100) of cosine similarity and human score."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from diffcse_scale.evaluation import scores
from diffcse_scale.evaluation.bootstrap import rank_correlation
from diffcse_scale.evaluation.scores import Results, Score
from diffcse_scale.evaluation.sentence_encoder import Encode, Once
from diffcse_scale.evaluation.tasks import STS_TASKS, GradedPair, TaskPairs
from diffcse_scale.foundation.finite import rows_not_finite

MEASURE = "Spearman x 100"
MEAN = "mean of the seven test sets"

# Cosines of float32 vectors have errors of about 1e-7. With a smaller spread than this, only noise would be ranked.
RESOLUTION = 1e-6

BLOCK = 4096  # pairs


def evaluate_sts(encode: Encode, tasks: Sequence[TaskPairs]) -> Results:
    """Measure an encoder on tasks. Each distinct sentence is encoded once over all tasks.

    The mean is over STS12-16, STS-B test and SICK-R test. It exists only if all seven were measured.

    Source: the 'all' setting of SimCSE (arXiv 2104.08821, appendix B) and DiffCSE (arXiv 2204.10298): Spearman's
    correlation over all pairs of a task together.

    Args:
        encode: a function from n sentences to embeddings [n, hidden].
        tasks: tasks from `load_sts`, or your own.

    Returns:
        A score with an interval for each task.

    Example:
        >>> import numpy as np
        >>> def encode(sentences):  # any function from sentences to rows
        ...     return np.array([[len(text), text.count("e"), 1.0] for text in sentences])
        >>> from diffcse_scale.evaluation import TaskPairs, evaluate_sts
        >>> pairs = [(5.0, "A tree.", "A tree."), (4.0, "A tree.", "A tree!?"), (0.0, "Rain.", "Everywhere.")]
        >>> results = evaluate_sts(encode, [TaskPairs("mine", "own", pairs)])
        >>> round(results["mine"].value, 6)
        100.0
    """
    encode = Once(encode)
    encode.remember([sentence for task in tasks for pair in task.pairs for sentence in pair[1:]])
    measured = {task.name: _task_score(encode, task) for task in tasks}
    seven = [measured.get(task.name) for task in STS_TASKS if task.split == "test"]
    complete = [score for score in seven if score is not None]
    return Results(
        suite="sts",
        scores=tuple(measured.values()),
        means=(scores.mean_score(MEAN, complete),) if len(complete) == len(seven) else (),
        missing=tuple(
            task.name for task in STS_TASKS if task.name not in measured and any(t.split != "own" for t in tasks)
        ),
    )


def spearman(encode: Encode, pairs: Sequence[GradedPair]) -> float:
    """Spearman x 100 on graded pairs. NaN if it is undefined (all similarities or all scores are equal).

    Args:
        encode: a function from n sentences to embeddings [n, hidden].
        pairs: triples of a human score and two sentences.

    Returns:
        A value from -100 to 100.

    Example:
        >>> import numpy as np
        >>> def encode(sentences):  # any function from sentences to rows
        ...     return np.array([[len(text), text.count("e"), 1.0] for text in sentences])
        >>> from diffcse_scale.evaluation import spearman
        >>> pairs = [(0.0, "A tree.", "A tree."), (1.0, "A tree.", "A tree!?"), (2.0, "Rain.", "Everywhere.")]
        >>> round(spearman(encode, pairs), 6)  # the pair that is most alike has the lowest score
        -100.0
    """
    human, similarity = similarities(Once(encode), pairs)
    return math.nan if _undefined(human, similarity) else _spearman(human, similarity)


def similarities(encode: Once, pairs: Sequence[GradedPair]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Human scores and cosines of graded pairs, both [pairs]. Vectors are copied in blocks of `BLOCK` pairs."""
    encode.remember([sentence for pair in pairs for sentence in pair[1:]])
    cosines = []
    for start in range(0, len(pairs), BLOCK):
        vectors = encode([sentence for pair in pairs[start : start + BLOCK] for sentence in pair[1:]])
        cosines.append(cosine(vectors[::2], vectors[1::2]))
    return np.array([pair[0] for pair in pairs], dtype=np.float64), np.concatenate(cosines)


def cosine(first: np.ndarray, second: np.ndarray) -> NDArray[np.float64]:
    """Cosine of the rows of two [n, hidden] arrays, [n], in float64; 0 where a row is zero."""
    first, second = first.astype(np.float64), second.astype(np.float64)
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    products: NDArray[np.float64] = np.einsum("nh,nh->n", first, second)
    return np.divide(products, norms, out=np.zeros_like(products), where=norms != 0)


def _task_score(encode: Once, task: TaskPairs) -> Score:
    remark = scores.size_remark(len(task.pairs), task.standard_pairs, "pairs")
    human, similarity = similarities(encode, task.pairs)
    if undefined := _undefined(human, similarity):
        remark = "; ".join(filter(None, (remark, undefined)))
        return Score(task.name, task.split, MEASURE, math.nan, len(human), remark)
    value, statistic = _spearman(human, similarity), rank_correlation(human, similarity)
    return scores.score(task.name, task.split, MEASURE, len(human), value, statistic, remark)


def _spearman(human: NDArray[np.float64], similarity: NDArray[np.float64]) -> float:
    return 100 * float(spearmanr(human, similarity).statistic)


def _undefined(human: NDArray[np.float64], similarity: NDArray[np.float64]) -> str:
    """Why there is no correlation; empty if there is one."""
    if len(rows_not_finite(similarity[:, None])):
        return scores.NOT_FINITE
    if np.ptp(human) == 0:
        return "undefined: all human scores are equal"
    if np.ptp(similarity) < RESOLUTION:
        return "undefined: all similarities are equal, the embeddings have collapsed"
    return ""
