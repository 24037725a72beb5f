"""Rows of all ranks, and their gradients back. Truth: `torch.cat` of everybody's rows in one process, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from diffcse_kernels.gather import gather_rows, place, row_counts
from torch import Tensor

from tests.support.ranks import run_ranks

SHARES = [2, 0, 3, 1]


def rows_of(rank: int) -> Tensor:
    """Transposed, as a caller's may be."""
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(64, SHARES[rank], generator=generator).bfloat16().T.requires_grad_()


def upstream(rank: int) -> Tensor:
    """What the loss of a rank asks of everybody's rows."""
    return torch.randn(sum(SHARES), 64, generator=torch.Generator().manual_seed(10 + rank)).bfloat16()


def among_all() -> tuple[list[list[int]], Tensor, Tensor, Tensor]:
    rank = dist.get_rank()
    rows = rows_of(rank)
    counts = row_counts(rows, torch.zeros(rank))
    gathered = gather_rows(rows, counts[0])
    (gradient,) = torch.autograd.grad(gathered, rows, upstream(rank))
    ids = gather_rows(torch.full((SHARES[rank], 2), rank), counts[0])
    return counts, gathered.detach(), gradient, ids


def in_a_pair() -> tuple[tuple[int, int], Tensor, Tensor] | None:
    """The same among ranks 1 and 2 alone."""
    rank = dist.get_rank()
    pair = dist.new_group([1, 2])  # a collective call, though only two are in it
    if rank not in (1, 2):
        return None
    rows = torch.full((rank, 1), float(rank), requires_grad=True)
    gathered = gather_rows(rows, row_counts(rows, group=pair)[0], pair)
    (gradient,) = torch.autograd.grad(gathered, rows, torch.full((3, 1), float(rank)))
    return place(pair), gathered.detach(), gradient


def on_a_rank() -> tuple[Any, Any]:
    return among_all(), in_a_pair()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, Any]]:
    return run_ranks(on_a_rank, 4, tmp_path_factory.mktemp("ranks"))


def test_rows_come_to_all_and_the_sum_of_their_gradients_goes_back(results: list[tuple[Any, Any]]) -> None:
    everybodys = torch.cat([rows_of(rank).detach() for rank in range(4)])
    totals = sum(upstream(rank).float() for rank in range(4)).bfloat16().split(SHARES)
    for rank, ((counts, gathered, gradient, ids), _) in enumerate(results):
        assert counts == [SHARES, [0, 1, 2, 3]]
        assert torch.equal(gathered, everybodys)
        assert gradient.dtype == torch.bfloat16
        torch.testing.assert_close(gradient, totals[rank], rtol=0, atol=0)
        assert ids.tolist() == [[owner] * 2 for owner, count in enumerate(SHARES) for _ in range(count)]


def test_a_group_exchanges_among_its_own_ranks(results: list[tuple[Any, Any]]) -> None:
    first, second = results[1][1], results[2][1]
    assert (first[0], second[0]) == ((0, 2), (1, 2))
    assert first[1].tolist() == second[1].tolist() == [[1.0], [2.0], [2.0]]
    assert (first[2].tolist(), second[2].tolist()) == ([[3.0]], [[3.0], [3.0]])


def test_alone_the_rows_are_everybodys() -> None:
    rows = torch.randn(3, 2)
    assert place("world") == (0, 1)
    (shares,) = row_counts(rows)
    assert gather_rows(rows, shares) is rows
