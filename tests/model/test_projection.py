"""Projections, against torch's own layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diffcse_scale.model.projection import BatchNormProjection, GlobalBatchNorm, MLPProjection, make_projection
from tests.support.ranks_in_threads import RankInThread, ranks_in_threads, together


@pytest.mark.parametrize("affine", [True, False])
def test_on_one_rank_global_batch_norm_is_batch_norm(affine):
    torch.manual_seed(0)
    ours, theirs = GlobalBatchNorm(5, affine=affine).double(), nn.BatchNorm1d(5, affine=affine).double()
    for step in range(3):
        rows = torch.randn(7, 5, dtype=torch.float64) * (step + 1) + step
        mine, yours = rows.clone().requires_grad_(), rows.clone().requires_grad_()
        weights = torch.randn(7, 5, dtype=torch.float64)
        (ours(mine) * weights).sum().backward()
        (theirs(yours) * weights).sum().backward()
        torch.testing.assert_close(mine.grad, yours.grad, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(ours.eval()(rows), theirs.eval()(rows), atol=1e-12, rtol=1e-12)


def test_large_means_do_not_cancel_the_variance():
    # E[x^2] - E[x]^2 in float32 would give 0 or worse here
    rows = torch.tensor([[10_000.0], [10_001.0], [10_002.0]])
    torch.testing.assert_close(
        GlobalBatchNorm(1)(rows).flatten(), torch.tensor([-1.2247, 0.0, 1.2247]), atol=1e-3, rtol=0
    )


def test_statistics_stay_float32_in_a_bfloat16_model():
    torch.manual_seed(0)
    layer = BatchNormProjection(8).bfloat16()
    h = torch.randn(6, 8).bfloat16()
    z = layer(h)
    assert z.dtype == torch.float32
    torch.testing.assert_close(z.mean(0), torch.zeros(8), atol=1e-5, rtol=0)
    layer.in_float32 = False
    torch.testing.assert_close(layer(h), z.bfloat16(), atol=0, rtol=0)  # one rounding, at the end


def test_layers_are_those_of_the_official_program():
    shapes = {name: tuple(p.shape) for name, p in BatchNormProjection(4).named_parameters()}
    assert shapes == {"net.0.weight": (8, 4), "net.1.weight": (8,), "net.1.bias": (8,), "net.3.weight": (4, 8)}
    assert {name: tuple(p.shape) for name, p in MLPProjection(4).named_parameters()} == {
        "dense.weight": (4, 4),
        "dense.bias": (4,),
    }


def test_no_projection_leaves_the_embedding():
    h = torch.randn(2, 3)
    assert make_projection("none", 3)(h) is h


@pytest.mark.parametrize("shares", [(4, 8), (3, 1, 5, 3)])
def test_ranks_normalise_by_the_statistics_of_all_rows(shares):
    torch.manual_seed(0)
    rows, weights = torch.randn(2, sum(shares), 5, dtype=torch.float64).unbind()
    world = ranks_in_threads(len(shares))
    layers = [GlobalBatchNorm(5, ranks=ranks).double() for ranks in world]
    truth = nn.BatchNorm1d(5).double()

    def normal(layer, own, weight):
        own = own.clone().requires_grad_()
        output = layer(own)
        (output * weight).sum().backward()
        return output.detach(), own.grad

    found = together(normal, layers, rows.split(shares), weights.split(shares))
    for mine, theirs in zip(zip(*found, strict=True), normal(truth, rows, weights), strict=True):
        torch.testing.assert_close(torch.cat(mine), theirs, atol=1e-12, rtol=1e-12)
    for layer in layers:
        torch.testing.assert_close(dict(layer.named_buffers()), dict(truth.named_buffers()), atol=1e-12, rtol=1e-12)


def test_what_a_rank_exchanges_does_not_grow_with_their_number(monkeypatch):
    sent, reduce = [], RankInThread.all_reduce
    monkeypatch.setattr(RankInThread, "all_gather", None)
    monkeypatch.setattr(RankInThread, "all_reduce", lambda own, total: sent.append(total.nbytes) or reduce(own, total))
    for world_size in (2, 8):
        layers = [GlobalBatchNorm(5, ranks=ranks) for ranks in ranks_in_threads(world_size)]
        rows = torch.randn(world_size, 3, 5, requires_grad=True)
        together(lambda layer, own: layer(own).square().mean().backward(), layers, rows.unbind())
        # forward and backward: a count, and for each column a sum and a sum of squares
        assert sent == [8 * (1 + 2 * 5)] * 2 * world_size
        sent.clear()
