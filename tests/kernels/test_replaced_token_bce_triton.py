"""Triton's replaced-token detection against float64, on whatever runs it here: a GPU, or Triton's interpreter.

`error <= error of plain PyTorch in the same dtype + tolerance` and, because only results are rounded to the inputs'
dtype, `error <= the dtype's epsilon + tolerance`. Errors are relative, in the Euclidean norm. The tolerance is 1e-6 for
the loss and 5e-6 for gradients, of which the bias's is the small difference of large sums.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
import torch
from diffcse_kernels import replaced_token_bce
from torch import Tensor

from tests.support.kernels.eager_bce import (
    DEVICES,
    eager_bce,
    error,
    implementation,
    loss_and_gradients,
    random_case,
)
from tests.support.kernels.faults import with_fault

pytest.importorskip("triton")
from diffcse_kernels.triton import replaced_token_bce as triton_module

public_module = import_module("diffcse_kernels.replaced_token_bce")  # its name is the function's, too
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def check(case: dict[str, Tensor]) -> None:
    exact = {name: value.double() if value.is_floating_point() else value for name, value in case.items()}
    truth = loss_and_gradients(eager_bce, exact)
    ours, eager = loss_and_gradients(implementation("triton"), case), loss_and_gradients(eager_bce, case)
    assert ours[0].dtype == torch.float32
    assert error(ours[0], truth[0]) <= min(1e-6, error(eager[0], truth[0]) + 1e-6)
    names = ("hidden", "weight", "bias")
    for name, value, same_dtype, correct in zip(names, ours[1], eager[1], truth[1], strict=True):
        dtype = case[name].dtype
        assert value.dtype == dtype
        assert error(value, correct) <= min(error(same_dtype, correct), torch.finfo(dtype).eps) + 5e-6, name
    assert implementation("triton")(**case)[1] == implementation("reference")(**case)[1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("tokens", "width"),
    [
        (1, 1),
        (1, 7),
        (70, 33),  # more rows than programs
        (5, 128),  # exactly one part
        (40, 300),  # three parts, the last one ragged
        (3, 1100),  # more than a warp a row
    ],
)
def test_is_as_accurate_as_pytorch_in_the_same_dtype(tokens: int, width: int, dtype: torch.dtype) -> None:
    check(random_case(tokens, width, dtype))


def test_inputs_may_differ_in_dtype_and_be_strided() -> None:
    case = random_case(24, 40, torch.bfloat16)
    case |= {"weight": case["weight"].float(), "bias": case["bias"].float().reshape(1)}
    case |= {"edited_ids": case["edited_ids"].int(), "mask": case["mask"].repeat_interleave(2)[::2]}
    case["hidden"] = case["hidden"].T.contiguous().T
    expected = loss_and_gradients(implementation("reference"), case)
    found = loss_and_gradients(implementation("triton"), case)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("width", [1, 33, 384, 640, 768, 1000, 1024, 4096, 5120, 8192, 16384])
def test_tiles_cover_a_row_and_leave_registers_free(width: int) -> None:
    tile = triton_module.forward_tiles(width)
    columns = tile.part * tile.parts
    assert columns - tile.part < width <= columns
    # a thread holds the row, the weight and its gradient, of 255 registers
    assert columns <= 32 * (32 * tile.num_warps)
    assert triton_module.backward_tiles(width).block_d >= width


def test_float64_is_refused() -> None:
    case = {name: value.to(DEVICES["triton"]) for name, value in random_case(5, 3).items()}
    with pytest.raises(ValueError, match="does not compute in float64"):
        replaced_token_bce(**case, impl="triton")


def confident_case() -> dict[str, Tensor]:
    """Every token is called what it is, with a logit of 20."""
    case = random_case(6, 4, torch.float32)
    signs = torch.where(case["original_ids"] != case["edited_ids"], 20.0, -20.0)
    return case | {
        "hidden": signs[:, None].expand(6, 4),
        "weight": torch.tensor([1.0, 0, 0, 0]),
        "bias": torch.zeros(()),
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("state += (tl.load(first + here, mask=here < width", "state += (tl.load(first + here, mask=here < width - 1"),
        ("here, grad_weight[part],", "here, tl.where(here < 256, grad_weight[part], 0),"),
        ("rows < tokens, other=0) * tl.load(upstream)", "rows < tokens, other=0)"),
        ("products += state[part] * head[part]", "products = state[part] * head[part]"),
        ("(so_far[part] + slope * state[part],)", "(slope * state[part],)"),
        ("loss_sum += tl.where", "loss_sum = tl.where"),
        ("slope = tl.where(counted, slope, 0)", "slope = slope"),
        ("(logit <= 0)", "(logit < 1)"),
    ],
    ids=[
        "wrong mask in the sum",
        "wrong mask in the gradient",
        "missing factor in backward",
        "truncated logit",
        "truncated gradient",
        "truncated loss",
        "slopes outside the mask",
        "wrong count",
    ],
)
def test_the_comparison_notices_a_fault(old: str, new: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = random_case(40, 300, torch.float32)
    check(case)
    faulty = with_fault(triton_module, old, new, tmp_path)
    monkeypatch.setattr(triton_module, "forward_kernel", faulty.forward_kernel)
    monkeypatch.setattr(triton_module, "backward_kernel", faulty.backward_kernel)
    with pytest.raises(AssertionError):
        check(case)


@pytest.mark.slow
def test_the_comparison_notices_losses_lost_to_rounding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(confident_case())
    faulty = with_fault(triton_module, "+ log1p,", "+ tl.log(1 + e),", tmp_path)
    monkeypatch.setattr(triton_module, "forward_kernel", faulty.forward_kernel)
    with pytest.raises(AssertionError):
        check(confident_case())
