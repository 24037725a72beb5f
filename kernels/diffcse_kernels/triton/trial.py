"""A minimal matrix product that tests whether Triton works on a GPU, before a step depends on it."""

from __future__ import annotations

import os
import tempfile

import torch
import triton
import triton.language as tl

SIZE = 16


def launch(device: torch.device) -> bool:
    """Build a kernel from scratch, run it, and return whether its result is right.

    Triton compiles a launcher in C for every kernel, and this needs a C compiler and Python.h. But Triton caches
    launchers, and an old launcher would hide that the compiler is missing now. The trial therefore uses an empty folder
    in Triton's cache. Errors are raised as Triton raises them.
    """
    kept = triton.knobs.cache.dir
    os.makedirs(kept, exist_ok=True)
    left, right = (torch.arange(SIZE * SIZE, device=device).remainder(n).bfloat16() for n in (5, 7))
    out = torch.empty(SIZE, SIZE, device=device)
    with triton.knobs.cache.scope(), tempfile.TemporaryDirectory(prefix="trial-", dir=kept) as empty:
        triton.knobs.cache.dir = empty
        with torch.cuda.device_of(out):
            product_kernel[(1,)](left, right, out, SIZE=SIZE)
    return torch.equal(out, left.float().view(SIZE, SIZE) @ right.float().view(SIZE, SIZE))


@triton.jit
def product_kernel(left, right, out, SIZE: tl.constexpr):
    """out = left @ right, [SIZE, SIZE] each."""
    places = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    tl.store(out + places, tl.dot(tl.load(left + places), tl.load(right + places)))
