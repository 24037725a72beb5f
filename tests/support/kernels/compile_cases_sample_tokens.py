"""The launches of `diffcse_kernels.triton.sample_tokens` that the tests compile for GPUs."""

from __future__ import annotations

from itertools import product

import torch
from diffcse_kernels.triton import sample_tokens as triton_sample_tokens

from tests.support.kernels.compile_cases_info_nce import precisions
from tests.support.kernels.compile_offline import Case

WIDTHS = [768, 400]  # one that the tiles divide, one that they do not
VOCABULARIES = [30_522, 250_002]  # BERT's, XLM-R's
DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
SIZES = {"rows": "i32", "vocabulary": "i32", "width": "i32"}


def cases(target: str) -> list[Case]:
    products = [_weigh(width, *precision) for width, precision in product(WIDTHS, precisions(target))]
    return products + [_draw(*choice) for choice in product(VOCABULARIES, DTYPES)]


def _weigh(width: int, dtype: torch.dtype, precision: str) -> Case:
    tile = triton_sample_tokens.tiles(dtype)
    tensors = _inputs(dtype) | {"maxima": "*fp32", "masses": "*fp32"}
    return Case(
        name=f"weigh_slices_kernel {width} {DTYPES[dtype]} {precision}",
        kernel=triton_sample_tokens.weigh_slices_kernel,
        types=tensors | SIZES | {"scale": "fp32"},
        constants={
            "SLICE": triton_sample_tokens.SLICE,
            "BLOCK_T": tile.block_t,
            "BLOCK_V": tile.block_v,
            "BLOCK_D": tile.block_d,
            "EVEN_D": width % tile.block_d == 0,
            "PRECISION": precision,
        },
        divisible=(*tensors, "width"),
        options={"num_warps": tile.num_warps, "num_stages": tile.num_stages},
    )


def _draw(vocabulary: int, dtype: torch.dtype) -> Case:
    tile = triton_sample_tokens.draw_tiles(vocabulary)
    tensors = _inputs(dtype) | {"uniform": "*fp64", "maxima": "*fp32", "masses": "*fp32", "ids": "*i64"}
    return Case(
        name=f"draw_kernel {vocabulary} {DTYPES[dtype]}",
        kernel=triton_sample_tokens.draw_kernel,
        types=tensors | SIZES | {"scale": "fp32"},
        constants={
            "SLICE": triton_sample_tokens.SLICE,
            "SLICES": tile.slices,
            "BLOCK_T": tile.block_t,
            "BLOCK_D": tile.block_d,
        },
        divisible=(*tensors, "width"),
        options={"num_warps": tile.num_warps},
    )


def _inputs(dtype: torch.dtype) -> dict[str, str]:
    return {"hidden": f"*{DTYPES[dtype]}", "embedding": f"*{DTYPES[dtype]}", "offsets": "*fp32"}
