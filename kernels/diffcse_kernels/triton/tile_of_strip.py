"""The tile of a strip that one program computes: its place, the positives in it, and how it is stored."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile_of_program(num_rows, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The numbers of the row tile and the column tile, then the rows and columns, which may lie beyond the last."""
    row_tiles = tl.cdiv(num_rows, BLOCK_M)
    row_tile = tl.program_id(0) % row_tiles  # neighbours share a tile of columns, and all queries stay in L2
    column_tile = tl.program_id(0) // row_tiles
    row = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    return row_tile, column_tile, row, column_tile * BLOCK_N + tl.arange(0, BLOCK_N)


@triton.jit
def holds_positive(row, positive, column_tile, num_rows, num_columns, BLOCK_N: tl.constexpr):
    """bool [rows]: whether the positive of a row is a column of the tile."""
    begin, end = column_tile * BLOCK_N, tl.minimum((column_tile + 1) * BLOCK_N, num_columns)
    return (row < num_rows) & (positive + row >= begin) & (positive + row < end)


@triton.jit
def store_tile(
    strip, values, row_tile, column_tile, row, column, num_rows, stride, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """strip[row][:, column] = values, rounded; the rows of the strip begin `stride` elements apart."""
    first = row_tile.to(tl.int64) * BLOCK_M * stride + column_tile * BLOCK_N
    inside = tl.arange(0, BLOCK_M)[:, None] * stride + tl.arange(0, BLOCK_N)[None, :]
    # also store the zeros beyond the last column: if the mask ends at a multiple of 16, the stores stay wide
    mask = (row < num_rows)[:, None] & (column < stride)[None, :]
    tl.store(strip + first + inside, values.to(strip.dtype.element_ty), mask=mask)
