"""The two kernels of InfoNCE; each computes a tile of similarities, uses it and discards it.

Both compute logits[i, j] = scale * q_i . k_j / (|q_i| |k_j|), plus `bonus` at row i's own hard negative. They keep row
i's positive separate from its negatives. Otherwise a positive that has nearly all of the probability would lose its
loss and gradient to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.info_nce import NORM_EPS
from .masks import MASK_SIZES, Masks, leave_out
from .normed_rows import Rows
from .strips import processors_of, stride, strip_rows
from .tile_of_strip import holds_positive, store_tile, tile_of_program
from .tiles import Tiles, constants, precision_for, tiles_for, tiles_with_masks

PROGRAMS = 512  # enough for any GPU; fixed, so that losses do not depend on its number of processors
# exp(-87) and exp(87) are normal float32 (and bfloat16) numbers; part of this range is reserved for the norms and the
# other factors of exponentials and their sums
LARGEST_EXPONENT = 75.0
LARGEST_LOG_NORM = 12.0


RAGGED = ["num_rows", "num_columns", "positive", "hard_negative", *MASK_SIZES]  # kernels are not specialised for these


class Pair(NamedTuple):
    """Two sets of rows, and everything else that defines their logits."""

    q: Rows
    k: Rows
    scale: Tensor
    """[1] float32."""
    normalized: bool
    positive: int
    """The positive of row i is column `positive + i`, which may be out of range."""
    hard_negative: int | None = None
    """Row i's own hard negative is column `hard_negative + i`."""
    bonus: float = 0.0
    """Added to the logit of a row's own hard negative."""
    masks: Masks = Masks()

    def strip(self, rows: slice) -> Pair:
        """A slice of the queries against all columns."""
        return self._replace(
            q=Rows(self.q.values[rows], self.q.inverse_norms[rows]),
            positive=self.positive + rows.start,
            hard_negative=None if self.hard_negative is None else self.hard_negative + rows.start,
            masks=self.masks.strip(rows),
        )

    def tensors(self) -> tuple[Tensor | None, ...]:
        """The first arguments of both kernels."""
        rows = self.q.values, self.k.values, self.q.inverse_norms, self.k.inverse_norms
        return *rows, self.scale, *self.masks.tensors()

    def numbers(self) -> tuple[int | float, ...]:
        """The last arguments of both kernels."""
        rows, width = self.q.values.shape
        hard_negative = -1 if self.hard_negative is None else self.hard_negative
        return rows, len(self.k.values), width, self.positive, hard_negative, self.bonus, self.masks.number()

    def constants(self, shape: Tiles) -> dict[str, int | bool | str]:
        """The compile-time arguments of both kernels."""
        width = self.q.values.shape[1]
        return constants(shape, width, precision_for(self.q.values)) | self.masks.constants()


def negatives_logsumexp(pair: Pair) -> tuple[Tensor, Tensor, Tensor]:
    """For each row: logsumexp of its negatives, its positive logit (-inf if out of range), and its largest negative."""
    lowest = pair.scale.new_full((), -torch.inf)
    maxima, sums, positives, _ = row_maxima(pair, lowest, -lowest, with_sums=True)
    return torch.logsumexp(maxima + sums.log(), dim=1), positives, maxima.amax(dim=1)


def row_shifts(pair: Pair) -> Tensor:
    """[N]: a shift for each row, such that `(negatives - shift).exp()` and their sums neither overflow nor vanish.

    For cosines, a lower and an upper bound of a row's largest negative are known in advance. If the bounds are no
    further apart than exponents may be, the shift is halfway between them. With 65,536 columns this holds for
    temperatures of at least 0.016. At lower temperatures the kernel computes columns, mostly one tile of them, until it
    holds. If it never does, the kernel has seen all columns, and the shift is the largest negative itself.
    """
    lowest, most, reach = _range(pair)
    maxima, *_ = row_maxima(pair, lowest, most - reach, with_sums=False)
    known = maxima.amax(dim=1)
    shifts = torch.where(known >= most - reach, (known + most) / 2, known)
    return shifts.masked_fill_(known == -torch.inf, 0.0)  # rows without negatives


def _range(pair: Pair) -> tuple[Tensor, Tensor, Tensor]:
    """[] each: a lower and an upper bound of a row's largest negative, and how far apart the two may be."""
    # the range of float16 is too small for any shift but the maximum itself
    if not pair.normalized or pair.q.values.dtype == torch.float16:
        return pair.scale.new_full((), -torch.inf), pair.scale.new_full((), torch.inf), pair.scale.new_zeros(())
    norms = torch.cat([pair.q.inverse_norms, pair.k.inverse_norms])
    usual = (norms.log().abs() <= LARGEST_LOG_NORM) | (norms == 0)
    # exponentials of all columns may add up, or may each be too small although their sum is not
    reach = 2 * (LARGEST_EXPONENT - math.log(len(pair.k.values)))
    scale = pair.scale[0]
    return min(pair.bonus, 0.0) - scale, max(pair.bonus, 0.0) + scale, torch.where(usual.all(), reach, -torch.inf)


def row_maxima(pair: Pair, lowest: Tensor, enough: Tensor, with_sums: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The results of `row_maxima_kernel`, by ranges of columns; the last is empty without multiple positives."""
    rows, columns = len(pair.q.values), len(pair.k.values)
    shape = tiles_for(pair.q.values)
    if any(mask is not None for mask in pair.masks.tensors()):
        shape = tiles_with_masks(shape)
    row_tiles, column_tiles = triton.cdiv(rows, shape.block_m), triton.cdiv(columns, shape.block_n)
    tiles_a_split = triton.cdiv(column_tiles, max(1, PROGRAMS // max(1, row_tiles)))
    splits = triton.cdiv(column_tiles, tiles_a_split)
    maxima = pair.scale.new_empty(rows, splits)
    sums = torch.empty_like(maxima) if with_sums else maxima
    positives = pair.scale.new_full((rows,), -torch.inf) if with_sums else maxima
    further = maxima.new_empty(3 if pair.masks.multiple_positives else 0, *maxima.shape)
    if rows:
        row_maxima_kernel[(row_tiles, splits)](
            *pair.tensors(), torch.stack([lowest, enough]), maxima, sums, positives, further,
            *pair.numbers(), tiles_a_split * shape.block_n, WITH_SUMS=with_sums, **pair.constants(shape),
        )  # fmt: skip
    return maxima, sums, positives, further


def strips(pair: Pair) -> Iterator[slice]:
    """Slices of rows; the exponentials of one slice exist at the same time."""
    rows, width = pair.q.values.shape
    of_tiles = tiles_for(pair.q.values).block_m, processors_of(pair.q.values.device)
    height = strip_rows(rows, len(pair.k.values), width, pair.k.values.element_size(), *of_tiles)
    for start in range(0, rows, height):
        yield slice(start, min(start + height, rows))


def storage_unit(dtype: torch.dtype) -> float:
    """The factor for numbers of at most 1 before they are rounded to `dtype`."""
    return 2.0**15 if dtype == torch.float16 else 1.0  # without it, float16 numbers below 6e-8 would become 0


def unit_of_queries(pair: Pair) -> Tensor:
    """[1] float32: the factor for `weighted`, chosen so that queries of any length fit into float16."""
    largest = pair.scale.new_ones(1)
    if pair.q.values.dtype == torch.float16 and not pair.normalized and pair.q.values.numel():
        largest = pair.q.values.abs().amax().float().clamp_min(NORM_EPS).reshape(1)
    return storage_unit(pair.q.values.dtype) / largest


def weighted(rows: Tensor, factors: Tensor, unit: Tensor) -> Tensor:
    """unit * rows * factors[:, None] in the dtype of the rows; a factor must be at most 1 / the norm of its row."""
    return (rows * (factors * unit)[:, None]).to(rows.dtype)


def unit_of_exponentials(pair: Pair) -> Tensor:
    """[1] float32: the factor that `exponentials` multiplies by."""
    if pair.k.values.dtype != torch.float16:
        return torch.ones_like(pair.scale)
    return storage_unit(torch.float16) / pair.k.inverse_norms.amax(dim=0, keepdim=True).clamp_min(NORM_EPS)


def exponentials(
    pair: Pair,
    rows: slice,
    shifts: Tensor,
    unit: Tensor,
    gains: Tensor | None = None,
    pulls: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The exponentials of a strip of n rows, relative to `shifts` [n], and other results from the similarities.

    Args:
        gains, pulls: [n], if rows may have several positives; see `exponentials_kernel`.

    Returns:
        unit * (negatives - shifts).exp() / |k|, [n, M] of the inputs' dtype; the sums of the unrounded exponentials
        alone, [n] float32; the largest negatives, [n] float32; the positive logits, [n] float32, -inf if no column is
        the positive.
    """
    height, columns = rows.stop - rows.start, len(pair.k.values)
    shape = tiles_for(pair.q.values)
    row_tiles, column_tiles = triton.cdiv(height, shape.block_m), triton.cdiv(columns, shape.block_n)
    weights = pair.k.values.new_empty(height, stride(columns))
    sums, maxima = (shifts.new_empty(height, column_tiles) for _ in range(2))
    positives = shifts.new_full((height,), -torch.inf)
    strip = pair.strip(rows)
    exponentials_kernel[(row_tiles * column_tiles,)](
        *strip.tensors(), shifts, unit, gains, pulls, weights, sums, maxima, positives,
        *strip.numbers(), weights.stride(0), **pair.constants(shape),
    )  # fmt: skip
    return weights[:, :columns], sums.sum(dim=1), maxima.amax(dim=1), positives


@triton.jit
def logits_tile(
    queries, columns, q_inverse, k_inverse, scale, bonus,
    row, column, num_rows, num_columns, width, hard_negative,
    BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """logits[row][:, column] in float32; indices beyond the edge repeat the last row or column."""
    row = tl.minimum(row, num_rows - 1)
    column = tl.minimum(column, num_columns - 1)
    # the first row of a tile may lie beyond 2^31 elements, but distances within a tile are smaller
    first_row = tl.min(row, 0)
    first_column = tl.min(column, 0)
    d = tl.arange(0, BLOCK_D)
    q_pointers = queries + first_row.to(tl.int64) * width + ((row - first_row)[:, None] * width + d[None, :])
    k_pointers = columns + first_column.to(tl.int64) * width + ((column - first_column)[None, :] * width + d[:, None])
    products = tl.zeros((row.shape[0], column.shape[0]), tl.float32)
    for start in range(0, width, BLOCK_D):
        if EVEN_D:
            q = tl.load(q_pointers)
            k = tl.load(k_pointers)
        else:
            q = tl.load(q_pointers, mask=start + d[None, :] < width, other=0.0)
            k = tl.load(k_pointers, mask=start + d[:, None] < width, other=0.0)
        products = tl.dot(q, k, products, input_precision=PRECISION)
        q_pointers += BLOCK_D
        k_pointers += BLOCK_D
    logits = products * (tl.load(q_inverse + row) * scale)[:, None] * tl.load(k_inverse + column)[None, :]
    if hard_negative >= 0:
        logits += tl.where(column[None, :] == hard_negative + row[:, None], bonus, 0.0)
    return logits


@triton.jit(do_not_specialize=[*RAGGED, "columns_a_split"])
def row_maxima_kernel(
    queries, columns, q_inverse, k_inverse, scale_pointer, query_ids, column_ids, excluded_rows, thresholds,
    bounds, maxima, sums, positives, further_positives,
    num_rows, num_columns, width, positive, hard_negative, bonus, num_with_ids, columns_a_split,
    WITH_SUMS: tl.constexpr, IDS: tl.constexpr, MULTIPLE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """negatives.amax(1).clamp_min(bounds[0]) of a range of columns.

    WITH_SUMS adds (negatives - maxima).exp().sum(1) and the positives. MULTIPLE adds the number of columns that share
    an id with the row, the sum of their logits, and the maximum of the rest. Without sums it ends early once every row
    of the tile has a maximum of at least bounds[1].
    """
    split = tl.program_id(1)
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    is_row = row < num_rows
    scale = tl.load(scale_pointer)
    start = split * columns_a_split
    end = tl.minimum(start + columns_a_split, num_columns)
    least = tl.load(bounds)
    enough = tl.load(bounds + 1)
    maximum = tl.zeros((BLOCK_M,), tl.float32) + least
    total = tl.zeros((BLOCK_M,), tl.float32)
    further_count, further_sum, largest = total, total, maximum
    first = start
    while (first < end) & (least < enough):
        column = first + tl.arange(0, BLOCK_N)
        logits = logits_tile(
            queries, columns, q_inverse, k_inverse, scale, bonus,
            row, column, num_rows, num_columns, width, hard_negative,
            BLOCK_D, EVEN_D, PRECISION,
        )  # fmt: skip
        is_positive = column[None, :] == positive + row[:, None]
        negatives = tl.where(is_positive | (column >= end)[None, :], float("-inf"), logits)
        negatives, further = leave_out(
            negatives, row, column, hard_negative, bonus, query_ids, column_ids, excluded_rows, thresholds,
            num_rows, num_columns, num_with_ids, IDS, MULTIPLE,
        )  # fmt: skip
        higher = tl.maximum(maximum, tl.max(negatives, 1))
        if WITH_SUMS:
            shift = tl.where(higher == float("-inf"), 0.0, higher)  # before any negative, -inf - -inf would be NaN
            total = total * tl.exp(maximum - shift) + tl.sum(tl.exp(negatives - shift[:, None]), 1)
            is_here = (positive + row >= first) & (positive + row < tl.minimum(first + BLOCK_N, end))
            tl.store(positives + row, tl.sum(tl.where(is_positive, logits, 0.0), 1), mask=is_row & is_here)
        if MULTIPLE:
            further_count += tl.sum(further.to(tl.float32), 1)
            further_sum += tl.sum(tl.where(further, negatives, 0.0), 1)
            largest = tl.maximum(largest, tl.max(tl.where(further, float("-inf"), negatives), 1))
        maximum = higher
        if not WITH_SUMS:
            least = tl.min(maximum, 0)
        first += BLOCK_N
    place = row.to(tl.int64) * tl.num_programs(1) + split
    tl.store(maxima + place, maximum, mask=is_row)
    if WITH_SUMS:
        tl.store(sums + place, total, mask=is_row)
    if MULTIPLE:
        tensor = tl.num_programs(1).to(tl.int64) * num_rows
        tl.store(further_positives + place, further_count, mask=is_row)
        tl.store(further_positives + tensor + place, further_sum, mask=is_row)
        tl.store(further_positives + 2 * tensor + place, largest, mask=is_row)


@triton.jit(do_not_specialize=RAGGED)
def exponentials_kernel(
    queries, columns, q_inverse, k_inverse, scale_pointer, query_ids, column_ids, excluded_rows, thresholds,
    shifts, unit_pointer, gains, pulls, weights, sums, maxima, positives,
    num_rows, num_columns, width, positive, hard_negative, bonus, num_with_ids, stride,
    IDS: tl.constexpr, MULTIPLE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """weights = unit * k_inverse * (negatives - shifts).exp(), rounded.

    For each tile of columns it also stores the exact sums of the exponentials and the maxima of the negatives. For each
    row it stores the positive.

    With MULTIPLE, gains * exponential - pulls replaces the exponential of a column that shares an id with the row, and
    gains * exponential replaces the others.
    """
    row_tile, column_tile, row, column = tile_of_program(num_rows, BLOCK_M, BLOCK_N)
    logits = logits_tile(
        queries, columns, q_inverse, k_inverse, tl.load(scale_pointer), bonus,
        row, column, num_rows, num_columns, width, hard_negative,
        BLOCK_D, EVEN_D, PRECISION,
    )  # fmt: skip
    is_row = row < num_rows
    is_column = column < num_columns
    is_positive = column[None, :] == positive + row[:, None]
    # store a row's positive and sums early: kept until the end of the tile, their inputs would not fit into registers
    is_here = holds_positive(row, positive, column_tile, num_rows, num_columns, BLOCK_N)
    tl.store(positives + row, tl.sum(tl.where(is_positive, logits, 0.0), 1), mask=is_here)
    negatives = tl.where(is_positive | ~is_column[None, :], float("-inf"), logits)
    negatives, further = leave_out(
        negatives, row, column, hard_negative, bonus, query_ids, column_ids, excluded_rows, thresholds,
        num_rows, num_columns, num_with_ids, IDS, MULTIPLE,
    )  # fmt: skip
    place = row.to(tl.int64) * tl.cdiv(num_columns, BLOCK_N) + column_tile
    tl.store(maxima + place, tl.max(negatives, 1), mask=is_row)
    shift = tl.load(shifts + row, mask=is_row, other=float("inf"))
    exponentials = tl.exp(negatives - shift[:, None])
    tl.store(sums + place, tl.sum(exponentials, 1), mask=is_row)
    values = exponentials
    if MULTIPLE:
        gain = tl.load(gains + row, mask=is_row, other=0.0)
        pull = tl.load(pulls + row, mask=is_row, other=0.0)
        values = exponentials * gain[:, None] - tl.where(further, pull[:, None], 0.0)
    factor = tl.load(k_inverse + column, mask=is_column, other=0.0) * tl.load(unit_pointer)
    values *= factor[None, :]
    store_tile(weights, values, row_tile, column_tile, row, column, num_rows, stride, BLOCK_M, BLOCK_N)
