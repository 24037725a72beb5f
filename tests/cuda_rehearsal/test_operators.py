"""The references of the kernels on a GPU: no mixture of devices, and nothing for which the host waits.

Their own code runs, with all of their options; the step meets the ones that it uses.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffcse_kernels import (
    NegativeSet,
    info_nce,
    matryoshka_info_nce,
    replaced_token_bce,
    sample_tokens,
    sigmoid_loss,
)
from diffcse_kernels.info_nce_operator import _info_nce_backward
from diffcse_kernels.key_blocks import block_gradients, block_logsumexp
from diffcse_kernels.reference.replaced_token_bce import replaced_token_bce_backward
from diffcse_kernels.scaled_gradients import scaled_gradients
from diffcse_kernels.types import Reduction
from torch import Tensor

from tests.support.imagined_gpu import GPU, HostWaits, ImaginedGPU

N, M, D, V = 5, 9, 8, 30
REFERENCE = {"impl": "reference"}


@pytest.fixture(autouse=True)
def gpu() -> Iterator[ImaginedGPU]:
    with ImaginedGPU() as gpu:
        yield gpu


def rows(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, D, device=GPU, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reduction": "none"},
        {"normalize": False, "positive_offset": 2},
        {"hard_negatives": True, "hard_negative_weight": 1.0, "hard_negative_offset": 1},
        {"row_weights": True, "reduction": "sum"},
        {"temperature": True},
        {"symmetric": True},
        {"query_ids": True, "key_ids": True, "margin": 0.1, "negatives": True},
        {"query_ids": True, "key_ids": True, "multiple_positives": True, "return_lse": True},
    ],
    ids=str,
)
def test_info_nce(options: dict[str, Any], dtype: torch.dtype) -> None:
    made = {"hard_negatives": lambda: rows(N + 1, dtype), "row_weights": lambda: torch.ones(N, device=GPU)}
    made["temperature"] = lambda: torch.full((), 0.05, device=GPU, requires_grad=True)
    made["query_ids"], made["key_ids"] = lambda: torch.arange(N, device=GPU), lambda: torch.arange(M, device=GPU)
    made["negatives"] = lambda: [NegativeSet(rows(N, dtype), excluded_offset=0)]
    given = {name: made[name]() if value is True and name in made else value for name, value in options.items()}
    keys = rows(N if "symmetric" in options else M, dtype)
    loss, statistics, *lse = info_nce(rows(N, dtype), keys, return_stats=True, **given, **REFERENCE)
    assert {tensor.device for tensor in (loss, *statistics, *lse)} == {GPU}


def test_info_nce_backward_of_single_losses() -> None:
    temperature, upstream = torch.ones((), device=GPU), torch.ones(N, device=GPU)
    found = _info_nce_backward(
        upstream,
        upstream,
        rows(N),
        rows(M),
        temperature,
        None,
        None,
        M,
        0,
        None,
        0.0,
        True,
        [],
        None,
        False,
        True,
        True,
        True,
        "reference",
    )
    assert {tensor.device for tensor in found} == {GPU}


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("with_ids", [False, True])
def test_sigmoid_loss_and_nested_prefixes(with_ids: bool, reduction: Reduction) -> None:
    ids = {"query_ids": torch.arange(N, device=GPU), "key_ids": torch.arange(M, device=GPU)} if with_ids else {}
    number = torch.full((), 0.05, device=GPU, requires_grad=True)
    sigmoid = sigmoid_loss(rows(N), rows(M), number, number, reduction=reduction, **ids, **REFERENCE)
    nested = matryoshka_info_nce(rows(N), rows(M), number, [2, D], reduction=reduction, **ids, **REFERENCE)
    assert {tensor.device for tensor in (sigmoid, nested)} == {GPU}


@pytest.mark.parametrize("with_ids", [False, True])
def test_backward_of_single_sigmoid_losses_and_nested_prefixes(with_ids: bool) -> None:
    number, upstream = torch.full((), 0.05, device=GPU), torch.ones(N, device=GPU)
    ids = (torch.arange(N, device=GPU)[:, None], torch.arange(M, device=GPU)[:, None]) if with_ids else (None, None)
    operators = torch.ops.diffcse_kernels
    sigmoid = operators.sigmoid_loss_backward(
        upstream, rows(N), rows(M), number, number, *ids, 0, True, [True] * 4, "reference"
    )
    nested = operators.matryoshka_info_nce_backward(
        upstream, rows(N), rows(M), number, *ids, [2, D], [1.0, 1.0], 0, True, [True] * 3, "reference"
    )
    assert {tensor.device for tensor in (*sigmoid, *nested)} == {GPU}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_that_the_forward_pass_made(dtype: torch.dtype) -> None:
    kept, upstream = rows(N), torch.ones((), device=GPU)
    (found,) = scaled_gradients([kept], upstream, [True], [(dtype, kept.shape)])
    assert found is not None
    assert found.device == GPU


@pytest.mark.parametrize("offset", [None, 2])
def test_key_blocks(offset: int | None) -> None:
    scale = torch.full((), 20.0, device=GPU)
    shifts, factors, largest = block_logsumexp(rows(N), rows(M), scale, offset, **REFERENCE)
    found = block_gradients(rows(N), rows(M), scale, largest, factors, offset, **REFERENCE)
    assert {tensor.device for tensor in (shifts, *found)} == {GPU}


def test_replaced_token_bce() -> None:
    ids, weight = torch.zeros(N, dtype=torch.int64, device=GPU), torch.randn(D, device=GPU, requires_grad=True)
    bias = torch.zeros(1, device=GPU, requires_grad=True)
    loss, counts = replaced_token_bce(rows(N), weight, bias, ids, ids, ids == 0, **REFERENCE)
    slopes, upstream = torch.ones(N, device=GPU), torch.ones((), device=GPU)
    gradient = replaced_token_bce_backward(slopes, upstream, weight, torch.bfloat16)
    assert {tensor.device for tensor in (loss, *counts, gradient)} == {GPU}


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("with_bias", [False, True])
def test_sample_tokens(with_bias: bool, temperature: float) -> None:
    ids = sample_tokens(
        rows(N),
        rows(V),
        torch.zeros(V, device=GPU) if with_bias else None,
        torch.arange(N, device=GPU),
        seed=3,
        temperature=temperature,
        forbidden=torch.zeros(V, dtype=torch.bool, device=GPU) if with_bias else None,
        **REFERENCE,
    )
    assert ids.device == GPU and ids.shape == (N,)


def test_operands_of_two_devices_are_refused() -> None:
    with pytest.raises(RuntimeError, match="found at least two devices"):
        info_nce(rows(N), torch.randn(M, D), **REFERENCE)


WAITS = {
    "item": lambda x: x.sum().item(),
    "an if": lambda x: bool(x.sum()),
    "tolist": lambda x: x.tolist(),
    "a copy to the host": lambda x: x.cpu(),
    "a copy into a tensor of the host": lambda x: torch.zeros(N, D).copy_(x),
    "a copy from the host": lambda x: torch.zeros(N).to(GPU),
    "a tensor of Python's numbers": lambda x: torch.tensor([1.0, 2.0], device=GPU),
    "nonzero": lambda x: x.nonzero(),
    "rows by a mask": lambda x: x[x[:, 0] > 0],
    "rows set by a mask": lambda x: x.detach().index_put_((x[:, 0] > 0,), x[:1].detach()),
    "rows by numbers on the host": lambda x: x[torch.tensor([0, 1])],
    "equal": lambda x: torch.equal(x, x),
    "unique": lambda x: x.unique(),
    "repeat_interleave": lambda x: x.repeat_interleave(torch.ones(N, dtype=torch.int64, device=GPU), dim=0),
}


@pytest.mark.parametrize("wait", WAITS)
def test_whatever_waits_is_noticed(wait: str) -> None:
    with pytest.raises(HostWaits, match=r"cuda_rehearsal/test_operators.py: <lambda>"):
        WAITS[wait](rows(N))


FREE = {
    "a copy that does not block": lambda x: torch.zeros(N).to(GPU, non_blocking=True),
    "a number of the host": lambda x: x * torch.tensor(2.0) + 1,
    "rows by numbers": lambda x: x[torch.arange(2, device=GPU)],
    "masked_fill": lambda x: x.masked_fill(x > 0, 0.0),
    "repeat_interleave by a number": lambda x: x.repeat_interleave(2, dim=0),
}


@pytest.mark.parametrize("free", FREE)
def test_and_nothing_else(free: str) -> None:
    assert FREE[free](rows(N)).device == GPU


def test_tensors_of_the_cpu_have_numbers() -> None:
    assert torch.arange(4).sum().item() == 6
