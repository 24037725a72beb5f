"""Triton's InfoNCE against float64, on whatever runs it here: a GPU, or Triton's interpreter.

`error <= error of plain PyTorch in the same dtype + tolerance`, errors relative to the largest absolute value. The
tolerances: float32 5e-6 (a logit of 100 is off by 6e-6); bfloat16 8e-3 and float16 1e-3, one rounding of the weights
(2^-9 and 2^-12) with room for their sum. Losses are made of products accumulated in float32 for every dtype: 2e-5.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffcse_kernels import info_nce
from torch import Tensor

from tests.support.kernels.eager_info_nce import eager_info_nce, loss_and_gradients
from tests.support.kernels.faults import with_fault

pytest.importorskip("triton")
from diffcse_kernels.triton import info_nce as triton_info_nce
from diffcse_kernels.triton import row_gradients, similarity, strips
from diffcse_kernels.triton.normed_rows import Rows

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCES = {torch.float32: 5e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
DTYPES = list(TOLERANCES)


def rows(count: int, width: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    values = torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.to(dtype).to(DEVICE)


def error(value: Tensor, truth: Tensor) -> float:
    """Relative to the largest absolute value."""
    return float((value.double().cpu() - truth.cpu()).abs().max() / truth.abs().max().cpu().clamp_min(1e-30))


def check(inputs: dict[str, Tensor], dtype: torch.dtype, **options: Any) -> None:
    """Loss and gradients of Triton are no worse than PyTorch's in the same dtype, but for the tolerance."""
    exact_inputs = {name: value.double().cpu() for name, value in inputs.items()}
    truth = loss_and_gradients(eager_info_nce, exact_inputs, **options)
    eager = loss_and_gradients(eager_info_nce, {name: value.cpu() for name, value in inputs.items()}, **options)
    found = loss_and_gradients(info_nce, inputs, impl="triton", **options)
    assert found[0].dtype == torch.float32
    assert error(found[0], truth[0]) <= error(eager[0], truth[0]) + 2e-5
    for value, same_dtype, exact in zip(found[1], eager[1], truth[1], strict=True):
        assert value.dtype == same_dtype.dtype
        assert error(value, exact) <= error(same_dtype, exact) + TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("queries", "keys", "width", "offset"),
    [
        (96, 96, 80, 0),  # one tile, ragged everywhere
        (70, 150, 200, 33),  # several tiles of columns and of width
        (150, 300, 64, 150),  # several strips; the last keys are positives
        (1, 1, 1, 0),  # no negatives
        (1, 7, 3, 6),
    ],
)
def test_is_as_accurate_as_pytorch_in_the_same_dtype(
    queries: int, keys: int, width: int, offset: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strips, "WORKSPACE_BYTES", 128 * 300 * dtype.itemsize)  # a strip of one tile's rows
    inputs = {"queries": rows(queries, width, dtype), "keys": rows(keys, width, dtype, seed=1)}
    check(inputs, dtype, positive_offset=offset)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "options",
    [
        {"normalize": False, "temperature": 4.0},
        {"normalize": False, "positive_offset": 2, "temperature": 2.0},
        {"temperature": 0.01},  # exponents beyond what a fixed shift can hold
        {"reduction": "sum"},
        {"reduction": "none"},
        {"symmetric": True},
    ],
    ids=str,
)
def test_options(options: dict[str, Any], dtype: torch.dtype) -> None:
    queries = rows(5, 1, dtype) if "positive_offset" in options else rows(70, 48, dtype)
    keys = rows(70, queries.shape[1], dtype, seed=1)
    check({"queries": queries, "keys": keys}, dtype, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [0.01, 1.0, 30.0])
def test_dot_products_of_rows_of_any_length(dtype: torch.dtype, length: float) -> None:
    inputs = {"queries": rows(20, 16, dtype) * length, "keys": rows(24, 16, dtype, seed=1)}
    temperature = max(1.0, 4 * length)  # logits of the same size
    check(inputs, dtype, normalize=False, temperature=temperature)


@pytest.mark.parametrize("columns", [1, 31, 33])
def test_rows_of_a_strip_begin_at_multiples_of_16_bytes(columns: int) -> None:
    both = Rows.both(rows(5, 16, torch.bfloat16), rows(columns, 16, torch.bfloat16, seed=1), True)
    pair = similarity.Pair(*both, torch.ones(1, device=DEVICE), normalized=True, positive=0)
    shifts = torch.ones(5, device=DEVICE)
    weights, *_ = similarity.exponentials(pair, slice(0, 5), shifts, similarity.unit_of_exponentials(pair))
    assert weights.shape == (5, columns)
    assert weights.stride(0) * weights.element_size() % 16 == 0
    whole = weights.as_strided((5, weights.stride(0)), weights.stride())
    assert not whole[:, columns:].any()  # what lies between the rows is no leftover of other memory


@pytest.mark.parametrize("dtype", DTYPES)
def test_strided_views_are_what_their_copies_are(dtype: torch.dtype) -> None:
    views = rows(27, 16, dtype).unflatten(0, (-1, 3)).unbind(1)  # as a trainer has the views of a sentence
    names = ("queries", "keys", "hard_negatives")
    strided = info_nce(**dict(zip(names, views, strict=True)), impl="triton")
    copies = info_nce(**dict(zip(names, (view.clone() for view in views), strict=True)), impl="triton")
    torch.testing.assert_close(strided, copies, rtol=0, atol=0)
    transposed = rows(16, 9, dtype).T, rows(16, 9, dtype, seed=1).T
    found = info_nce(*transposed, impl="triton")
    torch.testing.assert_close(found, info_nce(*(view.contiguous() for view in transposed), impl="triton"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_negatives_that_are_all_opposite_at_a_low_temperature(dtype: torch.dtype) -> None:
    queries = torch.ones(6, 16, dtype=dtype, device=DEVICE) + rows(6, 16, dtype) / 16
    keys = -queries.flip(0)  # logits near -100: exponentials relative to the largest possible one would all be 0
    check({"queries": queries, "keys": keys}, dtype, temperature=0.01)


MIXED = [(torch.bfloat16, torch.float32), (torch.float32, torch.float16), (torch.float16, torch.bfloat16)]


@pytest.mark.parametrize(("of_queries", "of_keys"), MIXED, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_queries_and_keys_may_differ_in_dtype(of_queries: torch.dtype, of_keys: torch.dtype, reduction: str) -> None:
    inputs = {"queries": rows(9, 16, of_queries), "keys": rows(12, 16, of_keys, seed=1)}
    loss, gradients = loss_and_gradients(info_nce, inputs, impl="triton", reduction=reduction)
    exact = {name: value.double().cpu() for name, value in inputs.items()}
    truth, true_gradients = loss_and_gradients(eager_info_nce, exact, reduction=reduction)
    assert error(loss, truth) < 5e-6  # nothing was rounded to the smaller of the two dtypes
    for gradient, true, given in zip(gradients, true_gradients, inputs.values(), strict=True):
        assert gradient.dtype == given.dtype
        assert error(gradient, true) < 5e-6 + torch.finfo(given.dtype).eps


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_hard_negatives_weights_and_a_learnt_temperature(reduction: str) -> None:
    dtype = torch.float32
    inputs = {
        "queries": rows(40, 24, dtype),
        "keys": rows(60, 24, dtype, seed=1),
        "hard_negatives": rows(50, 24, dtype, seed=2),
        "temperature": torch.tensor(0.07, device=DEVICE),
    }
    weights = torch.rand(40, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(DEVICE)
    check(
        inputs, dtype, positive_offset=11, hard_negative_offset=7, hard_negative_weight=1.5,
        row_weights=weights.cpu() if DEVICE == "cpu" else weights, reduction=reduction,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_temperature_alone_may_need_a_gradient(dtype: torch.dtype) -> None:
    temperature = torch.tensor(0.07, device=DEVICE, requires_grad=True)
    queries, keys = rows(40, 24, dtype), rows(60, 24, dtype, seed=1)
    queries[3] = 0  # no direction, no part in it
    (found,) = torch.autograd.grad(info_nce(queries, keys, temperature, impl="triton"), temperature)
    exact = torch.tensor(0.07, dtype=torch.float64, requires_grad=True)
    (truth,) = torch.autograd.grad(eager_info_nce(queries.double().cpu(), keys.double().cpu(), exact), exact)
    assert found.item() == pytest.approx(truth.item(), rel=TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0.05, 0.01])
def test_identical_and_orthogonal_rows(dtype: torch.dtype, temperature: float) -> None:
    same = torch.ones(20, 32, dtype=dtype, device=DEVICE, requires_grad=True)
    loss = info_nce(same, same, temperature, impl="triton")
    loss.backward()
    assert loss.item() == pytest.approx(torch.tensor(20.0).log().item(), rel=1e-5)
    # the gradients of 1/T = 20 or 100 in size cancel, but for one rounding of each weight
    assert same.grad is not None and float(same.grad.abs().max()) < TOLERANCES[dtype] / temperature / 20
    orthogonal = torch.eye(40, 48, dtype=dtype, device=DEVICE)
    check({"queries": orthogonal, "keys": orthogonal.clone()}, dtype, temperature=temperature)


@pytest.mark.parametrize("dtype", DTYPES)
def test_hard_positives(dtype: torch.dtype) -> None:
    queries = rows(30, 16, dtype)
    keys = rows(30, 16, dtype, seed=1)
    keys[:10] = -queries[:10]  # cosine -1 to the positive
    keys[20:25] = queries[10:15]  # another key is the query itself
    check({"queries": queries, "keys": keys}, dtype, temperature=0.02)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_zeros_have_cosine_zero_and_no_gradient(dtype: torch.dtype) -> None:
    queries, keys = rows(30, 16, dtype), rows(30, 16, dtype, seed=1)
    queries[3], keys[7], keys[3] = 0, 0, 0
    loss, gradients = loss_and_gradients(info_nce, {"queries": queries, "keys": keys}, impl="triton")
    exact = loss_and_gradients(info_nce, {"queries": queries.double(), "keys": keys.double()}, impl="reference")
    assert float(loss) == pytest.approx(float(exact[0]), rel=2e-5)
    for value, truth in zip(gradients, exact[1], strict=True):
        assert error(value, truth) < TOLERANCES[dtype]
    assert not gradients[0][3].any() and not gradients[1][7].any() and not gradients[1][3].any()


def test_nearly_certain_positives_keep_their_relative_precision() -> None:
    queries = torch.eye(8, 16, device=DEVICE) * 3
    inputs = {"queries": queries, "keys": queries.clone()}
    loss, gradients = loss_and_gradients(info_nce, inputs, impl="triton", temperature=0.05)
    truth = loss_and_gradients(eager_info_nce, {k: v.double().cpu() for k, v in inputs.items()}, temperature=0.05)
    assert float(loss) == pytest.approx(float(truth[0]), rel=1e-5)  # 7 exp(-20): 1 - p would be 0 in float32
    for value, exact in zip(gradients, truth[1], strict=True):
        assert error(value, exact) < 1e-5


def test_statistics_are_those_of_the_reference() -> None:
    queries, keys = rows(50, 24, torch.float32), rows(90, 24, torch.float32, seed=1)
    queries[:20] += keys[5:25]
    for wanted in (True, False):
        queries.requires_grad_(wanted)
        options: dict[str, Any] = {"positive_offset": 5, "hard_negatives": rows(9, 24, torch.float32, seed=2)}
        _, expected = info_nce(queries, keys, impl="reference", return_stats=True, **options)
        _, found = info_nce(queries, keys, impl="triton", return_stats=True, **options)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_loss_scale_does_not_overflow_and_small_gradients_do_not_underflow() -> None:
    inputs = {"queries": rows(60, 32, torch.float16), "keys": rows(60, 32, torch.float16, seed=1)}
    inputs["keys"] += inputs["queries"]  # easy positives: gradients of 1e-6
    scaled = loss_and_gradients(lambda **leaves: info_nce(**leaves, impl="triton") * 1024, inputs)
    truth = loss_and_gradients(eager_info_nce, {name: value.double().cpu() for name, value in inputs.items()})
    for value, exact in zip(scaled[1], truth[1], strict=True):
        assert error(value.double() / 1024, exact) < 2e-3


def test_autocast_changes_nothing() -> None:
    inputs = {"queries": rows(20, 16, torch.float32), "keys": rows(20, 16, torch.float32, seed=1)}
    options: dict[str, Any] = {"impl": "triton", "return_stats": True}
    expected = info_nce(**inputs, **options), loss_and_gradients(info_nce, inputs, impl="triton")
    with torch.autocast(DEVICE, torch.bfloat16):
        found = info_nce(**inputs, **options), loss_and_gradients(info_nce, inputs, impl="triton")
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("transposed", [False, True])
def test_the_operators_keep_their_promises_to_pytorch(transposed: bool) -> None:
    queries, keys = (rows(6, 4, torch.float32, seed=seed) for seed in (0, 1))
    if transposed:
        queries, keys = (values.T.contiguous().T for values in (queries, keys))
    queries, keys = queries.requires_grad_(), keys.requires_grad_()
    temperature = torch.tensor(0.1, device=DEVICE)
    options = (None, None, 6, 0, None, 0.0, True, [], None, False, True, True, False, "triton")
    coefficients = torch.full((6,), 0.5, device=DEVICE)
    operator = torch.ops.diffcse_kernels.info_nce.default
    torch.library.opcheck(operator, (queries, keys, temperature, coefficients, *options))
    backward = torch.ops.diffcse_kernels.info_nce_backward.default
    torch.library.opcheck(
        backward, (coefficients, coefficients[:0].clone(), queries.detach(), keys.detach(), temperature, *options)
    )


def test_strips_and_splits_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = {"queries": rows(200, 16, torch.float32), "keys": rows(200, 16, torch.float32, seed=1)}
    whole = loss_and_gradients(info_nce, inputs, impl="triton", temperature=0.01)
    monkeypatch.setattr(strips, "WORKSPACE_BYTES", 1)
    monkeypatch.setattr(similarity, "PROGRAMS", 1)
    parts = loss_and_gradients(info_nce, inputs, impl="triton", temperature=0.01)
    for part, value in zip((parts[0], *parts[1]), (whole[0], *whole[1]), strict=True):
        assert error(part, value) < 1e-5  # the shifts differ by what each split has seen


FAULTS = {
    "the ragged edge of the columns is not masked": (
        similarity,
        "negatives = tl.where(is_positive | ~is_column[None, :], ",
        "negatives = tl.where(is_positive, ",
    ),
    "the last step along the width is left out": (
        similarity,
        "for start in range(0, width, BLOCK_D):",
        "for start in range(0, width - BLOCK_D, BLOCK_D):",
    ),
    "the gradients miss the norms": (
        row_gradients,
        "* factor[:, None]",
        "",
    ),
    "the radial part stays in the gradients": (
        row_gradients,
        "    if PROJECT:\n",
        "    if False:\n",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_caught(fault: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    inputs = {"queries": rows(70, 150, torch.float32), "keys": rows(90, 150, torch.float32, seed=1)}
    check(inputs, torch.float32)
    module, old, new = FAULTS[fault]
    changed = with_fault(module, old, new, tmp_path)
    if module is similarity:
        monkeypatch.setattr(similarity, "exponentials_kernel", changed.exponentials_kernel)
    else:
        monkeypatch.setattr(triton_info_nce, "finish_", changed.finish_)
    with pytest.raises(AssertionError):
        check(inputs, torch.float32)
