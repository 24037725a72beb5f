"""Products of half-precision matrices with float32 results, by what PyTorch's own operators turn out to compute.

PyTorch's operators for them have no kernel for CPUs, so that kernels of releases good and bad can be put there; a GPU
has one. Tolerance: 1e-6, the rounding of float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
from diffcse_kernels.triton import products

ON_GPU = torch.cuda.is_available()
Kernel = Callable[[Tensor, Tensor], Tensor]


@pytest.fixture(autouse=True)
def _probed_anew() -> Iterator[None]:
    for probe in (products.makes_float32, products.adds_to_float32):
        probe.cache_clear()
    yield
    for probe in (products.makes_float32, products.adds_to_float32):
        probe.cache_clear()


def rounds(left: Tensor, right: Tensor) -> Tensor:
    """A release that computes in half precision and says nothing."""
    return left @ right


def widens(left: Tensor, right: Tensor) -> Tensor:
    return left.float() @ right.float()


def install(library: torch.library.Library, multiplication: Kernel | None, addition: Kernel | None) -> None:
    """Give the CPU these kernels of `mm` and `addmm` with an `out_dtype`; None leaves it without, and it refuses."""
    if multiplication is not None:

        def mm(left: Tensor, right: Tensor, out_dtype: torch.dtype) -> Tensor:
            return multiplication(left, right).to(out_dtype)

        library.impl("mm.dtype", mm, "CPU")
        library.impl("mm.dtype_out", lambda *given, out: out.copy_(mm(*given)), "CPU")
    if addition is not None:

        def addmm(total: Tensor, left: Tensor, right: Tensor, out_dtype: torch.dtype) -> Tensor:
            product = addition(left, right)
            return (total.to(product.dtype) + product).to(out_dtype)

        library.impl("addmm.dtype", addmm, "CPU")
        library.impl("addmm.dtype_out", lambda *given, out: out.copy_(addmm(*given)), "CPU")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("addition", [None] if ON_GPU else [None, rounds, widens])
@pytest.mark.parametrize("multiplication", [None] if ON_GPU else [None, rounds, widens])
def test_products_are_those_of_float32_whatever_pytorch_offers(
    dtype: torch.dtype, multiplication: Kernel | None, addition: Kernel | None
) -> None:
    device = "cuda" if ON_GPU else "cpu"
    left, right = (torch.linspace(1, 2, 35, device=device).view(*shape).to(dtype) for shape in ((7, 5), (5, 7)))
    exact = left.double() @ right.double()
    out, total = torch.empty(7, 7, device=device), torch.full((7, 7), 1 / 3, device=device)
    with torch.library._scoped_library("aten", "IMPL") as library:
        install(library, multiplication, addition)
        products.product_(out, left, right)
        products.accumulate_(total, left, right)
    torch.testing.assert_close(out.double(), exact, rtol=1e-6, atol=0)
    torch.testing.assert_close(total.double(), exact + 1 / 3, rtol=1e-6, atol=0)
    if dtype != torch.float32 and not ON_GPU:  # and where they offer the right thing, it is taken
        assert products.makes_float32(dtype, left.device) == (multiplication is widens)
