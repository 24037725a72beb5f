"""Alignment, uniformity and anisotropy against Wang and Isola's two lines of PyTorch, and on points set by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from diffcse_scale.evaluation import TaskPairs, evaluate_geometry, geometry
from diffcse_scale.evaluation.geometry import check_pairs, first_component_share, histogram, on_sphere
from diffcse_scale.foundation.errors import InputError

GENERATOR = np.random.default_rng(0)
SENTENCES = [f"sentence {index}" for index in range(120)]
VECTORS = GENERATOR.normal(size=(120, 6)) + 1.0
PAIRS = [(float(GENERATOR.integers(0, 11)) / 2, SENTENCES[i], SENTENCES[(i + 1) % 120]) for i in range(120)]
TASK = TaskPairs("STS-B dev", "dev", PAIRS)


def encode(sentences: list[str]) -> np.ndarray:
    return np.stack([VECTORS[SENTENCES.index(sentence)] for sentence in sentences])


def align_loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x - y).norm(p=2, dim=1).pow(2).mean()


def uniform_loss(x: torch.Tensor) -> torch.Tensor:
    return torch.pdist(x, p=2).pow(2).mul(-2).exp().mean().log()


@pytest.mark.parametrize("block", [1024, 7])
def test_alignment_and_uniformity_are_those_of_their_paper(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(geometry, "BLOCK", block)
    results = evaluate_geometry(encode, TASK)
    points = torch.nn.functional.normalize(torch.from_numpy(VECTORS))
    positive = [(SENTENCES.index(first), SENTENCES.index(second)) for score, first, second in PAIRS if score >= 4]
    first, second = (points[list(side)] for side in zip(*positive, strict=True))
    assert results["alignment"].value == pytest.approx(align_loss(first, second).item(), abs=1e-12)
    assert results["uniformity"].value == pytest.approx(uniform_loss(points).item(), abs=1e-12)
    assert results["alignment"].count == len(positive)
    assert results["uniformity"].count == 120


def test_the_mean_cosine_is_over_all_pairs_of_two_sentences() -> None:
    points = on_sphere(VECTORS)
    cosines = (points @ points.T)[np.triu_indices(120, k=1)]
    assert evaluate_geometry(encode, TASK)["mean cosine"].value == pytest.approx(cosines.mean(), abs=1e-12)


def test_the_first_component_of_points_on_a_line_has_all_variance() -> None:
    assert first_component_share(np.array([[0.0, 1.0], [0.5, 1.0], [2.0, 1.0]])) == pytest.approx(1)
    assert first_component_share(np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])) == pytest.approx(0.5)


def test_intervals_are_those_of_resampled_sentences_and_pairs() -> None:
    """Against drawing sentences and going through all pairs of different ones: the deviations agree to a tenth."""
    results = evaluate_geometry(encode, TASK)
    points = on_sphere(VECTORS)
    squared = ((points[:, None] - points[None]) ** 2).sum(-1)
    uniformity, cosine = [], []
    for _ in range(1000):
        draw = GENERATOR.integers(120, size=120)
        different = draw[:, None] != draw[None]
        distances = squared[np.ix_(draw, draw)][different]
        uniformity.append(np.log(np.exp(-2 * distances).mean()))
        cosine.append((1 - distances / 2).mean())
    for name, values in (("uniformity", uniformity), ("mean cosine", cosine)):
        resampled = results[name].resampled
        assert resampled is not None
        assert np.std(resampled) == pytest.approx(np.std(values), rel=0.1)
        assert np.mean(resampled) == pytest.approx(np.mean(values), abs=0.2 * np.std(values))
    low, high = results["alignment"].interval or (0, 0)
    assert low < results["alignment"].value < high


def test_a_histogram_counts_each_pair_once_in_the_band_of_its_gold_score() -> None:
    """Twenty bins of 0.05 on either side of 0; 1 belongs to the last, and so does rounding above it."""
    found = histogram(np.array([0.0, 0.9, 1.0, 4.2, 5.0]), np.array([-1.0, 0.0, 0.01, 0.97, 1 + 1e-15]))
    assert len(found["edges"]) == 41 and (found["edges"][0], found["edges"][-1]) == (-1.0, 1.0)
    where = {band: np.flatnonzero(counts).tolist() for band, counts in found["bands"].items()}
    assert where == {"0-1": [0, 20], "1-2": [20], "2-3": [], "3-4": [], "4-5": [39]}
    assert sum(found["bands"]["4-5"]) == 2


def test_the_histogram_is_among_the_details() -> None:
    bands = evaluate_geometry(encode, TASK).details["histograms"]["STS-B dev"]["bands"]
    assert sum(sum(counts) for counts in bands.values()) == 120


def test_collapsed_and_broken_embeddings_are_reported() -> None:
    collapsed = evaluate_geometry(lambda sentences: np.ones((len(sentences), 4), dtype=np.float32), TASK)
    assert collapsed["mean cosine"].value == pytest.approx(1)
    assert collapsed["uniformity"].value == pytest.approx(0, abs=1e-9)
    assert math.isnan(collapsed["first component"].value) and "collapsed" in collapsed["first component"].remark
    broken = evaluate_geometry(lambda sentences: np.full((len(sentences), 4), np.nan), TASK)
    assert all(math.isnan(score.value) and "NaN" in score.remark for score in broken.scores)


@pytest.mark.parametrize(
    ("scores", "complaint"),
    [
        ([0.0, 7.0], r"geometry needs scores from 0 to 5, but these range from 0\.0 to 7\.0"),
        ([1.0, 3.9], "no pair has"),
    ],
)
def test_scores_on_another_scale_are_refused(scores: list[float], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        check_pairs(TaskPairs("own", "own", [(score, "a", "b") for score in scores]))


def test_equal_sentences_are_refused() -> None:
    with pytest.raises(InputError, match="own: all sentences are equal"):
        check_pairs(TaskPairs("own", "own", [(4.5, "a dog", "a dog"), (1.0, "a dog", "a dog")]))
