"""The results of every suite: scores with intervals, means over them, and differences between models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diffcse_scale.evaluation.bootstrap import Floats, Statistic, holm, interval, p_value, resample

NOT_FINITE = "undefined: the embeddings contain NaN or infinity"


@dataclass(frozen=True)
class Score:
    """The result of one task.

    Attributes:
        name: name of the task.
        group: tasks of one group are shown together: dev, test, own ...
        measure: what `value` measures, with its unit: "Spearman x 100".
        value: the score. NaN if it is undefined; then `remark` says why.
        count: number of scored items (pairs, sentences).
        remark: a note on the value; may be empty.
        resampled: the value on each bootstrap draw, [RESAMPLES]. None if there are no items to draw from.

    Example:
        >>> import numpy as np
        >>> from diffcse_scale.evaluation import Score
        >>> score = Score("mine", "own", "Spearman x 100", 75.0, count=100, resampled=np.linspace(70.0, 80.0, 1001))
        >>> score.interval
        (70.25, 79.75)
    """

    name: str
    group: str
    measure: str
    value: float
    count: int
    remark: str = ""
    resampled: Floats | None = field(default=None, compare=False, repr=False)

    @property
    def interval(self) -> tuple[float, float] | None:
        """95% bootstrap interval; None if the value is undefined or cannot be resampled."""
        return None if self.resampled is None or math.isnan(self.value) else interval(self.resampled)


@dataclass(frozen=True)
class Results:
    """The scores of the tasks of a suite that were measured.

    Attributes:
        suite: name of the suite, as given to `evaluate --suite`.
        scores: one score per task.
        means: means over comparable scores; dev and test sets are never averaged together.
        missing: standard tasks that were not measured.
        details: further JSON-serialisable results that are not single numbers.

    Example:
        >>> from diffcse_scale.evaluation import Results, Score
        >>> results = Results("sts", (Score("mine", "own", "Spearman x 100", 75.0, count=100),))
        >>> results["mine"].value
        75.0
    """

    suite: str
    scores: tuple[Score, ...]
    means: tuple[Score, ...] = ()
    missing: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Score:
        """The score or mean called `name`; KeyError if it was not measured."""
        for score in (*self.scores, *self.means):
            if score.name == name:
                return score
        raise KeyError(name)


@dataclass(frozen=True)
class Difference:
    """One model's score minus another's, on the same items.

    Attributes:
        p: two-sided bootstrap p-value of "no difference".
        corrected: for a task, `p` corrected for the number of tasks (Holm); None for a mean.
    """

    name: str
    value: float
    interval: tuple[float, float] | None
    p: float
    corrected: float | None = None


def score(
    name: str, group: str, measure: str, count: int, value: float, statistic: Statistic, remark: str = ""
) -> Score:
    """A score with its values on the bootstrap draws."""
    return Score(name, group, measure, value, count, remark, resample(name, count, statistic))


def size_remark(count: int, standard: int | None, items: str) -> str:
    """A remark if a task does not have its standard size; empty if it has, or if there is no standard size."""
    if standard in (None, count):
        return ""
    return f"{count:,} {items}, the standard set has {standard:,}: not comparable"


def mean_score(name: str, scores: Sequence[Score]) -> Score:
    """The mean of scores of one measure, on the data and on each draw. Undefined if one of the scores is."""
    resampled = [score.resampled for score in scores if score.resampled is not None]
    return Score(
        name,
        scores[0].group,
        scores[0].measure,
        float(np.mean([score.value for score in scores])),
        sum(score.count for score in scores),
        resampled=np.mean(resampled, axis=0) if len(resampled) == len(scores) else None,
    )


def differences(results: Results, baseline: Results) -> list[Difference]:
    """`results` minus `baseline`, for every score and mean that can be resampled in both."""
    found = []
    for score in (*results.scores, *results.means):
        other = next((o for o in (*baseline.scores, *baseline.means) if o.name == score.name), None)
        if other is None or score.interval is None or other.interval is None:
            continue
        assert score.resampled is not None and other.resampled is not None
        drawn = score.resampled - other.resampled
        found.append(Difference(score.name, score.value - other.value, interval(drawn), p_value(drawn)))
    tasks = {score.name for score in results.scores}
    corrected = iter(holm([difference.p for difference in found if difference.name in tasks]))
    return [Difference(d.name, d.value, d.interval, d.p, next(corrected) if d.name in tasks else None) for d in found]
