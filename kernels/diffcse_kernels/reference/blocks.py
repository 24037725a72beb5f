"""Blocks of rows within a byte budget, and the dtype that the reference computes in."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK_BYTES = 32 * 2**20  # blocks of this size stay in cache between passes; larger blocks are no faster on CPUs


def rows_a_block(bytes_a_row: int) -> int:
    """How many rows fit the budget, but at least one."""
    return max(1, BLOCK_BYTES // max(1, bytes_a_row))


def row_blocks(rows: int, bytes_a_row: int) -> Iterator[slice]:
    """Slices of at most `rows_a_block` rows that cover `rows`."""
    height = rows_a_block(bytes_a_row)
    for start in range(0, rows, height):
        yield slice(start, min(start + height, rows))


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any of the tensors is float64, float32 otherwise."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
