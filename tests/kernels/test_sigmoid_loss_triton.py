"""Triton's `sigmoid_loss` against float64, on whatever runs it here: a GPU, or Triton's interpreter.

Errors are relative to the largest absolute value. Losses and the gradients of temperature and bias are sums in float32:
2e-5. Gradients of rows: float32 5e-6; bfloat16 8e-3 and float16 1e-3, one rounding of the slopes and one of the result.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffcse_kernels import sigmoid_loss
from torch import Tensor

from tests.support.kernels.eager_info_nce import loss_and_gradients, random_rows
from tests.support.kernels.eager_sigmoid_loss import eager_sigmoid_loss

pytest.importorskip("triton")
from diffcse_kernels.triton import similarity

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCES = {torch.float32: 5e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
DTYPES = list(TOLERANCES)


def rows(count: int, width: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return random_rows(count, width, seed=seed).to(dtype).to(DEVICE)


def ids(count: int, columns: int, seed: int) -> Tensor:
    """Some of which are equal, beyond 32 bits."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(20, (count, columns), generator=generator).mul(2**33).to(DEVICE)


def error(value: Tensor, truth: Tensor) -> float:
    return float((value.double().cpu() - truth).abs().max() / truth.abs().max().clamp_min(1e-37))


def check(inputs: dict[str, Tensor], temperature: float = 0.1, bias: float = -5.0, **options: Any) -> None:
    learnt = {"temperature": torch.tensor(temperature), "bias": torch.tensor([bias])}
    inputs = inputs | {name: value.to(DEVICE) for name, value in learnt.items()}
    exact_inputs = {name: value.double().cpu() for name, value in inputs.items()}
    exact_options = {name: value.cpu() if isinstance(value, Tensor) else value for name, value in options.items()}
    truth, true_gradients = loss_and_gradients(eager_sigmoid_loss, exact_inputs, **exact_options)
    loss, gradients = loss_and_gradients(sigmoid_loss, inputs, impl="triton", **options)
    assert loss.dtype == torch.float32
    assert error(loss, truth) < 2e-5
    wider = torch.promote_types(inputs["queries"].dtype, inputs["keys"].dtype)
    for name, gradient, exact in zip(inputs, gradients, true_gradients, strict=True):
        assert gradient.dtype == inputs[name].dtype
        tolerance = max(TOLERANCES[wider], torch.finfo(gradient.dtype).eps) if exact.dim() == 2 else 2e-5
        assert error(gradient, exact) < tolerance, name


@pytest.mark.parametrize(
    ("queries", "keys", "width", "offset", "id_columns", "dtype"),
    [
        (96, 96, 80, 0, 0, torch.float16),  # one tile, ragged everywhere
        (70, 150, 200, 33, 1, torch.bfloat16),  # several tiles of columns and of width
        (150, 300, 64, 150, 3, torch.float32),  # several strips; the last keys are positives
        (1, 1, 1, 0, 0, torch.float32),  # no negatives
    ],
    ids=str,
)
def test_equals_the_eager_expression(
    queries: int,
    keys: int,
    width: int,
    offset: int,
    id_columns: int,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    strips = [slice(start, min(start + 128, queries)) for start in range(0, queries, 128)]
    monkeypatch.setattr(similarity, "strips", lambda pair: strips)
    options: dict[str, Any] = {"positive_offset": offset}
    if id_columns:
        options |= {"query_ids": ids(queries, id_columns, 3), "key_ids": ids(keys, id_columns, 4)}
    check({"queries": rows(queries, width, dtype), "keys": rows(keys, width, dtype, seed=1)}, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {"normalize": False, "temperature": 4.0},
        {"temperature": 0.01, "bias": -10.0, "reduction": "none"},
        {"temperature": 0.01, "bias": 60.0},  # all negatives are wrong
    ],
    ids=str,
)
def test_options(options: dict[str, Any], dtype: torch.dtype) -> None:
    check({"queries": rows(40, 48, dtype), "keys": rows(44, 48, dtype, seed=1)}, **options)


@pytest.mark.parametrize(
    ("of_queries", "of_keys"), [(torch.bfloat16, torch.float32), (torch.float16, torch.bfloat16)], ids=str
)
def test_strided_views_of_different_dtypes(of_queries: torch.dtype, of_keys: torch.dtype) -> None:
    queries = rows(27, 16, of_queries).unflatten(0, (-1, 3))[:, 1]  # as a trainer has the views of a sentence
    keys = rows(16, 12, of_keys, seed=1).T
    own = ids(24, 2, 3)[::2]
    check({"queries": queries, "keys": keys}, positive_offset=2, query_ids=own[:9], key_ids=own)


def test_pairs_that_are_nearly_certain_keep_their_small_losses_and_gradients() -> None:
    queries = torch.eye(8, 16, device=DEVICE) * 3
    check({"queries": queries, "keys": queries.clone()}, 0.02, -25.0)  # every pair's loss is exp(-25): 1 + it is 1


def test_rows_of_zeros_and_no_rows() -> None:
    queries, keys = rows(9, 16, torch.float32), rows(9, 16, torch.float32, seed=1)
    queries[3], keys[7] = 0, 0
    inputs = {"queries": queries, "keys": keys}
    found = loss_and_gradients(sigmoid_loss, inputs, impl="triton")
    torch.testing.assert_close(found, loss_and_gradients(sigmoid_loss, inputs, impl="reference"))
    assert not found[1][0][3].any() and not found[1][1][7].any()
    assert sigmoid_loss(queries[:0], keys, impl="triton") == 0


def test_a_key_that_is_no_number_is_not_left_out() -> None:
    queries, keys = rows(9, 16, torch.float32), rows(10, 16, torch.float32, seed=1)
    keys[9] = torch.nan  # nobody's positive
    assert sigmoid_loss(queries, keys, reduction="none", impl="triton").isnan().all()


def test_only_the_temperature_and_the_bias_are_learnt() -> None:
    """The slopes are not kept then."""
    queries, keys = rows(30, 8, torch.bfloat16), rows(30, 8, torch.bfloat16, seed=1)
    learnt = {"temperature": torch.tensor(0.1, device=DEVICE), "bias": torch.tensor(-5.0, device=DEVICE)}
    _, found = loss_and_gradients(lambda **leaves: sigmoid_loss(queries, keys, **leaves, impl="triton"), learnt)
    exact = queries.double().cpu(), keys.double().cpu()
    _, truth = loss_and_gradients(
        lambda **leaves: eager_sigmoid_loss(*exact, **leaves),
        {name: value.double().cpu() for name, value in learnt.items()},
    )
    assert max(error(value, true) for value, true in zip(found, truth, strict=True)) < 2e-5


def test_the_operator_keeps_its_promises_to_pytorch() -> None:
    queries, keys = (rows(4, 6, torch.float32, seed=seed).T.requires_grad_() for seed in (0, 1))
    coefficients, own = torch.full((6,), 0.5, device=DEVICE), ids(6, 2, 3)
    numbers = torch.tensor(0.1, device=DEVICE), torch.tensor(-5.0, device=DEVICE)
    arguments = (queries, keys, *numbers, coefficients, own, own, 0, True, [True] * 4, "triton")
    torch.library.opcheck(torch.ops.diffcse_kernels.sigmoid_loss.default, arguments, test_utils="test_faketensor")
