"""Bootstrap intervals of scores over the items, and the paired test between two models.

Every score is recomputed on `RESAMPLES` draws of a task's items, with replacement. The draws depend only on the task's
name and size, so they are the same for every model. The difference of two models on one draw is therefore paired.
Tasks are drawn independently of each other, so the mean over tasks can be computed on each draw too.
(`scipy.stats.bootstrap` handles one score at a time and makes new draws for each.)

Percentile intervals and bootstrap hypothesis tests: Efron & Tibshirani, An Introduction to the Bootstrap (1993),
chapters 13 and 16.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
SEED = 1111
PERCENTILES = (2.5, 97.5)
ALIVE = 2**22  # weights in memory at once

Floats = NDArray[np.float64]
Statistic = Callable[[NDArray[np.int64]], Floats]
"""Maps how often each item was drawn, [draws, items], to the score on each draw, [draws]; NaN where undefined."""


def resample(name: str, items: int, statistic: Statistic) -> Floats:
    """A statistic on the draws of the task `name`, [RESAMPLES]."""
    generator = np.random.default_rng([SEED, zlib.crc32(name.encode())])
    values = []
    step = max(1, ALIVE // items)
    for start in range(0, RESAMPLES, step):
        draws = min(step, RESAMPLES - start)
        drawn = generator.integers(items, size=(draws, items)) + items * np.arange(draws)[:, None]
        values.append(statistic(np.bincount(drawn.ravel(), minlength=draws * items).reshape(draws, items)))
    return np.concatenate(values)


def interval(resampled: Floats) -> tuple[float, float] | None:
    """95% percentile interval, without draws whose score is undefined. None if it is undefined on all draws."""
    defined = resampled[np.isfinite(resampled)]
    if not len(defined):
        return None
    low, high = np.percentile(defined, PERCENTILES)
    return float(low), float(high)


def p_value(differences: Floats) -> float:
    """Two-sided p of "no difference" from paired differences on the draws; at least 2 / (RESAMPLES + 1)."""
    defined = differences[np.isfinite(differences)]
    tail = min(np.sum(defined <= 0), np.sum(defined >= 0))
    return float(min(1.0, 2 * (1 + tail) / (1 + len(defined))))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number by Holm's step-down procedure (Scandinavian Journal of Statistics, 1979)."""
    order = np.argsort(p_values, kind="stable")
    scaled = np.asarray(p_values)[order] * np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(scaled))
    return [float(p) for p in corrected]


def share(right: NDArray[np.bool_]) -> Statistic:
    """The share of drawn items for which `right` [items] is true, x 100."""
    return lambda drawn: 100 * (drawn @ right.astype(np.float64)) / drawn.sum(axis=1)


def f1(gold: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> Statistic:
    """F1 of the true class, x 100, from labels [items]."""
    hits, marked = (gold & predicted).astype(np.float64), gold.astype(np.float64) + predicted

    def statistic(drawn: NDArray[np.int64]) -> Floats:
        return _ratio(200 * (drawn @ hits), drawn @ marked)

    return statistic


def rank_correlation(first: NDArray[np.floating], second: NDArray[np.floating]) -> Statistic:
    """Spearman's correlation x 100 of two variables [items]. In every draw equal values share their mean rank."""
    rank_first, rank_second = _ranks(first), _ranks(second)

    def statistic(drawn: NDArray[np.int64]) -> Floats:
        middle = (drawn.shape[1] + 1) / 2
        x, y = rank_first(drawn) - middle, rank_second(drawn) - middle
        weighted = drawn * x
        covariance = np.einsum("dn,dn->d", weighted, y)
        variances = np.einsum("dn,dn->d", weighted, x) * np.einsum("dn,dn->d", drawn * y, y)
        return _ratio(100 * covariance, np.sqrt(variances))

    return statistic


def _ranks(values: NDArray[np.floating]) -> Callable[[NDArray[np.int64]], Floats]:
    """Mean ranks [draws, items] from multiplicities. The values are sorted once, so no draw needs sorting."""
    order = np.argsort(values, kind="stable")
    _, starts, group = np.unique(values[order], return_index=True, return_inverse=True)
    back = np.empty(len(values), dtype=np.intp)
    back[order] = group

    def ranks(drawn: NDArray[np.int64]) -> Floats:
        counts = np.add.reduceat(drawn[:, order], starts, axis=1)
        below = np.cumsum(counts, axis=1) - counts
        mean: Floats = (below + (counts + 1) / 2)[:, back]
        return mean

    return ranks


def _ratio(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)
