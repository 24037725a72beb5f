"""Our MultipleNegativesRankingLoss gives sentence-transformers' numbers. Truth: their class, in float64, to 1e-12."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from sentence_transformers import SentenceTransformer, util
from sentence_transformers.losses import MultipleNegativesRankingLoss as Theirs
from torch import Tensor

from diffcse_scale.export import export_sentence_transformer
from diffcse_scale.losses import MultipleNegativesRankingLoss
from tests.support.ranks import run_ranks
from tests.support.tiny_models import tiny_bert, tiny_tokenizer

BOTH = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
EVERY = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
FURTHER = [chosen for count in range(4) for chosen in combinations(EVERY[1:], count)]
HARDNESS = (None, "in_batch_negatives", "hard_negatives", "all_negatives")


class NoModel(torch.nn.Module):
    """The losses look at embeddings only here."""


def columns(count: int, rows: int, seed: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, 5, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(count)]


def assert_same(mine: Tensor, theirs: Tensor, given: list[Tensor]) -> None:
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)
    for got, truth in zip(torch.autograd.grad(mine, given), torch.autograd.grad(theirs, given), strict=True):
        torch.testing.assert_close(got, truth, rtol=0, atol=1e-12)


def assert_theirs(given: list[Tensor], **options: Any) -> None:
    mine, theirs = (
        kind(NoModel(), **options).compute_loss_from_embeddings(given, None)
        for kind in (MultipleNegativesRankingLoss, Theirs)
    )
    assert_same(mine, theirs, given)


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
    assert_theirs(columns(count, rows=6), **options)


@pytest.mark.parametrize("hardness_mode", HARDNESS)
@pytest.mark.parametrize("further", FURTHER, ids=",".join)
def test_all_directions_and_hardness_modes_are_theirs(further: tuple[str, ...], hardness_mode: str | None):
    options = {"directions": (EVERY[0], *further), "hardness_mode": hardness_mode, "hardness_strength": 3.0}
    modes = ("joint", "per_direction") if further in ((), ("doc_to_query",)) else ("joint",)
    for mode in modes:
        for count, rows, similarity in ((2, 5, util.dot_score), (4, 5, util.cos_sim), (3, 1, util.cos_sim)):
            assert_theirs(columns(count, rows), **options, partition_mode=mode, similarity_fct=similarity, scale=4.0)


def test_arguments_are_theirs_by_position_too():
    given = columns(3, 5)
    places = 4.0, util.cos_sim, False, EVERY, "joint", "all_negatives", 3.0
    mine, theirs = (
        kind(NoModel(), *places).compute_loss_from_embeddings(given, None)
        for kind in (MultipleNegativesRankingLoss, Theirs)
    )
    assert_same(mine, theirs, given)


GATHERED: list[dict[str, Any]] = [
    BOTH,
    {"directions": EVERY},
    {"directions": EVERY, "hardness_mode": "all_negatives", "hardness_strength": 3.0},
]


def _on_a_rank(sizes: list[int], kind: type[Theirs]) -> list[list[Tensor]]:
    """For each of `GATHERED`: this rank's loss and its gradient with respect to all ranks' inputs."""
    start = sum(sizes[: dist.get_rank()])
    results = []
    for options in GATHERED:
        everything = columns(3, sum(sizes))
        mine = [column[start : start + sizes[dist.get_rank()]] for column in everything]
        criterion = kind(NoModel(), gather_across_devices=True, **options)
        loss = criterion.compute_loss_from_embeddings(mine, None)
        results.append([loss.detach(), *torch.autograd.grad(loss, everything)])
    return results


def _on_both(sizes: list[int]) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
    return _on_a_rank(sizes, MultipleNegativesRankingLoss), _on_a_rank(sizes, Theirs)


def test_gathered_from_equal_shares_it_is_theirs_on_each_rank(tmp_path: Path):
    for mine, theirs in run_ranks(_on_both, 2, tmp_path, [4, 4]):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_averaged_over_ranks_of_unequal_shares_it_is_the_whole_batch_in_one_process(tmp_path: Path):
    results = run_ranks(_on_a_rank, 2, tmp_path, [5, 2], MultipleNegativesRankingLoss)
    for options, *parts in zip(GATHERED, *results, strict=True):
        everything = columns(3, 7)
        loss = Theirs(NoModel(), **options).compute_loss_from_embeddings(everything, None)
        averaged = [sum(values) / 2 for values in zip(*parts, strict=True)]
        expected = [loss.detach(), *torch.autograd.grad(loss, everything)]
        torch.testing.assert_close(averaged, expected, rtol=0, atol=1e-12)


def test_what_is_more_similar_than_the_pair_by_more_than_the_margin_is_no_negative():
    given = columns(3, 6)
    queries, positives, negatives = (torch.nn.functional.normalize(column) for column in given)
    documents, apart = torch.cat([positives, negatives]), ~torch.eye(6, dtype=torch.bool)
    pair = (queries * positives).sum(1, keepdim=True)
    compared = [  # similarities, and which of them are negatives
        (queries @ documents.T, torch.cat([apart, torch.ones(6, 6, dtype=torch.bool)], 1)),
        (queries @ queries.T, apart),
        (positives @ queries.T, apart),
        (positives @ documents.T, apart.repeat(1, 2)),
    ]
    left_out = [(cosines > pair + 0.1) | ~negative for cosines, negative in compared]
    masked = [cosines.masked_fill(mask, -torch.inf) for (cosines, _), mask in zip(compared, left_out, strict=True)]
    expected = (20 * torch.cat([*masked, pair, pair], 1)).logsumexp(1) - 20 * pair[:, 0]
    criterion = MultipleNegativesRankingLoss(NoModel(), directions=EVERY, margin=0.1)
    assert_same(criterion.compute_loss_from_embeddings(given, None), expected.mean(), given)


def test_it_takes_a_models_features_as_theirs_does(tmp_path: Path):
    export_sentence_transformer(tiny_bert(), tiny_tokenizer(), "mean", 16, tmp_path / "model")
    model = SentenceTransformer(str(tmp_path / "model"), device="cpu").eval()
    features = [model.preprocess(texts) for texts in (["dog runs", "cat"], ["a dog", "a cat sleeps"])]
    mine, theirs = MultipleNegativesRankingLoss(model), Theirs(model)
    torch.testing.assert_close(mine(features, None), theirs(features, None), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"similarity_fct": util.euclidean_sim}, "cos_sim or dot_score"),
        ({"margin": 0.1, "directions": ("query_to_doc", "doc_to_doc")}, "margin cannot be used with"),
        ({"margin": 0.1, "hardness_mode": "hard_negatives", "hardness_strength": 5.0}, "margin cannot be used with"),
    ],
)
def test_what_has_no_positive_to_compare_with_is_refused(options: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        MultipleNegativesRankingLoss(NoModel(), **options)


def test_one_column_is_refused():
    with pytest.raises(ValueError, match="at least two columns"):
        MultipleNegativesRankingLoss(NoModel()).compute_loss_from_embeddings(columns(1, 4), None)
