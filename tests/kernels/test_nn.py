"""`nn.InfoNCE` is `info_nce` with its options chosen once. Truth: one line of PyTorch in float64, to 1e-12."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from diffcse_kernels import NegativeSet
from diffcse_kernels.gather import place
from diffcse_kernels.nn import InfoNCE, MatryoshkaInfoNCE
from torch import Tensor
from torch.nn import functional as F


def rows(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 5, dtype=torch.float64, generator=generator, requires_grad=True)


def cross_entropy(queries: Tensor, keys: Tensor, temperature: float | Tensor = 0.05) -> Tensor:
    cosines = F.normalize(queries) @ F.normalize(keys).T
    return F.cross_entropy(cosines / temperature, torch.arange(len(queries)))


def test_loss_and_gradients_are_those_of_the_cross_entropy():
    queries, keys = rows(7, 1), rows(9, 2)
    loss = InfoNCE()(queries, keys)
    expected = cross_entropy(queries, keys)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
    for got, truth in zip(
        torch.autograd.grad(loss, (queries, keys)), torch.autograd.grad(expected, (queries, keys)), strict=True
    ):
        torch.testing.assert_close(got, truth, rtol=0, atol=1e-12)


def test_symmetric_is_the_mean_of_both_directions():
    queries, keys = rows(6, 1), rows(6, 2)
    expected = (cross_entropy(queries, keys, 0.1) + cross_entropy(keys, queries, 0.1)) / 2
    torch.testing.assert_close(InfoNCE(0.1, symmetric=True)(queries, keys), expected, rtol=0, atol=1e-12)


def test_hard_negatives_are_more_columns_and_the_own_one_is_weighted():
    queries, keys, hard = rows(4, 1), rows(4, 2), rows(4, 3)
    logits = F.normalize(queries) @ F.normalize(torch.cat([keys, hard])).T / 0.05
    logits = logits + 0.7 * torch.eye(4, 8, dtype=torch.float64).roll(4, 1)
    expected = F.cross_entropy(logits, torch.arange(4))
    loss = InfoNCE(hard_negative_weight=0.7)(queries, keys, hard)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)


def test_a_learnable_temperature_is_the_one_parameter_and_gets_the_gradient():
    queries, keys = rows(6, 1), rows(6, 2)
    module = InfoNCE(0.1, learnable=True).double()
    (parameter,) = module.parameters()
    module(queries, keys).backward()
    logarithm = parameter.detach().clone().requires_grad_()
    cross_entropy(queries, keys, logarithm.exp()).backward()
    torch.testing.assert_close(parameter.grad, logarithm.grad, rtol=0, atol=1e-12)
    assert not list(InfoNCE(0.1).parameters())


def test_none_gives_a_loss_a_row():
    queries, keys = rows(6, 1), rows(6, 2)
    losses = InfoNCE(reduction="none")(queries, keys)
    assert losses.shape == (6,)
    torch.testing.assert_close(losses.mean(), cross_entropy(queries, keys), rtol=0, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_not_positive_is_refused(temperature: float):
    with pytest.raises(ValueError, match="temperature must be a positive finite number"):
        InfoNCE(temperature)


@pytest.mark.parametrize("group", [dist.GroupMember.NON_GROUP_MEMBER, "wrold", [0, 1]])
def test_what_is_no_group_is_refused_before_any_exchange(group: Any):
    for call in (place, lambda group: InfoNCE(group=group)):
        with pytest.raises(ValueError, match='group must be "world" or a ProcessGroup'):
            call(group)


def test_a_wrong_reduction_is_refused_whatever_the_group():
    with pytest.raises(ValueError, match="reduction must be 'mean', 'sum' or 'none', not 'average'"):
        InfoNCE(reduction="average", group="world")  # type: ignore[arg-type]


def test_further_negatives_are_refused_where_the_loss_has_no_place_for_them():
    further = NegativeSet(rows(3, 4))
    with pytest.raises(ValueError, match="matryoshka_info_nce takes keys and hard_negatives, and no further negatives"):
        MatryoshkaInfoNCE([2, 5])(rows(3, 1), rows(3, 2), negatives=[further])
