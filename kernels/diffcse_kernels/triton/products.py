"""Matrix products from the vendor's library, with float32 results for operands of any dtype."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


def product_(out: Tensor, left: Tensor, right: Tensor) -> None:
    """out = left.float() @ right.float()."""
    if left.dtype != torch.float32 and makes_float32(left.dtype, left.device):
        torch.mm(left, right, out_dtype=torch.float32, out=out)
    else:
        torch.mm(left.float(), right.float(), out=out)


def accumulate_(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left.float() @ right.float()."""
    if left.dtype == torch.float32:
        total.addmm_(left, right)
    elif adds_to_float32(left.dtype, left.device):
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    elif makes_float32(left.dtype, left.device):
        total += torch.mm(left, right, out_dtype=torch.float32)
    else:
        total.addmm_(left.float(), right.float())


@cache
def makes_float32(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether `mm` returns float32 for half-precision operands on this device, without rounding in between."""
    ones, out = torch.ones(16, 16, dtype=dtype, device=device), torch.empty(16, 16, device=device)
    left = ones.clone()
    left[:, 0] = 2.0**-9  # the results are 15 + 2**-9, which needs more digits than half precision has
    try:
        torch.mm(left, ones, out_dtype=torch.float32, out=out)
    except (RuntimeError, TypeError):
        return False
    return torch.equal(out, torch.full_like(out, 15 + 2.0**-9))


@cache
def adds_to_float32(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether `addmm` adds their product to float32 in place; some releases refuse, some compute wrong numbers."""
    ones = torch.ones(16, 16, dtype=dtype, device=device)
    total = torch.full((16, 16), 1 + 2.0**-18, device=device)
    try:
        torch.addmm(total, ones, ones, out_dtype=torch.float32, out=total)
    except (RuntimeError, TypeError):
        return False
    return torch.equal(total, torch.full_like(total, 17 + 2.0**-18))
