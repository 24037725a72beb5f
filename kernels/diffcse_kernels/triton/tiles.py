"""The shapes of the tiles of similarities, and the precision of their products."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..crossovers import device_class


class Tiles(NamedTuple):
    """The shapes that one program works on."""

    block_m: int
    block_n: int
    block_d: int
    num_warps: int
    num_stages: int


def tiles(dtype: torch.dtype, hopper: bool) -> Tiles:
    """The largest tiles that compile without register spills, for Hopper and later, or for earlier GPUs."""
    if dtype == torch.float32:
        return Tiles(64, 64, 16, num_warps=8, num_stages=2)
    return Tiles(128, 128 if hopper else 64, 64, num_warps=8, num_stages=3)


def tiles_with_masks(shape: Tiles) -> Tiles:
    """The tiles of `row_maxima_kernel` with masks, which take registers in addition to its rows' maxima and sums."""
    return shape._replace(block_n=shape.block_n // 2)


def tiles_for(values: Tensor) -> Tiles:
    """The tiles for a tensor's dtype and device."""
    is_nvidia = values.device.type == "cuda" and not torch.version.hip
    return tiles(values.dtype, hopper=not is_nvidia or torch.cuda.get_device_capability(values.device) >= (9, 0))


def precision(dtype: torch.dtype, architecture: str) -> str:
    """How operands are multiplied; float32 follows `torch.set_float32_matmul_precision` if the device has TF32.

    Args:
        dtype: dtype of the operands.
        architecture: as `crossovers.device_class` names it; "cpu" for the interpreter.
    """
    if dtype != torch.float32 or torch.get_float32_matmul_precision() == "highest":
        return "ieee"
    is_amd = architecture.startswith("gfx")
    return "ieee" if is_amd and not architecture.startswith("gfx94") else "tf32"


def precision_for(values: Tensor) -> str:
    """`precision` for a tensor's dtype and device."""
    return precision(values.dtype, device_class(values.device) if values.device.type == "cuda" else "cpu")


def constants(shape: Tiles, width: int, precision: str = "ieee") -> dict[str, int | bool | str]:
    """The compile-time arguments that the kernels share."""
    return {
        "BLOCK_M": shape.block_m,
        "BLOCK_N": shape.block_n,
        "BLOCK_D": shape.block_d,
        "EVEN_D": width % shape.block_d == 0,
        "PRECISION": precision,
        "num_warps": shape.num_warps,
        "num_stages": shape.num_stages,
    }
