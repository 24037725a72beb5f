"""Triton's `matryoshka_info_nce` against float64, on whatever runs it here: a GPU, or Triton's interpreter.

Errors are relative to the largest absolute value: losses and the temperature's gradient 2e-5; the rows' gradients in
float32 1e-5, in bfloat16 1.2e-2 and in float16 2e-3, a rounding of the sum of weights and one of the result.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffcse_kernels import matryoshka_info_nce
from torch import Tensor

from tests.support.kernels.eager_info_nce import loss_and_gradients, random_rows
from tests.support.kernels.eager_matryoshka_info_nce import eager_matryoshka_info_nce

pytest.importorskip("triton")
from diffcse_kernels.triton import strips

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1.2e-2, torch.float16: 2e-3}


def rows(count: int, width: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return random_rows(count, width, seed=seed).to(dtype).to(DEVICE)


def error(value: Tensor, truth: Tensor) -> float:
    return float((value.double().cpu() - truth).abs().max() / truth.abs().max().clamp_min(1e-37))


def check(inputs: dict[str, Tensor], temperature: float = 0.1, **options: Any) -> None:
    inputs = inputs | {"temperature": torch.tensor([temperature], device=DEVICE)}
    exact_inputs = {name: value.double().cpu() for name, value in inputs.items()}
    exact_options = {name: value.cpu() if isinstance(value, Tensor) else value for name, value in options.items()}
    truth, true_gradients = loss_and_gradients(eager_matryoshka_info_nce, exact_inputs, **exact_options)
    loss, gradients = loss_and_gradients(matryoshka_info_nce, inputs, impl="triton", **options)
    assert loss.dtype == torch.float32
    assert error(loss, truth) < 2e-5
    rounding = max(TOLERANCES[value.dtype] for value in inputs.values())
    for name, gradient, exact in zip(inputs, gradients, true_gradients, strict=True):
        assert gradient.dtype == inputs[name].dtype
        assert error(gradient, exact) < (rounding if exact.dim() == 2 else 2e-5), name


@pytest.mark.parametrize(
    ("dtype", "ragged"),
    [(torch.float32, True), (torch.bfloat16, False), (torch.float16, True)],
    ids=str,
)
def test_equals_a_call_for_each_prefix(dtype: torch.dtype, ragged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strips, "WORKSPACE_BYTES", 1)  # a strip of one tile's rows
    count, width = (70, 60) if dtype == torch.float32 else (140, 130)  # more than one strip
    generator = torch.Generator().manual_seed(0)
    own, others = (
        torch.randint(20, (number, 2), generator=generator).mul(2**33).to(DEVICE) for number in (count, count + 10)
    )
    options: dict[str, Any] = {"widths": [64, 128], "weights": [0.5, 1.0]}
    if ragged:  # widths that no tile divides, ids of the keys alone, negatives without ids
        options = {"widths": [5, 20, 50], "weights": [1.0, -0.7, 2.0], "query_ids": own, "key_ids": others}
    inputs = {"queries": rows(count, width, dtype), "keys": rows(count + 10, width, dtype, seed=1)}
    check(inputs | {"hard_negatives": rows(30, width, dtype, seed=2)}, positive_offset=7, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"normalize": False, "temperature": 4.0, "reduction": "none"},
        {"temperature": 0.01, "symmetric": True},
        {"weights": [0.0, 1.0], "reduction": "sum"},
    ],
    ids=str,
)
def test_options_strided_views_and_different_dtypes(options: dict[str, Any]) -> None:
    queries = rows(27, 16, torch.float16).unflatten(0, (-1, 3))[:, 1]  # as a trainer has the views of a sentence
    keys = rows(16, 9, torch.float32, seed=1).T
    check({"queries": queries, "keys": keys}, widths=[4, 15], **options)


def test_nearly_certain_positives_rows_of_zeros_and_rows_without_negatives() -> None:
    queries = torch.eye(8, 16, device=DEVICE) * 3
    check({"queries": queries, "keys": queries.clone()}, 0.05, widths=[12, 16])  # losses of 7 exp(-20)
    queries, keys = rows(9, 16, torch.float32), rows(9, 16, torch.float32, seed=1)
    queries[3], keys[7], keys[2, :4] = 0, 0, 0
    same = torch.zeros(9, dtype=torch.long, device=DEVICE)
    for ids in ({}, {"query_ids": same, "key_ids": same}):  # with the ids no column is a negative
        options: dict[str, Any] = {"temperature": 0.1, "widths": [4, 16], **ids}
        inputs = {"queries": queries, "keys": keys}
        found = loss_and_gradients(matryoshka_info_nce, inputs, impl="triton", **options)
        expected = loss_and_gradients(matryoshka_info_nce, inputs, impl="reference", **options)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert bool(ids) == (not found[0].any())


@pytest.mark.parametrize("nothing", ["row_weights", "queries", "keys"])
def test_float16_of_nothing_but_zeros_has_finite_gradients(nothing: str) -> None:
    inputs = {name: rows(9, 16, torch.float16, seed) for seed, name in enumerate(("queries", "keys"))}
    weights = torch.ones(9, device=DEVICE)
    (inputs | {"row_weights": weights})[nothing].zero_()
    options: dict[str, Any] = {"temperature": 0.1, "widths": [4, 16], "reduction": "sum", "row_weights": weights}
    found, expected = (
        loss_and_gradients(matryoshka_info_nce, inputs, impl=impl, **options) for impl in ("triton", "reference")
    )
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)


def test_the_default_dtype_does_not_matter() -> None:
    queries, keys = rows(9, 16, torch.float32), rows(9, 16, torch.float32, seed=1)
    expected = matryoshka_info_nce(queries, keys, 0.1, [4, 16], impl="triton")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(matryoshka_info_nce(queries, keys, 0.1, [4, 16], impl="triton"), expected)
    finally:
        torch.set_default_dtype(before)
