"""A loss with a `group` is, on several ranks, that of the whole batch. Truth: one process in float64, to 1e-12."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from diffcse_kernels import NegativeSet
from diffcse_kernels.nn import InfoNCE, MatryoshkaInfoNCE, SigmoidLoss
from torch import Tensor
from torch.nn import Module

from tests.support.ranks import run_ranks

SHARES = [[3, 3], [3, 0, 4, 2]]
IDS = torch.tensor([[1, 7], [2, 8], [1, 9], [3, 8], [4, 4], [2, 6], [5, 7], [1, 1], [9, 3]])
KEY_IDS = IDS.clone()
KEY_IDS[5] = torch.tensor([1, 9])  # so that it matters which direction takes whose ids
WEIGHTS = torch.tensor([0, 100, 3, 7, 5, 90, 11, 2, 41], dtype=torch.bfloat16)  # a sum that bfloat16 does not hold

SIGMOID = {"bias": -2.0, "learnable": True}

# what the module is made with (a bias makes it the sigmoid loss, widths that of prefixes), and what it is given
CASES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "mean": ({}, set()),
    "a loss a row": ({"reduction": "none"}, {"hard_negatives", "row_weights"}),
    "sum of dot products": ({"reduction": "sum", "normalize": False, "temperature": 1.3}, set()),
    "weighted hard negatives": ({"hard_negative_weight": 0.7}, {"hard_negatives"}),
    "both directions": ({"symmetric": True, "learnable": True, "temperature": 0.1}, {"row_weights"}),
    "both directions, ids": ({"symmetric": True}, {"ids"}),
    "ids": ({"margin": 0.3}, {"ids", "hard_negatives"}),
    "several positives": ({"multiple_positives": True}, {"ids", "row_weights"}),
    "further sets": ({}, {"ids", "negatives"}),
    "more keys than queries": ({}, {"more_keys", "row_weights"}),
    "prefixes": ({"widths": (2, 5)}, {"ids", "hard_negatives"}),
    "sigmoid": (SIGMOID, {"more_keys"}),
    "sigmoid, ids": ({**SIGMOID, "reduction": "sum"}, {"ids"}),
}


def columns(rows: int) -> dict[str, Tensor]:
    """Vectors of the whole batch; of a rank, its rows of each."""
    generator = torch.Generator().manual_seed(3)
    names = ("queries", "keys", "hard_negatives", "negatives", "more_keys")
    vectors = [torch.randn(rows, 5, dtype=torch.float64, generator=generator) for _ in names]
    return dict(zip(names, (tensor.requires_grad_() for tensor in vectors), strict=True))


def module_of(**options: Any) -> Module:
    kind = SigmoidLoss if "bias" in options else MatryoshkaInfoNCE if "widths" in options else InfoNCE
    return kind(**options).double()


def loss_of(module: Module, given: set[str], vectors: dict[str, Tensor], rows: slice) -> Tensor:
    """The module's loss of these rows of the batch."""
    own = {name: tensor[rows] for name, tensor in vectors.items()}
    options: dict[str, Any] = {}
    if "ids" in given:
        options = {"query_ids": IDS[rows], "key_ids": KEY_IDS[rows]}
    if "hard_negatives" in given:
        options["hard_negatives"] = own["hard_negatives"]
        options |= {"hard_negative_ids": (IDS[rows] + 1)} if "ids" in given else {}
    if "negatives" in given:
        sets = (own["queries"], None, 0), (own["negatives"], IDS[rows] + 2, None)
        options["negatives"] = [NegativeSet(*each) for each in sets]
    if "row_weights" in given:
        options["row_weights"] = WEIGHTS[rows]
    keys = torch.cat([own["keys"], own["more_keys"]]) if "more_keys" in given else own["keys"]
    return module(own["queries"], keys, **options)


def gradients(module: Module, loss: Tensor, vectors: dict[str, Tensor]) -> list[Tensor]:
    wanted = [*vectors.values(), *module.parameters()]
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    return [torch.zeros_like(x) if gradient is None else gradient for x, gradient in zip(wanted, found, strict=True)]


def on_a_rank(shares: list[int]) -> dict[str, list[Tensor]]:
    """Loss and gradients of this rank's rows, with respect to the whole batch's vectors."""
    last = list(accumulate(shares))[dist.get_rank()]
    rows, results = slice(last - shares[dist.get_rank()], last), {}
    for name, (options, given) in CASES.items():
        vectors = columns(sum(shares))
        group = dist.group.WORLD if name == "ids" else "world"
        module = module_of(**options, group=group, equal_shares=len(set(shares)) == 1)
        loss = loss_of(module, given, vectors, rows)
        loss = loss if loss.dim() == 0 else loss.sum() * len(shares)
        results[name] = [loss.detach(), *gradients(module, loss, vectors)]
    return results


@pytest.mark.parametrize("shares", [pytest.param(SHARES[0], marks=pytest.mark.slow), *SHARES[1:]], ids=str)
def test_averaged_over_ranks_it_is_the_whole_batch_in_one_process(shares: list[int], tmp_path: Path) -> None:
    results = run_ranks(on_a_rank, len(shares), tmp_path, shares)
    for name, (options, given) in CASES.items():
        vectors, module = columns(sum(shares)), module_of(**options)
        loss = loss_of(module, given, vectors, slice(0, sum(shares))).sum()
        expected = [loss.detach(), *gradients(module, loss, vectors)]
        for *parts, truth in zip(*(result[name] for result in results), expected, strict=True):
            assert (sum(parts) / len(shares) - truth).abs().max() < 1e-12, name
