"""Our MultipleNegativesRankingLoss gives sentence-transformers' numbers. Truth: their class, in float64, to 1e-12."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer, losses, util
from torch import Tensor

from diffcse_scale.export import export_sentence_transformer
from diffcse_scale.losses import MultipleNegativesRankingLoss
from tests.support.ranks import run_ranks
from tests.support.tiny_models import tiny_bert, tiny_tokenizer

BOTH = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}


class NoModel(torch.nn.Module):
    """The losses look at embeddings only here."""


def columns(count: int, rows: int, seed: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, 5, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(count)]


def assert_same(mine: Tensor, theirs: Tensor, given: list[Tensor]) -> None:
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)
    for got, truth in zip(torch.autograd.grad(mine, given), torch.autograd.grad(theirs, given), strict=True):
        torch.testing.assert_close(got, truth, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("count", "options"),
    [
        pytest.param(2, {}, id="pairs"),
        pytest.param(3, {"scale": 50.0}, id="triples"),
        pytest.param(5, {}, id="three negatives"),
        pytest.param(2, {"similarity_fct": util.dot_score, "scale": 1.0}, id="dot product"),
        pytest.param(2, BOTH, id="both directions"),
        pytest.param(4, BOTH, id="both directions, negatives"),
    ],
)
def test_loss_and_gradients_are_theirs(count: int, options: dict[str, Any]):
    given = columns(count, rows=6)
    mine, theirs = (
        MultipleNegativesRankingLoss(NoModel(), **options),
        losses.MultipleNegativesRankingLoss(NoModel(), **options),
    )
    assert_same(mine.compute_loss_from_embeddings(given, None), theirs.compute_loss_from_embeddings(given, None), given)


def _share_of_the_gradient(sizes: list[int]) -> tuple[Tensor, list[Tensor]]:
    """What a data-parallel trainer averages: this rank's loss and its gradient with respect to all ranks' inputs."""
    import torch.distributed as dist

    everything = columns(3, sum(sizes))
    start = sum(sizes[: dist.get_rank()])
    mine = [column[start : start + sizes[dist.get_rank()]] for column in everything]
    loss = MultipleNegativesRankingLoss(NoModel(), gather_across_devices=True, **BOTH).compute_loss_from_embeddings(
        mine, None
    )
    return loss.detach(), [gradient for gradient in torch.autograd.grad(loss, everything)]


@pytest.mark.parametrize("sizes", [[4, 4], [5, 2]])
def test_averaged_over_ranks_it_is_the_whole_batch_in_one_process(sizes: list[int], tmp_path: Path):
    everything = columns(3, sum(sizes))
    theirs = losses.MultipleNegativesRankingLoss(NoModel(), **BOTH).compute_loss_from_embeddings(everything, None)
    expected = torch.autograd.grad(theirs, everything)
    results = run_ranks(_share_of_the_gradient, 2, tmp_path, sizes)
    torch.testing.assert_close(sum(loss for loss, _ in results) / 2, theirs.detach(), rtol=0, atol=1e-12)
    for index, truth in enumerate(expected):
        averaged = sum(gradients[index] for _, gradients in results) / 2
        torch.testing.assert_close(averaged, truth, rtol=0, atol=1e-12)


def test_it_takes_a_models_features_as_theirs_does(tmp_path: Path):
    export_sentence_transformer(tiny_bert(), tiny_tokenizer(), "mean", 16, tmp_path / "model")
    model = SentenceTransformer(str(tmp_path / "model"), device="cpu").eval()
    features = [model.preprocess(texts) for texts in (["dog runs", "cat"], ["a dog", "a cat sleeps"])]
    mine, theirs = MultipleNegativesRankingLoss(model), losses.MultipleNegativesRankingLoss(model)
    torch.testing.assert_close(mine(features, None), theirs(features, None), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"similarity_fct": util.euclidean_sim}, "cos_sim or dot_score"),
        ({"directions": ("query_to_doc", "doc_to_query")}, "whole matrix"),
        ({"directions": ("query_to_doc", "query_to_query")}, "whole matrix"),
        ({"hardness_mode": "hard_negatives", "hardness_strength": 5.0}, "whole matrix"),
    ],
)
def test_what_needs_the_matrix_is_refused(options: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        MultipleNegativesRankingLoss(NoModel(), **options)


def test_one_column_is_refused():
    with pytest.raises(ValueError, match="at least two columns"):
        MultipleNegativesRankingLoss(NoModel()).compute_loss_from_embeddings(columns(1, 4), None)
