"""The tile of a strip that a program makes: where it lies, whose positives are in it, how it is stored."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile_of_program(num_rows, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Numbers of the tile of rows and of that of columns; its rows and its columns, which may lie beyond the last."""
    row_tiles = tl.cdiv(num_rows, BLOCK_M)
    row_tile = tl.program_id(0) % row_tiles  # neighbours share a tile of columns, and all the queries stay in L2
    column_tile = tl.program_id(0) // row_tiles
    row = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    return row_tile, column_tile, row, column_tile * BLOCK_N + tl.arange(0, BLOCK_N)


@triton.jit
def holds_positive(row, positive, column_tile, num_rows, num_columns, BLOCK_N: tl.constexpr):
    """bool [rows]: the positive of a row is a column of the tile."""
    begin, end = column_tile * BLOCK_N, tl.minimum((column_tile + 1) * BLOCK_N, num_columns)
    return (row < num_rows) & (positive + row >= begin) & (positive + row < end)


@triton.jit
def store_tile(
    strip, values, row_tile, column_tile, row, column, num_rows, stride, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """strip[row][:, column] = values, rounded, for rows of the strip that begin `stride` elements apart."""
    first = row_tile.to(tl.int64) * BLOCK_M * stride + column_tile * BLOCK_N
    inside = tl.arange(0, BLOCK_M)[:, None] * stride + tl.arange(0, BLOCK_N)[None, :]
    # zeros beyond the last column: a mask that ends at a multiple of 16 leaves the stores wide
    mask = (row < num_rows)[:, None] & (column < stride)[None, :]
    tl.store(strip + first + inside, values.to(strip.dtype.element_ty), mask=mask)
