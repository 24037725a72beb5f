"""The two kernels that compute a tile of similarities, use it and forget it; everything of InfoNCE is made of them.

Both see logits[i, j] = scale * q_i . k_j / (|q_i| |k_j|), plus `bonus` at row i's own hard negative, and keep row i's
positive apart from its negatives: a positive that takes nearly all the probability would lose its loss and its gradient
to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..crossovers import device_class
from ..reference.info_nce import NORM_EPS

WORKSPACE_BYTES = 512 * 2**20  # for the exponentials of a strip of rows
PROGRAMS = 512  # enough for any GPU; fixed, so that results do not depend on how many processors it has
LARGEST_EXPONENT = 80.0  # exp(-80) is still a normal float32 (and bfloat16) number


RAGGED = ["num_rows", "num_columns", "positive", "hard_negative"]  # one kernel for any number of them


class Tiles(NamedTuple):
    """Shapes of a program's work."""

    block_m: int
    block_n: int
    block_d: int
    num_warps: int
    num_stages: int


def tiles(dtype: torch.dtype, hopper: bool) -> Tiles:
    """The tiles of both kernels: the largest that compile without spills, on Hopper and later, or before it."""
    if dtype == torch.float32:
        return Tiles(64, 64, 16, num_warps=8, num_stages=2)
    return Tiles(128, 128 if hopper else 64, 64, num_warps=8, num_stages=3)


def tiles_for(values: Tensor) -> Tiles:
    """The tiles for a tensor's dtype and device."""
    is_nvidia = values.device.type == "cuda" and not torch.version.hip
    return tiles(values.dtype, hopper=not is_nvidia or torch.cuda.get_device_capability(values.device) >= (9, 0))


def precision(dtype: torch.dtype, architecture: str) -> str:
    """How operands are multiplied: float32 as `torch.set_float32_matmul_precision` says, where there is TF32.

    Args:
        dtype: of the operands.
        architecture: as `crossovers.device_class` names it, "cpu" for the interpreter.
    """
    if dtype != torch.float32 or torch.get_float32_matmul_precision() == "highest":
        return "ieee"
    is_amd = architecture.startswith("gfx")
    return "ieee" if is_amd and not architecture.startswith("gfx94") else "tf32"


def precision_for(values: Tensor) -> str:
    """`precision` for a tensor's dtype and device."""
    return precision(values.dtype, device_class(values.device) if values.device.type == "cuda" else "cpu")


class Rows(NamedTuple):
    """Embeddings as the kernels read them."""

    values: Tensor
    """[N, D], contiguous."""
    inverse_norms: Tensor
    """[N] float32; 0 for a row too short to have a direction; all 1 where rows are compared by dot product."""

    @classmethod
    def of(cls, values: Tensor, normalize: bool) -> Rows:
        values = values.contiguous()
        if not normalize:
            return cls(values, values.new_ones(len(values), dtype=torch.float32))
        norms = torch.linalg.vector_norm(values, dim=1, dtype=torch.float32)
        return cls(values, norms.reciprocal().masked_fill_(norms <= NORM_EPS, 0.0))

    @classmethod
    def both(cls, queries: Tensor, columns: Tensor, normalize: bool) -> tuple[Rows, Rows]:
        """Rows to be multiplied with each other, in the dtype that holds the numbers of both."""
        dtype = torch.promote_types(queries.dtype, columns.dtype)
        return cls.of(queries.to(dtype), normalize), cls.of(columns.to(dtype), normalize)


class Pair(NamedTuple):
    """Two sets of rows and what makes logits of them."""

    q: Rows
    k: Rows
    scale: Tensor
    """[1] float32."""
    normalized: bool
    positive: int
    """The positive of row i is column `positive + i`; it may lie outside."""
    hard_negative: int | None = None
    """Row i's own hard negative is column `hard_negative + i`."""
    bonus: float = 0.0
    """Added to the logit of a row's own hard negative."""

    def strip(self, rows: slice) -> Pair:
        """Some of the queries against all columns."""
        return self._replace(
            q=Rows(self.q.values[rows], self.q.inverse_norms[rows]),
            positive=self.positive + rows.start,
            hard_negative=None if self.hard_negative is None else self.hard_negative + rows.start,
        )

    def tensors(self) -> tuple[Tensor, ...]:
        """The arguments that both kernels begin with."""
        return self.q.values, self.k.values, self.q.inverse_norms, self.k.inverse_norms, self.scale

    def numbers(self) -> tuple[int | float, ...]:
        """The arguments that both kernels end with."""
        rows, width = self.q.values.shape
        hard_negative = -1 if self.hard_negative is None else self.hard_negative
        return rows, len(self.k.values), width, self.positive, hard_negative, self.bonus


def negatives_logsumexp(pair: Pair) -> tuple[Tensor, Tensor, Tensor]:
    """Of each row: log-sum-exp of its negatives, its positive logit (-inf if no column is), its largest negative."""
    maxima, sums, positives = _row_maxima(pair, 0.0, with_sums=True)
    return torch.logsumexp(maxima + sums.log(), dim=1), positives, maxima.amax(dim=1)


def row_shifts(pair: Pair) -> Tensor:
    """[N]: a number for each row that none of its negatives exceeds, and below which exponentials do not vanish."""
    # float16 has too small a range for anything but the maximum itself
    bound = LARGEST_EXPONENT if pair.normalized and pair.q.values.dtype != torch.float16 else 0.0
    maxima, _, _ = _row_maxima(pair, bound, with_sums=False)
    shifts = maxima.amax(dim=1)
    return shifts.masked_fill_(shifts == -torch.inf, 0.0)  # no negatives at all


def _row_maxima(pair: Pair, bound: float, with_sums: bool) -> tuple[Tensor, Tensor, Tensor]:
    rows, columns, width = len(pair.q.values), len(pair.k.values), pair.q.values.shape[1]
    shape = tiles_for(pair.q.values)
    row_tiles, column_tiles = triton.cdiv(rows, shape.block_m), triton.cdiv(columns, shape.block_n)
    tiles_a_split = triton.cdiv(column_tiles, max(1, PROGRAMS // max(1, row_tiles)))
    splits = triton.cdiv(column_tiles, tiles_a_split)
    maxima = pair.scale.new_empty(rows, splits)
    sums = torch.empty_like(maxima) if with_sums else maxima
    positives = pair.scale.new_full((rows,), -torch.inf) if with_sums else maxima
    if rows:
        row_maxima_kernel[(row_tiles, splits)](
            *pair.tensors(), maxima, sums, positives, *pair.numbers(), tiles_a_split * shape.block_n,
            LARGEST=bound, WITH_SUMS=with_sums, **constants(shape, width, precision_for(pair.q.values)),
        )  # fmt: skip
    return maxima, sums, positives


def strips(pair: Pair) -> Iterator[slice]:
    """Slices of rows whose exponentials fit the budget."""
    block = tiles_for(pair.q.values).block_m
    rows = WORKSPACE_BYTES // (_stride(len(pair.k.values)) * pair.k.values.element_size())
    height = max(1, rows // block) * block
    for start in range(0, len(pair.q.values), height):
        yield slice(start, min(start + height, len(pair.q.values)))


def _stride(columns: int) -> int:
    """From one row of a strip to the next: all begin where 16 bytes can be stored and loaded at once."""
    return triton.cdiv(columns, 16) * 16


def storage_unit(dtype: torch.dtype) -> float:
    """What numbers of at most 1 are multiplied by before they are rounded to `dtype`."""
    return 2.0**15 if dtype == torch.float16 else 1.0  # or those below 6e-8 would become 0


def unit_of_queries(pair: Pair) -> Tensor:
    """[1] float32: what `weighted` multiplies by, so that queries of any length fit into float16."""
    largest = pair.scale.new_ones(1)
    if pair.q.values.dtype == torch.float16 and not pair.normalized and pair.q.values.numel():
        largest = pair.q.values.abs().amax().float().clamp_min(NORM_EPS).reshape(1)
    return storage_unit(pair.q.values.dtype) / largest


def weighted(rows: Tensor, factors: Tensor, unit: Tensor) -> Tensor:
    """unit * rows * factors[:, None] in the dtype of the rows, for factors of at most 1 over the norm of the row."""
    return (rows * (factors * unit)[:, None]).to(rows.dtype)


def unit_of_exponentials(pair: Pair) -> Tensor:
    """[1] float32: what `exponentials` multiplies by."""
    return storage_unit(pair.k.values.dtype) / pair.k.inverse_norms.amax(dim=0, keepdim=True).clamp_min(NORM_EPS)


def exponentials(pair: Pair, rows: slice, shifts: Tensor, unit: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The exponentials of a strip of n rows, relative to `shifts` [n], and what else the similarities tell.

    Returns:
        unit * (negatives - shifts).exp() / |k|, [n, M] of the inputs' dtype; the sums of the exponentials alone,
        which are not rounded, [n] float32; the largest negatives, [n] float32; the positive logits, [n] float32, -inf
        where no column is the positive.
    """
    height, columns, width = rows.stop - rows.start, len(pair.k.values), pair.q.values.shape[1]
    shape = tiles_for(pair.q.values)
    row_tiles, column_tiles = triton.cdiv(height, shape.block_m), triton.cdiv(columns, shape.block_n)
    weights = pair.k.values.new_empty(height, _stride(columns))
    sums, maxima = (shifts.new_empty(height, column_tiles) for _ in range(2))
    positives = shifts.new_full((height,), -torch.inf)
    strip = pair.strip(rows)
    exponentials_kernel[(row_tiles * column_tiles,)](
        *strip.tensors(), shifts, unit, weights, sums, maxima, positives, *strip.numbers(), weights.stride(0),
        **constants(shape, width, precision_for(pair.q.values)),
    )  # fmt: skip
    return weights[:, :columns], sums.sum(dim=1), maxima.amax(dim=1), positives


def constants(shape: Tiles, width: int, precision: str = "ieee") -> dict[str, int | bool | str]:
    """The compile-time arguments that both kernels share."""
    return {
        "BLOCK_M": shape.block_m,
        "BLOCK_N": shape.block_n,
        "BLOCK_D": shape.block_d,
        "EVEN_D": width % shape.block_d == 0,
        "PRECISION": precision,
        "num_warps": shape.num_warps,
        "num_stages": shape.num_stages,
    }


@triton.jit
def _logits_tile(
    queries, columns, q_inverse, k_inverse, scale, bonus,
    row, column, num_rows, num_columns, width, hard_negative,
    BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """logits[row][:, column] in float32; indices beyond the edge repeat the last row or column."""
    row = tl.minimum(row, num_rows - 1)
    column = tl.minimum(column, num_columns - 1)
    # the first row of a tile may lie beyond 2^31 elements; the distance to it within a tile does not
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
    queries, columns, q_inverse, k_inverse, scale_pointer, maxima, sums, positives,
    num_rows, num_columns, width, positive, hard_negative, bonus, columns_a_split,
    LARGEST: tl.constexpr, WITH_SUMS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """negatives.amax(1) of a range of columns, and WITH_SUMS also (negatives - maxima).exp().sum(1) and the positives.

    LARGEST > 0 says that no logit exceeds `scale + max(bonus, 0)`. Where the range down from there fits into
    float32, that bound serves as the maximum, and the similarities are not computed.
    """
    split = tl.program_id(1)
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    is_row = row < num_rows
    scale = tl.load(scale_pointer)
    start = split * columns_a_split
    end = tl.minimum(start + columns_a_split, num_columns)
    bounded = False
    if LARGEST > 0:
        bounded = 2 * scale + tl.abs(bonus) <= LARGEST
        end = tl.where(bounded, start, end)
    maximum = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    for first in range(start, end, BLOCK_N):
        column = first + tl.arange(0, BLOCK_N)
        logits = _logits_tile(
            queries, columns, q_inverse, k_inverse, scale, bonus,
            row, column, num_rows, num_columns, width, hard_negative,
            BLOCK_D, EVEN_D, PRECISION,
        )  # fmt: skip
        is_positive = column[None, :] == positive + row[:, None]
        negatives = tl.where(is_positive | (column >= end)[None, :], float("-inf"), logits)
        higher = tl.maximum(maximum, tl.max(negatives, 1))
        if WITH_SUMS:
            shift = tl.where(higher == float("-inf"), 0.0, higher)  # no negative yet: -inf - -inf is not a number
            total = total * tl.exp(maximum - shift) + tl.sum(tl.exp(negatives - shift[:, None]), 1)
            is_here = (positive + row >= first) & (positive + row < tl.minimum(first + BLOCK_N, end))
            tl.store(positives + row, tl.sum(tl.where(is_positive, logits, 0.0), 1), mask=is_row & is_here)
        maximum = higher
    if LARGEST > 0:
        maximum = tl.where(bounded, scale + tl.maximum(bonus, 0.0), maximum)
    place = row.to(tl.int64) * tl.num_programs(1) + split
    tl.store(maxima + place, maximum, mask=is_row)
    if WITH_SUMS:
        tl.store(sums + place, total, mask=is_row)


@triton.jit(do_not_specialize=RAGGED)
def exponentials_kernel(
    queries, columns, q_inverse, k_inverse, scale_pointer, shifts, unit_pointer, weights, sums, maxima, positives,
    num_rows, num_columns, width, positive, hard_negative, bonus, stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """weights = unit * k_inverse * (negatives - shifts).exp(), rounded; by tile of columns also the exact sums of the
    exponentials and the maxima of the negatives; the positives.
    """
    row_tiles = tl.cdiv(num_rows, BLOCK_M)
    row_tile = tl.program_id(0) % row_tiles  # neighbours share a tile of columns, and all the queries stay in L2
    column_tile = tl.program_id(0) // row_tiles
    row = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    column = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    logits = _logits_tile(
        queries, columns, q_inverse, k_inverse, tl.load(scale_pointer), bonus,
        row, column, num_rows, num_columns, width, hard_negative,
        BLOCK_D, EVEN_D, PRECISION,
    )  # fmt: skip
    is_row = row < num_rows
    is_column = column < num_columns
    is_positive = column[None, :] == positive + row[:, None]
    negatives = tl.where(is_positive | ~is_column[None, :], float("-inf"), logits)
    shift = tl.load(shifts + row, mask=is_row, other=float("inf"))
    exponentials = tl.exp(negatives - shift[:, None])
    factor = tl.load(k_inverse + column, mask=is_column, other=0.0) * tl.load(unit_pointer)
    first = row_tile.to(tl.int64) * BLOCK_M * stride + column_tile * BLOCK_N
    inside = tl.arange(0, BLOCK_M)[:, None] * stride + tl.arange(0, BLOCK_N)[None, :]
    rounded = (exponentials * factor[None, :]).to(weights.dtype.element_ty)
    # zeros beyond the last column: a mask that ends at a multiple of 16 leaves the stores wide
    tl.store(weights + first + inside, rounded, mask=is_row[:, None] & (column < stride)[None, :])
    place = row.to(tl.int64) * tl.cdiv(num_columns, BLOCK_N) + column_tile
    tl.store(sums + place, tl.sum(exponentials, 1), mask=is_row)
    tl.store(maxima + place, tl.max(negatives, 1), mask=is_row)
    is_here = (positive + row >= column_tile * BLOCK_N) & (
        positive + row < tl.minimum((column_tile + 1) * BLOCK_N, num_columns)
    )
    tl.store(positives + row, tl.sum(tl.where(is_positive, logits, 0.0), 1), mask=is_row & is_here)
