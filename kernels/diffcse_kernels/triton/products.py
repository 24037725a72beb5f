"""Matrix products of the vendor's library with float32 results, whatever the operands."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


def product_(out: Tensor, left: Tensor, right: Tensor) -> None:
    """out = left.float() @ right.float()."""
    if left.dtype == torch.float32 or left.device.type != "cuda":
        torch.mm(left.float(), right.float(), out=out)
    else:
        torch.mm(left, right, out_dtype=torch.float32, out=out)


def accumulate_(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left.float() @ right.float()."""
    if left.dtype == torch.float32 or left.device.type != "cuda":
        total.addmm_(left.float(), right.float())
    elif _adds_to_float32(left.dtype):
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    else:
        total += torch.mm(left, right, out_dtype=torch.float32)


@cache
def _adds_to_float32(dtype: torch.dtype) -> bool:
    """Whether this PyTorch's addmm adds half-precision products to float32: some releases demand one dtype."""
    total = torch.zeros(16, 16, device="cuda")
    half = total.to(dtype)
    try:
        torch.addmm(total, half, half, out_dtype=torch.float32, out=total)
    except RuntimeError:
        return False
    return True
