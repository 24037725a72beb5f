"""InfoNCE of nested prefixes on a GPU: two Triton kernels, then the vendor's products with the results of the second.

For a strip of rows, the first kernel runs once along the width. After each prefix it sums the exponentials of the
prefix's logits. These sums give the factor of every prefix and row. The second kernel computes, for every segment
between two prefixes, the sum of the weights of all prefixes that contain it. It runs from the longest prefix to the
shortest.

Let D be the longest width and W the sum of all widths. The kernels take 2 N M (D + W) FLOP and the gradients 4 N M D.
For widths that are halved this is about 10 N M D. A separate call for each width would take 6 N M W, or 12 N M D. A
second kernel that ran from the shortest prefix to the longest and added to the segments' weights would save products.
But it would round each sum L times and move L^2 / 2 tiles, where L is the number of prefixes.

As in `info_nce`, a row's positive is kept separate from its negatives.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from ..reference.info_nce import NORM_EPS
from ..reference.matryoshka_info_nce import inverse_norms, segments, subtract_radial_parts_
from ..types import Gradients, Ids, Needs
from . import similarity, strips
from .masks import Masks, leave_out
from .products import accumulate_, product_
from .strips import stride
from .tile_of_strip import holds_positive, store_tile, tile_of_program
from .tiles import constants as constants_of
from .tiles import precision_for, tiles

TINY = torch.finfo(torch.float32).tiny
LEAST = 2.0**-100  # float16's unit divided by this is finite


class _Problem(NamedTuple):
    """All rows, or a strip of them, against all columns."""

    q: Tensor
    """[n, D], contiguous, with the dtype of k."""
    k: Tensor
    """[C, D], contiguous."""
    q_inverse: Tensor
    """[L, n] float32, inverse norms of the prefixes."""
    k_inverse: Tensor
    """[L, C] float32."""
    scale: Tensor
    """[1] float32."""
    widths: Sequence[int]
    """The widths of the L prefixes."""
    ends: Tensor
    """[L] int32, the widths as a tensor."""
    masks: Masks
    positive: int

    def strip(self, rows: slice) -> _Problem:
        return self._replace(
            q=self.q[rows],
            q_inverse=self.q_inverse[:, rows].contiguous(),
            masks=self.masks.strip(rows),
            positive=self.positive + rows.start,
        )

    def strips(self) -> Iterator[slice]:
        """Slices of rows; for each slice, the weights of all segments fit the budget."""
        bytes_a_row = len(self.ends) * stride(len(self.k)) * self.k.element_size()
        block = tiles(self.k.dtype, hopper=False).block_m
        height = max(1, strips.WORKSPACE_BYTES // bytes_a_row // block) * block
        for start in range(0, len(self.q), height):
            yield slice(start, min(start + height, len(self.q)))

    def launch(self, kernel: Any, *results: Tensor, stride: tuple[int, ...] = ()) -> None:
        """Run a kernel with one program for each tile."""
        shape = tiles(self.k.dtype, hopper=False)
        (rows, width), columns = self.q.shape, len(self.k)
        programs = triton.cdiv(rows, shape.block_m) * triton.cdiv(columns, shape.block_n)
        constants = constants_of(shape, width, precision_for(self.k))
        constants |= {"EVEN_D": all(end % shape.block_d == 0 for end in self.widths)}
        kernel[(programs,)](
            self.q, self.k, self.q_inverse, self.k_inverse, self.scale, self.ends, *self.masks.tensors(), *results,
            rows, columns, width, len(self.ends), self.positive, self.masks.number(), *stride,
            **constants, **self.masks.constants(),
        )  # fmt: skip


def matryoshka_info_nce(
    queries: Tensor,
    columns: Tensor,
    temperature: Tensor,
    coefficients: Tensor | None,
    ids: Ids | None,
    widths: Sequence[int],
    weights: Sequence[float],
    positive_offset: int,
    normalize: bool,
    needs: Needs,
) -> tuple[Tensor, Gradients]:
    """`reference.matryoshka_info_nce`."""
    with torch.cuda.device_of(queries), torch.autocast(queries.device.type, enabled=False):
        dtype = torch.promote_types(queries.dtype, columns.dtype)
        q, k = queries.to(dtype).contiguous(), columns.to(dtype).contiguous()
        scale = temperature.float().reciprocal().reshape(1)
        ends, of_prefixes = torch.tensor(widths, dtype=torch.int32), torch.tensor(weights, dtype=torch.float32)
        ends, of_prefixes = (values.to(q.device, non_blocking=True) for values in (ends, of_prefixes))
        norms = inverse_norms(q, widths, normalize), inverse_norms(k, widths, normalize)
        problem = _Problem(q, k, *norms, scale, widths, ends, Masks.of_ids(ids), positive_offset)
        factors = of_prefixes[:, None] * (0 if coefficients is None else coefficients.float())
        if coefficients is None:
            needs = Needs(False, False, False)
        totals = _Totals(problem, factors.expand(len(widths), len(q)), needs)
        losses = torch.cat([totals.add(rows) for rows in problem.strips()], dim=1)
        moment = totals.radials_q.sum()
        totals.finish_(normalize)
    grad_temperature = -moment * scale[0] if needs.temperature else None
    return of_prefixes @ losses, Gradients(totals.q, totals.k, grad_temperature)


class _Totals:
    """The gradients, to which strips of rows add."""

    def __init__(self, problem: _Problem, factors: Tensor, needs: Needs) -> None:
        self.problem, self.factors, self.needs = problem, factors, needs
        q, k = problem.q, problem.k
        self.q = torch.zeros_like(q, dtype=torch.float32) if needs.queries else None
        self.k = torch.zeros_like(k, dtype=torch.float32) if needs.columns else None
        self.radials_q, self.radials_k = torch.zeros_like(problem.q_inverse), torch.zeros_like(problem.k_inverse)
        self.pulls = torch.zeros_like(problem.q_inverse)
        # float16 would lose small numbers, so stored values are relative to the largest value and rescaled at the end
        unit = similarity.storage_unit(q.dtype)
        self.unit = unit / problem.k_inverse.amax().clamp_min(NORM_EPS).reshape(1)
        largest = (factors.abs() * problem.q_inverse).sum(dim=0) * q.abs().amax(dim=1)
        self.unit_of_queries = unit / largest.amax().clamp_min(LEAST)

    def add(self, rows: slice) -> Tensor:
        """Add the gradients of a strip of n rows, and return its losses [L, n]."""
        strip, factors = self.problem.strip(rows), self.factors[:, rows]
        logsumexp, maxima, positives = _sums(strip)
        losses = F.softplus(logsumexp - positives)
        if not any(self.needs):
            return losses
        gains = factors * (maxima - positives - losses).masked_fill_(logsumexp == -torch.inf, -torch.inf).exp()
        row_units = (gains.abs() * strip.q_inverse).sum(dim=0).clamp_min(TINY)
        weights, radials_q, radials_k = _weights(strip, maxima, gains, row_units, self.unit)
        pulls = factors * (logsumexp - positives).sigmoid()
        partners = slice(strip.positive, strip.positive + len(strip.q))
        self.radials_q[:, rows] = radials_q - pulls * positives
        self.radials_k += radials_k
        self.radials_k[:, partners] -= pulls * positives
        self.pulls[:, rows] = pulls * strip.q_inverse * strip.k_inverse[:, partners]
        for here, of_segment in zip(segments(self.problem.widths), weights, strict=True):
            if self.q is not None:
                product_(self.q[rows, here], of_segment, strip.k[:, here])
                self.q[rows, here] *= (row_units / self.unit)[:, None]
            if self.k is not None:
                weighted = similarity.weighted(strip.q[:, here], row_units, self.unit_of_queries)
                accumulate_(self.k[:, here], of_segment.T, weighted)
        return losses

    def finish_(self, normalize: bool) -> None:
        """Add the contributions of the positives, and remove the radial parts."""
        q, k, scale = self.problem.q, self.problem.k, self.problem.scale
        partners = slice(self.problem.positive, self.problem.positive + len(q))
        if self.k is not None:
            self.k /= self.unit * self.unit_of_queries
        pulls = self.pulls.flip(0).cumsum(dim=0).flip(0)  # for each segment, summed over the prefixes that contain it
        for here, pull in zip(segments(self.problem.widths), pulls, strict=True):
            if self.q is not None:
                self.q[:, here].addcmul_(k[partners, here].float(), pull[:, None], value=-1)
            if self.k is not None:
                self.k[partners, here].addcmul_(q[:, here].float(), pull[:, None], value=-1)
        both = (
            (self.q, q, self.problem.q_inverse, self.radials_q),
            (self.k, k, self.problem.k_inverse, self.radials_k),
        )
        for gradient, rows, norms, radials in both:
            if gradient is not None:
                gradient *= scale
            if normalize:
                subtract_radial_parts_(gradient, rows, norms, radials, self.problem.widths)


def _sums(strip: _Problem) -> tuple[Tensor, Tensor, Tensor]:
    """For each prefix and row: logsumexp of the negatives, the largest negative (0 if none), and the positive logit."""
    block = tiles(strip.k.dtype, hopper=False).block_n
    maxima, sums = strip.scale.new_empty(2, *strip.q_inverse.shape, triton.cdiv(len(strip.k), block))
    positives = strip.scale.new_empty(strip.q_inverse.shape)
    strip.launch(prefix_sums_kernel, maxima, sums, positives)
    largest = maxima.amax(dim=2)
    return torch.logsumexp(maxima + sums.log(), dim=2), largest.masked_fill_(largest == -torch.inf, 0.0), positives


def _weights(
    strip: _Problem, maxima: Tensor, gains: Tensor, row_units: Tensor, unit: Tensor
) -> tuple[list[Tensor], Tensor, Tensor]:
    """The factors from which the gradients of a strip of n rows are computed.

    With g = gains * exp(negatives - maxima) for every prefix, they are

        for each of the L segments, the sum of g / |q| / |k| over the prefixes that contain it, times unit / row_units,
        [n, C] of the inputs' dtype;
        the sums of (g * logits) over the columns, [L, n], and over the rows, [L, C], in float32
    """
    shape = tiles(strip.k.dtype, hopper=False)
    prefixes, columns = len(strip.ends), len(strip.k)
    weights = strip.k.new_empty(prefixes, len(strip.q), stride(columns))
    radials_q = strip.scale.new_empty(prefixes, len(strip.q), triton.cdiv(columns, shape.block_n))
    radials_k = strip.scale.new_empty(prefixes, triton.cdiv(len(strip.q), shape.block_m), columns)
    shares = gains * strip.q_inverse / row_units * unit
    strip.launch(
        prefix_weights_kernel, maxima, gains.contiguous(), shares, weights, radials_q, radials_k,
        stride=(weights.stride(1),),
    )  # fmt: skip
    return [of_segment[:, :columns] for of_segment in weights], radials_q.sum(dim=2), radials_k.sum(dim=1)


@triton.jit
def add_products(
    products, queries, columns, row, column, width, start, end,
    BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """products + queries[row, start:end] @ columns[column, start:end].T; EVEN_D: BLOCK_D divides start and end."""
    # the first row of a tile may lie beyond 2^31 elements, but distances within a tile are smaller
    first_row = tl.min(row, 0)
    first_column = tl.min(column, 0)
    q_pointers = queries + first_row.to(tl.int64) * width + ((row - first_row) * width)[:, None]
    k_pointers = columns + first_column.to(tl.int64) * width + ((column - first_column) * width)[None, :]
    for first in range(start, end, BLOCK_D):
        if EVEN_D:
            d = first // BLOCK_D * BLOCK_D + tl.arange(0, BLOCK_D)  # shows the compiler that it is a multiple
            q = tl.load(q_pointers + d[None, :])
            k = tl.load(k_pointers + d[:, None])
        else:
            d = first + tl.arange(0, BLOCK_D)
            q = tl.load(q_pointers + d[None, :], mask=(d < end)[None, :], other=0.0)
            k = tl.load(k_pointers + d[:, None], mask=(d < end)[:, None], other=0.0)
        products = tl.dot(q, k, products, input_precision=PRECISION)
    return products


@triton.jit
def _is_negative(
    zeros, row, column, query_ids, column_ids, excluded_rows, thresholds,
    num_rows, num_columns, positive, num_with_ids, IDS: tl.constexpr, MULTIPLE: tl.constexpr,
):  # fmt: skip
    """bool [rows, columns]: neither the positive, nor beyond the last column, nor excluded by a mask."""
    counting, _ = leave_out(
        zeros, row, column, -1, 0.0, query_ids, column_ids, excluded_rows, thresholds,
        num_rows, num_columns, num_with_ids, IDS, MULTIPLE,
    )  # fmt: skip
    is_inside = (column[None, :] != positive + row[:, None]) & (column < num_columns)[None, :]
    return is_inside & (counting == 0.0)


@triton.jit
def _scales(q_inverse, k_inverse, prefix, row, column, num_rows, num_columns):
    """Load the inverse norms of a tile's rows and columns; 0 beyond the edges."""
    of_rows = tl.load(q_inverse + prefix * num_rows.to(tl.int64) + row, mask=row < num_rows, other=0.0)
    of_columns = tl.load(k_inverse + prefix * num_columns.to(tl.int64) + column, mask=column < num_columns, other=0.0)
    return of_rows, of_columns


@triton.jit(do_not_specialize=["num_rows", "num_columns", "num_prefixes", "positive", "num_with_ids"])
def prefix_sums_kernel(
    queries, columns, q_inverse, k_inverse, scale_pointer, ends, query_ids, column_ids, excluded_rows, thresholds,
    maxima, sums, positives,
    num_rows, num_columns, width, num_prefixes, positive, num_with_ids,
    IDS: tl.constexpr, MULTIPLE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """For each prefix and tile of columns: negatives.amax(1), (negatives - maxima).exp().sum(1); and the positives."""
    _, column_tile, row, column = tile_of_program(num_rows, BLOCK_M, BLOCK_N)
    is_row = row < num_rows
    zeros = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    is_negative = _is_negative(
        zeros, row, column, query_ids, column_ids, excluded_rows, thresholds,
        num_rows, num_columns, positive, num_with_ids, IDS, MULTIPLE,
    )  # fmt: skip
    is_positive = column[None, :] == positive + row[:, None]
    is_here = holds_positive(row, positive, column_tile, num_rows, num_columns, BLOCK_N)
    scale = tl.load(scale_pointer)
    products = zeros
    start = tl.minimum(0, width)
    for prefix in range(0, num_prefixes):
        stop = tl.load(ends + prefix)
        products = add_products(
            products, queries, columns, tl.minimum(row, num_rows - 1), tl.minimum(column, num_columns - 1),
            width, start, stop, BLOCK_D, EVEN_D, PRECISION,
        )  # fmt: skip
        of_rows, of_columns = _scales(q_inverse, k_inverse, prefix, row, column, num_rows, num_columns)
        logits = products * (of_rows * scale)[:, None] * of_columns[None, :]
        negatives = tl.where(is_negative, logits, float("-inf"))
        maximum = tl.max(negatives, 1)
        shift = tl.where(maximum == float("-inf"), 0.0, maximum)  # without negatives, -inf - -inf would be NaN
        place = (prefix * num_rows.to(tl.int64) + row) * tl.cdiv(num_columns, BLOCK_N) + column_tile
        tl.store(maxima + place, maximum, mask=is_row)
        tl.store(sums + place, tl.sum(tl.exp(negatives - shift[:, None]), 1), mask=is_row)
        tl.store(
            positives + prefix * num_rows.to(tl.int64) + row,
            tl.sum(tl.where(is_positive, logits, 0.0), 1),
            mask=is_here,
        )
        start = stop


@triton.jit(do_not_specialize=["num_rows", "num_columns", "num_prefixes", "positive", "num_with_ids"])
def prefix_weights_kernel(
    queries, columns, q_inverse, k_inverse, scale_pointer, ends, query_ids, column_ids, excluded_rows, thresholds,
    maxima, gains, shares, weights, radials_q, radials_k,
    num_rows, num_columns, width, num_prefixes, positive, num_with_ids, stride,
    IDS: tl.constexpr, MULTIPLE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The weights of every segment, and the radial sums of every prefix.

    With e = (negatives - maxima).exp() of a prefix: weights = (shares * e * k_inverse), summed from the last prefix to
    this one and rounded; gains * e * logits, summed over the tile's columns, and over its rows.
    """
    row_tile, column_tile, row, column = tile_of_program(num_rows, BLOCK_M, BLOCK_N)
    is_row = row < num_rows
    scale = tl.load(scale_pointer)
    zeros = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    is_negative = _is_negative(
        zeros, row, column, query_ids, column_ids, excluded_rows, thresholds,
        num_rows, num_columns, positive, num_with_ids, IDS, MULTIPLE,
    )  # fmt: skip
    total = zeros
    for shorter in range(0, num_prefixes):
        prefix = num_prefixes - 1 - shorter
        products = add_products(
            zeros, queries, columns,
            tl.minimum(row, num_rows - 1), tl.minimum(column, num_columns - 1),
            width, tl.minimum(0, width), tl.load(ends + prefix), BLOCK_D, EVEN_D, PRECISION,
        )  # fmt: skip
        of_rows, of_columns = _scales(q_inverse, k_inverse, prefix, row, column, num_rows, num_columns)
        logits = products * (of_rows * scale)[:, None] * of_columns[None, :]
        here = prefix * num_rows.to(tl.int64) + row
        shift = tl.load(maxima + here, mask=is_row, other=float("inf"))
        exponentials = tl.where(is_negative, tl.exp(logits - shift[:, None]), 0.0)
        share = tl.load(shares + here, mask=is_row, other=0.0)
        total += exponentials * share[:, None] * of_columns[None, :]
        radial = exponentials * logits * tl.load(gains + here, mask=is_row, other=0.0)[:, None]
        place = here * tl.cdiv(num_columns, BLOCK_N) + column_tile
        tl.store(radials_q + place, tl.sum(radial, 1), mask=is_row)
        place_k = (prefix * tl.cdiv(num_rows, BLOCK_M).to(tl.int64) + row_tile) * num_columns + column
        tl.store(radials_k + place_k, tl.sum(radial, 0), mask=column < num_columns)
        segment = weights + prefix * (num_rows.to(tl.int64) * stride)
        store_tile(segment, total, row_tile, column_tile, row, column, num_rows, stride, BLOCK_M, BLOCK_N)
