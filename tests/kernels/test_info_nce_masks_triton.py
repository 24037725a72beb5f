"""Triton's masks against the eager expression in float64, on a GPU or in Triton's interpreter.

Errors are relative to the largest absolute value. Losses come of products accumulated in float32 and are right to 2e-5
in every dtype; gradients to 1e-5 in float32, 1e-2 in bfloat16 and 1e-3 in float16, which round the weights once.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffcse_kernels import NegativeSet, info_nce
from torch import Tensor

from tests.support.kernels.eager_info_nce import eager_info_nce, loss_and_gradients, random_rows
from tests.support.kernels.masked_info_nce import CASES, N, ids, masked_info_nce, masked_inputs

pytest.importorskip("triton")
from diffcse_kernels.triton import similarity, strips

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-3}


def error(value: Tensor, truth: Tensor) -> float:
    return float((value.double().cpu() - truth).abs().max() / truth.abs().max().clamp_min(1e-30))


def moved(value: Any) -> Any:
    """Tensors of a case on the device."""
    if isinstance(value, list | tuple):
        return type(value)(moved(one) for one in value)
    return value.to(DEVICE) if isinstance(value, Tensor) else value


def check(options: dict[str, Any], dtype: torch.dtype, **shape: int) -> None:
    inputs = masked_inputs(options, dtype=dtype, **shape)
    options = {name: value for name, value in options.items() if name != "temperature"}
    exact = {name: value.double() for name, value in inputs.items()}
    truth = loss_and_gradients(masked_info_nce(eager_info_nce), exact, **options)
    given = {name: moved(value) for name, value in options.items()}
    leaves = {name: value.to(DEVICE) for name, value in inputs.items()}
    found = loss_and_gradients(masked_info_nce(info_nce), leaves, impl="triton", **given)
    assert error(found[0], truth[0]) <= 2e-5
    for value, true, leaf in zip(found[1], truth[1], inputs.values(), strict=True):
        assert value.dtype == leaf.dtype
        if leaf.dim() or dtype == torch.float32:  # the temperature's is a sum that cancels
            assert error(value, true) <= TOLERANCES[dtype]


# every case in float32, and in half precision those that have most in them; the slow tests have the others
TOGETHER = ("hard negatives with ids", "multiple positives of all sets", "logsumexp of what counts")
FAST = {(case, torch.float32) for case in CASES} | {(case, dtype) for case in TOGETHER for dtype in TOLERANCES}


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        pytest.param(case, dtype, id=f"{case}-{dtype}", marks=() if (case, dtype) in FAST else pytest.mark.slow)
        for case in CASES
        for dtype in TOLERANCES
    ],
)
def test_equals_the_eager_expression_in_float64(case: str, dtype: torch.dtype) -> None:
    check({"positive_offset": 7, **CASES[case]}, dtype)


@pytest.mark.parametrize(
    "options", [pytest.param({}, marks=pytest.mark.slow), {"margin": 0.1}, {"multiple_positives": True}], ids=str
)
def test_several_tiles_strips_and_splits(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strips, "WORKSPACE_BYTES", 1)
    monkeypatch.setattr(similarity, "PROGRAMS", 4)
    given = {"query_ids": ids(70, 2, of=30), "key_ids": ids(150, 2, seed=1, of=30), "positive_offset": 65}
    sets = {"sets": [(None, None), (ids(90, 2, seed=2, of=30), 15)]}
    check(
        {**given, **sets, **options, "reduction": "none", "return_lse": True},
        torch.float32,
        rows=70,
        columns=150,
        others=90,
    )


@pytest.mark.parametrize(
    ("dtype", "temperature"), [(torch.float32, 0.01), (torch.bfloat16, 0.05), (torch.float16, 0.05)], ids=str
)
def test_a_row_without_negatives_has_no_loss_and_no_gradient(dtype: torch.dtype, temperature: float) -> None:
    inputs = {"queries": random_rows(N, 8, seed=1).to(DEVICE, dtype), "keys": random_rows(N, 8).to(DEVICE, dtype)}
    same = torch.zeros(N, dtype=torch.int64, device=DEVICE)
    for mask in ({"query_ids": same, "key_ids": same}, {"margin": -2.5}):
        loss, gradients = loss_and_gradients(info_nce, inputs, impl="triton", temperature=temperature, **mask)
        assert not loss.any()
        assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_copies_of_the_positive_are_not_above_it(dtype: torch.dtype) -> None:
    """Though a processor adds a product up in another order at the edge of a tile: a margin of 0 leaves them in."""
    queries, keys = random_rows(40, 80).to(DEVICE, dtype), random_rows(1, 80, seed=1).to(DEVICE, dtype)
    same = keys.expand(70, 80)
    _, lse = info_nce(queries, same, margin=0.0, return_lse=True, impl="triton")
    _, all_of_them = info_nce(queries, same, return_lse=True, impl="triton")
    torch.testing.assert_close(lse, all_of_them, rtol=1e-6, atol=1e-5)


@pytest.mark.slow
def test_the_operators_keep_their_promises_to_pytorch() -> None:
    queries, keys = (random_rows(count, 4).float().to(DEVICE).requires_grad_() for count in (6, 8))
    temperature, upstream = torch.tensor(0.1, device=DEVICE), torch.full((6,), 0.5, device=DEVICE)
    of_ids = torch.arange(6, device=DEVICE)[:, None] // 2, torch.arange(5, device=DEVICE)[:, None] // 2
    for multiple in (False, True):
        options = (*of_ids, 6, 0, None, 0.0, True, [1], 0.1, multiple, True, True, False, "triton")
        operator = torch.ops.diffcse_kernels.info_nce.default
        torch.library.opcheck(operator, (queries, keys, temperature, upstream, *options))
        backward = torch.ops.diffcse_kernels.info_nce_backward.default
        plain = queries.detach(), keys.detach(), temperature
        torch.library.opcheck(backward, (upstream, upstream.clone(), *plain, *options))


def test_a_set_of_its_own_rows_leaves_out_the_diagonal() -> None:
    queries, keys = (random_rows(40, 8, seed=seed).float().to(DEVICE) for seed in (0, 1))
    own = NegativeSet(queries, excluded_offset=0)
    _, stats = info_nce(queries, keys, negatives=[own], margin=0.0, return_stats=True, impl="triton")
    assert stats.accuracy == 1  # all that is more similar than the positive is left out
