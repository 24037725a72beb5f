"""`batch.exchange: auto` gathers where that takes at most 4 GiB, the same on every rank, and else is the ring.

The truth of a choice is the loss of what is chosen, bit for bit: gather and ring round differently.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffcse_scale.distributed import Ranks
from diffcse_scale.objective import sharded_info_nce as module
from diffcse_scale.objective.sharded_info_nce import chosen, sharded_info_nce
from tests.support.ranks_in_threads import ranks_in_threads, together

ROWS, WIDTH = 19, 24  # of each of two ranks
COLUMNS = 2 * 2 * ROWS  # keys and hard negatives
HELD = 16  # bytes for each number of a column in float32


@pytest.mark.parametrize(
    ("columns", "width", "dtype", "expected"),
    [
        (65_536, 4096, torch.float32, "gather"),  # 4 GiB to the byte
        (65_537, 4096, torch.float32, "ring"),
        (65_537, 4096, torch.bfloat16, "gather"),
        (1_000_000, 4096, torch.bfloat16, "ring"),
        (131_072, 768, torch.float64, "gather"),
    ],
)
def test_the_bound_is_4_gib(columns, width, dtype, expected):
    assert chosen("auto", columns, width, dtype) == expected
    assert [chosen(exchange, columns, width, dtype) for exchange in ("gather", "ring")] == ["gather", "ring"]


def gradients(exchange: str, ranks: Ranks) -> tuple[Tensor, ...]:
    """Loss and gradients of a rank."""
    generator = torch.Generator().manual_seed(ranks.rank)
    queries, keys, hard = torch.randn(3, ROWS, WIDTH, generator=generator).requires_grad_().unbind()
    loss, _ = sharded_info_nce(queries, keys, hard_negatives=hard, strategy=exchange, ranks=ranks)
    return loss.detach(), *torch.autograd.grad(loss, (queries, keys, hard))


def found(exchange: str, world_size: int = 2) -> Tensor:
    """Of all ranks, in one row."""
    results = together(gradients, [exchange] * world_size, ranks_in_threads(world_size))
    return torch.cat([tensor.flatten() for result in results for tensor in result])


@pytest.mark.parametrize(("bound", "exchange"), [(0, "gather"), (-1, "ring")])
def test_auto_is_what_it_chooses_and_hard_negatives_count(monkeypatch, bound, exchange):
    assert not torch.equal(found("gather"), found("ring"))
    monkeypatch.setattr(module, "GATHERED_BYTES", COLUMNS * WIDTH * HELD + bound)
    assert torch.equal(found("auto"), found(exchange))


def test_alone_nothing_is_gathered_and_nothing_goes_round(monkeypatch):
    monkeypatch.setattr(module, "GATHERED_BYTES", 0)
    monkeypatch.setattr(module, "_around_the_ring", None)
    assert torch.equal(found("auto", 1), found("gather", 1))
