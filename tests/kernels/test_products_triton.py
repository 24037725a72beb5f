"""Products of half-precision matrices with float32 results, by what PyTorch's own functions turn out to compute."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
from diffcse_kernels.triton import products

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _probed_anew() -> Iterator[None]:
    for probe in (products.makes_float32, products.adds_to_float32):
        probe.cache_clear()
    yield
    for probe in (products.makes_float32, products.adds_to_float32):
        probe.cache_clear()


def refuses(*operands: Tensor, **_: Any) -> Tensor:
    raise RuntimeError("expected m1 and m2 to have the same dtype")


def rounds(*operands: Tensor, out_dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """A release that computes in half precision and says nothing."""
    *total, left, right = (operand.to(operands[-1].dtype) for operand in operands)
    result = sum(total, left @ right).to(out_dtype)
    return result if out is None else out.copy_(result)


def widens(*operands: Tensor, out_dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    *total, left, right = (operand.float() for operand in operands)
    result = sum(total, left @ right).to(out_dtype)
    return result if out is None else out.copy_(result)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("addition", [None, refuses, rounds, widens])
@pytest.mark.parametrize("multiplication", [None, refuses, rounds, widens])
def test_products_are_those_of_float32_whatever_pytorch_offers(
    dtype: torch.dtype, multiplication: Any, addition: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, right = (torch.linspace(1, 2, 35, device=DEVICE).view(*shape).to(dtype) for shape in ((7, 5), (5, 7)))
    exact = left.double() @ right.double()
    for name, replaced in (("mm", multiplication), ("addmm", addition)):
        if replaced is not None:
            own = getattr(torch, name)
            monkeypatch.setattr(
                torch, name, lambda *a, own=own, new=replaced, **k: (new if "out_dtype" in k else own)(*a, **k)
            )
    out, total = torch.empty(7, 7, device=DEVICE), torch.full((7, 7), 1 / 3, device=DEVICE)
    products.product_(out, left, right)
    products.accumulate_(total, left, right)
    torch.testing.assert_close(out.double(), exact, rtol=1e-6, atol=0)
    torch.testing.assert_close(total.double(), exact + 1 / 3, rtol=1e-6, atol=0)
