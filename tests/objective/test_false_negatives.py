"""Texts of a pair are no negatives of the pair, wherever else in the global batch they are: as a dense loss has it.

The truth is float64, from the whole matrix of similarities and the texts themselves, on one process. Tolerance: 1e-10
of the loss and of the gradient's norm, for 1, 2 and 4 gloo ranks, and for 2 nodes of 2.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diffcse_scale.distributed import PROCESS_GROUP, rank, world_size
from diffcse_scale.objective.contrastive import Contrastive
from diffcse_scale.recipe import ObjectiveRecipe
from diffcse_scale.text.batches import Chunk
from tests.support.ranks import run_ranks
from tests.support.toys import toy_chunk

ROWS, WIDTH = 16, 12
RECIPE = ObjectiveRecipe(hard_negative_weight=0.7)
A, B, C = 1, 2, 3  # texts that occur more than once; all others differ
TEXTS = {
    "one text a sentence": {0: [A, A], 9: [A, A], 12: [A, A]},
    "pairs that share an anchor": {0: [A, 10], 7: [A, 11], 13: [A, 12]},
    "pairs that share a positive": {1: [20, B], 14: [21, B]},
    "an anchor that is another pair's positive": {2: [C, 30], 15: [31, C]},
    "triples": {0: [A, B, 40], 5: [41, 42, A], 10: [43, 44, B], 11: [A, 45, 46], 15: [C, 47, C]},
}


def texts_of(planted: dict[int, list[int]]) -> Tensor:
    """[ROWS, S], with the planted ones in their rows."""
    texts = 1000 + torch.arange(ROWS * 3).view(ROWS, 3)[:, : len(planted[min(planted)])]
    for row, values in planted.items():
        texts[row] = torch.tensor(values)
    return texts


def embeddings(views: int) -> Tensor:
    """[ROWS, S, WIDTH]; positives are near, as are the rows of planted texts to all others."""
    generator = torch.Generator().manual_seed(0)
    common, own = torch.randn(2, ROWS, 1, WIDTH, generator=generator, dtype=torch.float64)
    return common[:1] + own + 0.5 * torch.randn(ROWS, views, WIDTH, generator=generator, dtype=torch.float64)


def dense(texts: Tensor) -> dict[str, Tensor]:
    """Loss and gradient, pair by pair in words of the texts."""
    views = texts.shape[1]
    z = embeddings(views).requires_grad_()
    anchors, positives, *hard = F.normalize(z, dim=-1).unbind(1)
    logits = torch.cat([anchors @ column.T for column in (positives, *hard)], 1) / RECIPE.temperature
    for row in range(ROWS):
        anchor, positive = texts[row, :2].tolist()
        for other in range(ROWS):
            others_anchor, others_positive, *others_hard = texts[other].tolist()
            if other != row and (others_anchor == anchor or others_positive in (anchor, positive)):
                logits[row, other] = -torch.inf
            for text in others_hard:
                logits[row, ROWS + other] += RECIPE.hard_negative_weight * (other == row)
                if text in (anchor, positive):
                    logits[row, ROWS + other] = -torch.inf
    loss = F.cross_entropy(logits, torch.arange(ROWS))
    return {"loss": loss.detach(), "gradient": torch.autograd.grad(loss, z)[0]}


def of_this_rank(texts: Tensor, exchange: Any, masked: bool = True) -> dict[str, Tensor]:
    """Its part by the trainer's term, of a share in two chunks."""
    share, views = ROWS // world_size(), texts.shape[1]
    own = slice(rank() * share, (rank() + 1) * share)
    z = embeddings(views)[own].flatten(0, 1).requires_grad_()
    chunks = [_chunk(part, masked) for part in texts[own].split(share - 1)]
    loss = Contrastive(RECIPE, exchange, PROCESS_GROUP)(z, chunks).loss
    (gradient,) = torch.autograd.grad(loss, z)
    return {"loss": loss.detach(), "gradient": gradient.unflatten(0, (-1, views)) / world_size()}


def _chunk(texts: Tensor, masked: bool) -> Chunk:
    chunk, _ = toy_chunk(*texts.shape)
    return replace(chunk, text_ids=texts if masked else None)


def everything() -> list[dict[str, Tensor]]:
    return [
        of_this_rank(texts_of(planted), exchange, masked)
        for planted in TEXTS.values()
        for exchange in ("gather", "ring")
        for masked in (True, False)
    ]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, list[list[dict[str, Tensor]]]]:
    """For each world, for each rank, what `everything` gives."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    on_nodes = run_ranks(everything, 4, folder, per_node=2)
    return {1: [everything()], "nodes": on_nodes, **{size: run_ranks(everything, size, folder) for size in (2, 4)}}


@pytest.mark.parametrize("world", [1, 2, 4, "nodes"])
@pytest.mark.parametrize("case", TEXTS)
def test_loss_and_gradient_are_those_of_the_dense_loss_without_the_pairs_own_texts(found, case, world):
    truth, first = dense(texts_of(TEXTS[case])), 4 * list(TEXTS).index(case)
    for number, masked in enumerate((True, False, True, False), first):
        loss = torch.stack([of_rank[number]["loss"] for of_rank in found[world]]).mean()
        gradient = torch.cat([of_rank[number]["gradient"] for of_rank in found[world]])
        off = max(abs(float(loss / truth["loss"] - 1)), float((gradient - truth["gradient"]).norm()))
        limit = 1e-10 * float(truth["gradient"].norm().clamp(max=1))
        assert off < limit if masked else off > 1e-4  # unmasked: the planted texts matter
