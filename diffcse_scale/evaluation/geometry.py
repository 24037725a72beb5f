"""Geometry of embeddings on the unit sphere: alignment, uniformity, anisotropy, similarities by gold score.

Alignment and uniformity: Wang & Isola 2020 (arXiv 2005.10242, equations 2 and 3 with alpha = 2, t = 2), over graded
pairs as SimCSE measures them (arXiv 2104.08821, section 2.3). A pair with a score of 4 or more of 5 is positive.
Anisotropy: the mean cosine of two different sentences (Ethayarajh 2019, arXiv 1909.00512, section 4.1), and the share
of variance along the first principal component (same section: maximum explainable variance).

Everything is computed in float64 and exactly, over all pairs of distinct sentences.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffcse_scale.evaluation import scores
from diffcse_scale.evaluation.bootstrap import Floats, Statistic
from diffcse_scale.evaluation.scores import Results, Score
from diffcse_scale.evaluation.sentence_encoder import Encode, Once
from diffcse_scale.evaluation.sts import similarities
from diffcse_scale.evaluation.tasks import TaskPairs
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.finite import rows_not_finite

POSITIVE = 4.0
BANDS = ("0-1", "1-2", "2-3", "3-4", "4-5")  # ranges of gold scores; 5 belongs to the last
EDGES = np.linspace(-1, 1, 41)
BLOCK = 1024  # rows and columns of the matrix of all pairs that are in memory at once
COLLAPSED = 1e-12  # variance per component that float32 embeddings have from rounding alone
MEASURES = {
    "alignment": "mean squared distance of positive pairs",
    "uniformity": "log of the mean of exp(-2 squared distance)",
    "mean cosine": "of two different sentences",
    "first component": "share of the variance x 100",
}


def check_pairs(task: TaskPairs) -> None:
    """Raise InputError unless sentences differ, scores lie between 0 and 5, and a pair has at least `POSITIVE`."""
    gold = [pair[0] for pair in task.pairs]
    if len({sentence for pair in task.pairs for sentence in pair[1:]}) < 2:
        raise InputError(
            f"{task.name}: all sentences are equal, but geometry measures distances between different sentences."
        )
    if min(gold) < 0 or max(gold) > 5:
        raise InputError(
            f"{task.name}: geometry needs scores from 0 to 5, but these range from {min(gold)} to {max(gold)}."
        )
    if max(gold) < POSITIVE:
        raise InputError(
            f"{task.name}: no pair has a score of {POSITIVE:g} or more, so there is no alignment to measure."
        )


def evaluate_geometry(encode: Encode, task: TaskPairs) -> Results:
    """Measure the geometry of an encoder's embeddings on graded pairs (scores 0 to 5; see `check_pairs`).

    `details` has a histogram of cosines for each band of gold scores: `edges` [41], and counts [40] per band.

    Source: alignment and uniformity are from Wang and Isola, 2020 (arXiv 2005.10242).

    Args:
        encode: a function from n sentences to embeddings [n, hidden].
        task: graded pairs.

    Returns:
        The measures as scores, and the histograms in `details`.

    Example:
        >>> import numpy as np
        >>> def encode(sentences):  # any function from sentences to rows
        ...     return np.array([[len(text), text.count("e"), 1.0] for text in sentences])
        >>> from diffcse_scale.evaluation import TaskPairs, evaluate_geometry
        >>> pairs = [(4.5, "A tree.", "The trees."), (1.0, "A tree.", "Rain."), (2.0, "Rain.", "Snow fell.")]
        >>> results = evaluate_geometry(encode, TaskPairs("mine", "own", pairs))
        >>> [score.name for score in results.scores]
        ['alignment', 'uniformity', 'mean cosine', 'first component']
    """
    encode = Once(encode)
    sentences = list(dict.fromkeys(sentence for pair in task.pairs for sentence in pair[1:]))
    points = on_sphere(encode(sentences))
    gold, cosines = similarities(encode, task.pairs)
    counts = {name: len(points) for name in MEASURES} | {"alignment": int(np.sum(gold >= POSITIVE))}
    if len(rows_not_finite(points)):
        undefined = [
            Score(name, task.name, MEASURES[name], math.nan, counts[name], scores.NOT_FINITE) for name in MEASURES
        ]
        return Results("geometry", tuple(undefined))
    statistics = {
        "alignment": _mean(2 - 2 * cosines[gold >= POSITIVE]),  # the squared distance of points on the sphere
        "uniformity": _log_of_mean(uniformity_kernel(points)),
        "mean cosine": _mean_cosine(points),
    }
    found = []
    for name, statistic in statistics.items():
        value = float(statistic(np.ones((1, counts[name]), dtype=np.int64))[0])
        found.append(scores.score(name, task.name, MEASURES[name], counts[name], value, statistic))
    share = 100 * first_component_share(points)
    remark = "undefined: all embeddings are equal (collapsed)" if math.isnan(share) else ""
    found.append(Score("first component", task.name, MEASURES["first component"], share, len(points), remark))
    return Results("geometry", tuple(found), details={"histograms": {task.name: histogram(gold, cosines)}})


def on_sphere(embeddings: np.ndarray) -> Floats:
    """Rows [n, hidden] normalized to length 1, in float64. A row of zeros stays zero."""
    points = embeddings.astype(np.float64)
    norms = np.linalg.norm(points, axis=1, keepdims=True)
    return np.divide(points, norms, out=np.zeros_like(points), where=norms != 0)


def uniformity_kernel(points: Floats) -> Floats:
    """For each row x the mean of exp(-2 |x - y|^2) over all other rows y, [n]. Memory: `BLOCK` x `BLOCK` numbers."""
    squares = np.einsum("nh,nh->n", points, points)
    sums = np.full(len(points), -1.0)  # cancels the pair of a row with itself
    blocks = [slice(start, start + BLOCK) for start in range(0, len(points), BLOCK)]
    for rows, others in itertools.product(blocks, blocks):
        kernel = np.exp(4 * (points[rows] @ points[others].T) - 2 * (squares[rows, None] + squares[others]))
        sums[rows] += kernel.sum(axis=1)
    return sums / (len(points) - 1)


def first_component_share(points: Floats) -> float:
    """The first principal component's share of the variance of points [n, hidden]; NaN if there is no variance."""
    variances = np.linalg.eigvalsh(np.cov(points, rowvar=False))
    total = variances.sum()
    return float(variances[-1] / total) if total > len(variances) * COLLAPSED else math.nan


def histogram(gold: Floats, cosines: Floats) -> dict[str, Any]:
    """Number of pairs whose cosine lies between two `edges` [41], for each band of gold scores: "0-1" ... "4-5"."""
    band = np.minimum(gold.astype(int), len(BANDS) - 1)
    counts = {
        name: np.histogram(np.clip(cosines[band == index], -1, 1), EDGES)[0].tolist()
        for index, name in enumerate(BANDS)
    }
    return {"edges": EDGES.tolist(), "bands": counts}


def _mean(values: Floats) -> Statistic:
    return lambda drawn: (drawn @ values) / drawn.sum(axis=1)


def _log_of_mean(means: Floats) -> Statistic:
    """The log of the mean over all pairs of n items, from each item's mean over its pairs [n].

    It is exact if every item is drawn once. On other draws it is the first-order expansion (Hajek's projection) of
    the mean over the drawn pairs, in which each item counts in the first and in the second place.
    """
    middle = means.mean()
    return lambda drawn: np.log(np.maximum(2 * (drawn @ means) / len(means) - middle, np.finfo(np.float64).tiny))


def _mean_cosine(points: Floats) -> Statistic:
    """The mean cosine over all pairs of different items, computed from the length of the sum of all points."""
    squares = np.einsum("nh,nh->n", points, points)

    def statistic(drawn: NDArray[np.int64]) -> Floats:
        sums, twice = drawn @ points, drawn.astype(np.float64) ** 2
        pairs = drawn.sum(axis=1) ** 2.0 - twice.sum(axis=1)
        within: Floats = np.einsum("dh,dh->d", sums, sums) - twice @ squares
        return np.divide(within, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)

    return statistic
