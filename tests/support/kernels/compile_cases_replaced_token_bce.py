"""The launches of `diffcse_kernels.triton.replaced_token_bce` that the tests compile for GPUs."""

from __future__ import annotations

from itertools import product

import torch
from diffcse_kernels.triton import replaced_token_bce

from tests.support.kernels.compile_offline import Case

WIDTHS = [384, 768, 1024, 4096]
DTYPES = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
SIZES = {"tokens": "i32", "width": "i32"}


def cases(target: str) -> list[Case]:
    return [
        case for width, dtype in product(WIDTHS, DTYPES) for case in (_forward(width, dtype), _backward(width, dtype))
    ]


def _forward(width: int, dtype: torch.dtype) -> Case:
    tile = replaced_token_bce.forward_tiles(width)
    inputs = dict.fromkeys(("hidden", "weight", "bias"), DTYPES[dtype])
    inputs |= {"original_ids": "*i64", "edited_ids": "*i64", "mask": "*i1"}
    outputs = {"losses": "*fp32", "counts": "*i32", "slopes": "*fp32", "grad_weights": "*fp32"}
    return Case(
        name=f"replaced_token_bce forward {width} {dtype}",
        kernel=replaced_token_bce.forward_kernel,
        types=inputs | outputs | SIZES,
        constants={"GRADIENTS": True, "PART": tile.part, "PARTS": tile.parts},
        divisible=(*inputs, *outputs, "width"),
        options={"num_warps": tile.num_warps},
    )


def _backward(width: int, dtype: torch.dtype) -> Case:
    tile = replaced_token_bce.backward_tiles(width)
    tensors = {"slopes": "*fp32", "upstream": "*fp32", "weight": DTYPES[dtype], "grad_hidden": DTYPES[dtype]}
    return Case(
        name=f"replaced_token_bce backward {width} {dtype}",
        kernel=replaced_token_bce.backward_kernel,
        types=tensors | SIZES,
        constants={"BLOCK_T": tile.block_t, "BLOCK_D": tile.block_d},
        divisible=(*tensors, "width"),
        options={"num_warps": tile.num_warps},
    )
