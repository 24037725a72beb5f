"""Resampling against libraries that resample in the plain way, and corrections worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from diffcse_scale.evaluation import bootstrap
from diffcse_scale.evaluation.bootstrap import RESAMPLES, f1, holm, interval, p_value, rank_correlation, resample, share

GENERATOR = np.random.default_rng(0)
HUMAN = np.round(GENERATOR.uniform(0, 5, 60))  # few distinct values: many ties
SIMILARITY = HUMAN + GENERATOR.normal(scale=2, size=60)
DRAWS = GENERATOR.integers(60, size=(20, 60))
DRAWN = np.stack([np.bincount(draw, minlength=60) for draw in DRAWS])


def test_rank_correlation_of_a_draw_is_scipys_on_the_rows_drawn() -> None:
    expected = [100 * stats.spearmanr(HUMAN[draw], SIMILARITY[draw]).statistic for draw in DRAWS]
    np.testing.assert_allclose(rank_correlation(HUMAN, SIMILARITY)(DRAWN), expected, rtol=0, atol=1e-10)


def test_a_draw_without_variation_has_no_correlation() -> None:
    one_pair_only = np.array([[3, 0, 0], [1, 1, 1]])
    values = rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0]))(one_pair_only)
    np.testing.assert_allclose(values, [np.nan, 50.0])


def test_f1_and_share_of_a_draw_are_scikit_learns_on_the_rows_drawn() -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn, the independent truth")
    gold, predicted = HUMAN > 2, SIMILARITY > 2
    expected = [100 * metrics.f1_score(gold[draw], predicted[draw]) for draw in DRAWS]
    np.testing.assert_allclose(f1(gold, predicted)(DRAWN), expected, rtol=0, atol=1e-10)
    expected = [100 * metrics.accuracy_score(gold[draw], predicted[draw]) for draw in DRAWS]
    np.testing.assert_allclose(share(gold == predicted)(DRAWN), expected, rtol=0, atol=1e-10)


def test_an_interval_is_scipys_percentile_interval() -> None:
    """Both draw at random: the ends of 2,000 draws are within a tenth of the interval's width of one another."""

    def correlation(human: np.ndarray, similarity: np.ndarray) -> float:
        return float(stats.spearmanr(human, similarity).statistic)

    expected = stats.bootstrap(
        (HUMAN, SIMILARITY),
        correlation,
        paired=True,
        vectorized=False,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    low, high = interval(resample("task", 60, rank_correlation(HUMAN, SIMILARITY))) or (0, 0)
    width = 100 * (expected.high - expected.low)
    assert (low, high) == pytest.approx((100 * expected.low, 100 * expected.high), abs=width / 10)


def test_draws_depend_on_task_and_size_alone_and_not_on_what_fits_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    statistic = rank_correlation(HUMAN, SIMILARITY)
    first = resample("task", 60, statistic)
    assert first.shape == (RESAMPLES,)
    assert not np.array_equal(first, resample("another", 60, statistic))
    monkeypatch.setattr(bootstrap, "ALIVE", 60 * 7)
    np.testing.assert_array_equal(resample("task", 60, statistic), first)


def test_a_clear_difference_has_a_small_p_and_none_has_one() -> None:
    good, fair = SIMILARITY, HUMAN + 1.5 * (SIMILARITY - HUMAN) + GENERATOR.normal(scale=2, size=60)
    differences = resample("t", 60, rank_correlation(HUMAN, good)) - resample("t", 60, rank_correlation(HUMAN, fair))
    assert p_value(differences) < 0.05
    assert p_value(np.zeros(RESAMPLES)) == 1


def test_p_is_twice_the_smaller_tail() -> None:
    """3 of 99 differences are not above 0: 2 * (1 + 3) / (1 + 99)."""
    assert p_value(np.array([-1.0] * 3 + [1.0] * 96)) == pytest.approx(0.08)


def test_p_values_of_equal_models_are_uniform() -> None:
    """Two noisy copies of one model, 200 data sets of 100 items: p < 0.05 in 5%, give or take three deviations."""
    generator = np.random.default_rng(2)
    p_values = []
    for number in range(200):
        one, other = (share(generator.random(100) < 0.7) for _ in range(2))
        p_values.append(p_value(resample(f"set {number}", 100, one) - resample(f"set {number}", 100, other)))
    assert 0.05 - 3 * 0.0154 < np.mean(np.array(p_values) < 0.05) < 0.05 + 3 * 0.0154


def test_holm_multiplies_the_smallest_p_by_all_and_keeps_the_order() -> None:
    """0.01 * 3 and 0.04 * 2; the third would be 0.05 and may not be below the second."""
    assert holm([0.04, 0.01, 0.05]) == pytest.approx([0.08, 0.03, 0.08])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
