"""Spearman on cases worked by hand, and how results are put together."""

from __future__ import annotations

import math

import numpy as np
import pytest

from diffcse_scale.evaluation import STS_TASKS, TaskPairs, evaluate_sts, spearman, sts
from diffcse_scale.evaluation.sentence_encoder import Once
from diffcse_scale.evaluation.sts import MEAN

ANGLES = {"north": 90, "almost north": 80, "diagonal": 45, "east": 0, "south": -90, "west": 180}


def on_the_circle(sentences: list[str]) -> np.ndarray:
    """Embeddings of different lengths whose cosines are those of known angles."""
    radians = np.deg2rad([ANGLES[sentence] for sentence in sentences])
    lengths = 1 + np.arange(len(sentences))[:, None]
    return (lengths * np.stack([np.cos(radians), np.sin(radians)], axis=1)).astype(np.float32)


# angle between the two, hence rank of the cosine:      10 -> 4, 45 -> 3, 90 -> 2, 180 -> 1
PAIRS = [
    (3.0, "north", "almost north"),  # human rank 3, cosine rank 4
    (5.0, "north", "diagonal"),  # human rank 4, cosine rank 3
    (0.5, "north", "east"),  # human rank 1, cosine rank 2
    (1.0, "north", "south"),  # human rank 2, cosine rank 1
]
# 1 - 6 * (1 + 1 + 1 + 1) / (4 * (16 - 1)) = 0.6
RHO = 60.0


def test_spearman_is_the_one_worked_by_hand() -> None:
    assert spearman(on_the_circle, PAIRS) == pytest.approx(RHO, abs=1e-12)


def test_only_the_order_of_human_scores_counts() -> None:
    assert spearman(on_the_circle, [(math.exp(score), *pair) for score, *pair in PAIRS]) == pytest.approx(RHO)


def test_equal_human_scores_share_their_mean_rank() -> None:
    """Ranks (1.5, 1.5, 3) against (1, 2, 3): covariance 1.5, variances 1.5 and 2, so 1.5 / sqrt(3)."""
    pairs = [(1.0, "north", "south"), (1.0, "north", "east"), (2.0, "north", "diagonal")]
    assert spearman(on_the_circle, pairs) == pytest.approx(100 * 1.5 / math.sqrt(3))


def test_subsets_are_ranked_together_and_not_averaged() -> None:
    """Each subset is in perfect order; together the ranks are (1, 2, 3, 4) against (3, 4, 1, 2): -0.6."""
    first = [(1.0, "north", "diagonal"), (2.0, "north", "almost north")]
    second = [(3.0, "north", "south"), (4.0, "north", "east")]
    assert spearman(on_the_circle, first) == spearman(on_the_circle, second) == pytest.approx(100)
    results = evaluate_sts(on_the_circle, [TaskPairs("STS12", "test", first + second)])
    assert results["STS12"].value == pytest.approx(-60)


def test_each_distinct_sentence_is_encoded_once_over_all_tasks() -> None:
    asked: list[str] = []

    def encode(sentences: list[str]) -> np.ndarray:
        asked.extend(sentences)
        return on_the_circle(sentences)

    results = evaluate_sts(encode, [TaskPairs("one", "own", PAIRS), TaskPairs("two", "own", PAIRS[::-1])])

    assert sorted(asked) == ["almost north", "diagonal", "east", "north", "south"]
    assert [score.value for score in results.scores] == [pytest.approx(RHO)] * 2


def every_task(*, leave_out: str = "", pairs: list[tuple[float, str, str]] = PAIRS) -> list[TaskPairs]:
    return [TaskPairs(task.name, task.split, pairs) for task in STS_TASKS if task.name != leave_out]


def test_the_mean_is_over_the_seven_test_sets_and_no_dev_set() -> None:
    tasks = every_task()
    reverse = [(-score, *pair) for score, *pair in PAIRS]
    tasks = [TaskPairs(task.name, task.split, reverse) if task.split == "dev" else task for task in tasks]
    results = evaluate_sts(on_the_circle, tasks)
    assert results["STS-B dev"].value == pytest.approx(-RHO)
    assert results[MEAN].value == pytest.approx(RHO)
    assert results.missing == ()


def test_there_is_no_mean_when_a_test_set_is_missing() -> None:
    results = evaluate_sts(on_the_circle, every_task(leave_out="SICK-R test"))
    assert results.means == ()
    assert results.missing == ("SICK-R test",)


def test_a_missing_dev_set_does_not_touch_the_mean() -> None:
    results = evaluate_sts(on_the_circle, every_task(leave_out="STS-B dev"))
    assert results[MEAN].value == pytest.approx(RHO)


@pytest.mark.parametrize("jitter", [0.0, 1e-9])
def test_collapsed_embeddings_are_reported_and_not_ranked(jitter: float) -> None:
    """Rounding noise on a constant would otherwise give some correlation or other."""
    generator = np.random.default_rng(0)
    results = evaluate_sts(
        lambda sentences: 1 + jitter * generator.standard_normal((len(sentences), 8)),
        [TaskPairs("STS12", "test", PAIRS)],
    )
    assert math.isnan(results["STS12"].value)
    assert "collapsed" in results["STS12"].remark


def test_embeddings_that_are_not_finite_are_reported() -> None:
    results = evaluate_sts(lambda s: np.full((len(s), 2), np.nan), [TaskPairs("STS12", "test", PAIRS)])
    assert math.isnan(results["STS12"].value)
    assert "the embeddings contain NaN or infinity" in results["STS12"].remark


def test_equal_human_scores_are_reported() -> None:
    results = evaluate_sts(on_the_circle, [TaskPairs("x", "own", [(1.0, *pair) for _, *pair in PAIRS])])
    assert math.isnan(results["x"].value)
    assert "human scores" in results["x"].remark


def test_a_number_of_pairs_that_is_not_the_standard_one_is_reported() -> None:
    tasks = [TaskPairs("STS12", "test", PAIRS, standard_pairs=3108), TaskPairs("own", "own", PAIRS)]
    results = evaluate_sts(on_the_circle, tasks)
    assert "4 pairs, the standard set has 3,108" in results["STS12"].remark
    assert results["own"].remark == ""


def test_an_encoder_that_loses_a_sentence_is_caught() -> None:
    with pytest.raises(ValueError, match=r"shape \(4, 2\) for 5 sentences"):
        spearman(lambda sentences: on_the_circle(sentences[1:]), PAIRS)


def test_vectors_of_a_few_pairs_are_copied_at_a_time_and_encoded_all_at_once(monkeypatch):
    monkeypatch.setattr(sts, "BLOCK", 2)
    asked = []

    def encode(sentences: list[str]) -> np.ndarray:
        asked.append(sentences)
        return np.array([[1.0, len(sentence)] for sentence in sentences])

    human, cosines = sts.similarities(Once(encode), [(n, "a" * n, "a" * (7 - n)) for n in range(1, 6)])
    assert asked == [["a", "a" * 6, "aa", "a" * 5, "aaa", "aaaa"]] and human.tolist() == [1, 2, 3, 4, 5]
    expected = [(1 + n * (7 - n)) / math.hypot(1, n) / math.hypot(1, 7 - n) for n in range(1, 6)]
    np.testing.assert_allclose(cosines, expected)
