"""Means and differences of scores."""

from __future__ import annotations

import math

import numpy as np
import pytest

from diffcse_scale.evaluation.bootstrap import share
from diffcse_scale.evaluation.scores import Results, Score, differences, mean_score, score

GENERATOR = np.random.default_rng(0)


def accuracy(name: str, right: np.ndarray) -> Score:
    return score(name, "test", "accuracy x 100", len(right), 100 * float(right.mean()), share(right))


def test_a_mean_is_surer_than_the_tasks_it_is_of() -> None:
    """Four independent tasks of one size: the interval of the mean is half as wide, to a tenth."""
    tasks = [accuracy(str(index), GENERATOR.random(400) < 0.6) for index in range(4)]
    mean = mean_score("mean", tasks)
    assert mean.value == pytest.approx(np.mean([task.value for task in tasks]))
    widths = [np.ptp(one.interval or ()) for one in (mean, *tasks)]
    assert widths[0] == pytest.approx(np.mean(widths[1:]) / 2, rel=0.1)


def test_a_mean_with_an_undefined_score_is_undefined() -> None:
    mean = mean_score("mean", [accuracy("a", GENERATOR.random(9) < 0.5), Score("b", "test", "", math.nan, 9)])
    assert math.isnan(mean.value) and mean.interval is None


def test_a_difference_on_the_same_items_is_surer_than_the_scores() -> None:
    """The second model is right where the first is and on a few items more: never worse on a draw."""
    right = GENERATOR.random(500) < 0.6
    more = right | (GENERATOR.random(500) < 0.05)
    baseline, better = (Results("transfer", (accuracy("MR", one),)) for one in (right, more))
    (difference,) = differences(better, baseline)
    assert difference.value == pytest.approx(better["MR"].value - baseline["MR"].value)
    low, high = difference.interval or (0, 0)
    assert 0 < low < difference.value < high
    assert high - low < 0.5 * np.ptp(baseline["MR"].interval or ())
    assert difference.p == difference.corrected < 0.01


def test_tasks_are_corrected_for_their_number_and_the_mean_is_not() -> None:
    def results(shift: float) -> Results:
        tasks = [accuracy(str(index), GENERATOR.random(200) < 0.5 + shift) for index in range(3)]
        return Results("transfer", tuple(tasks), (mean_score("mean", tasks),))

    found = {difference.name: difference for difference in differences(results(0.2), results(0.0))}
    smallest = min("012", key=lambda name: found[name].p)
    assert found[smallest].corrected == pytest.approx(3 * found[smallest].p)
    assert found["mean"].corrected is None


def test_what_cannot_be_resampled_is_not_compared() -> None:
    of_mteb = Results("mteb", (Score("Banking77", "Classification", "accuracy x 100", 80.0, 10),))
    assert differences(of_mteb, of_mteb) == []
