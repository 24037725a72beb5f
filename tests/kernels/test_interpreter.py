"""What Triton's interpreter makes of bfloat16 once `diffcse_kernels.triton` is imported: what a GPU would."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
import diffcse_kernels.triton  # noqa: F401
import triton
import triton.language as tl

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter stands in for a GPU")


@triton.jit
def product_kernel(left, right, product, rounded, SIZE: tl.constexpr):
    """product = left @ right in float32; rounded = product.bfloat16()."""
    place = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    result = tl.dot(tl.load(left + place), tl.load(right + place))
    tl.store(product + place, result)
    tl.store(rounded + place, result.to(tl.bfloat16))


def test_products_of_bfloat16_are_right_and_casts_round_to_nearest_even() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(32, 32, generator=generator).bfloat16() for _ in range(2))
    product, rounded = torch.empty(32, 32), torch.empty(32, 32, dtype=torch.bfloat16)
    product_kernel[(1,)](left, right, product, rounded, SIZE=32)
    torch.testing.assert_close(product.double(), left.double() @ right.double(), rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(rounded, product.bfloat16(), rtol=0, atol=0)
