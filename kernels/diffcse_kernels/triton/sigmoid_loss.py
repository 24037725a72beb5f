"""The sigmoid loss on a GPU: a Triton kernel computes strips of slopes, and the vendor's library multiplies with them.

Let x_ij be the logit of row i and column j, s+_i the logit of its positive, c_i the factor on the row's loss. Then

    loss_i   = softplus(-s+_i) + sum_j softplus(x_ij)     over the negatives
    w_ij     = sigmoid(x_ij), 0 for the positive          rounded to the dtype of the inputs
    d_i      = c_i scale sigmoid(-s+_i)
    grad_q_i = c_i scale sum_j w_ij k_j - d_i k+_i        grad_k_j = sum_i w_ij c_i scale q_i - d_i q_i at i's positive

for a strip of rows at a time, 6 N M D FLOP in total. A slope is at most 1 and depends on nothing else in its row, so no
earlier pass is needed. The gradients of temperature and bias are sums that the kernel computes in float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..types import Ids, SigmoidGradients, SigmoidNeeds
from . import similarity
from .masks import Masks, leave_out
from .normed_rows import Rows
from .products import accumulate_, product_
from .replaced_token_bce import loss_and_slope
from .row_gradients import finish_
from .similarity import RAGGED, Pair, logits_tile
from .strips import stride
from .tile_of_strip import holds_positive, store_tile, tile_of_program
from .tiles import tiles

NEVER = tl.constexpr(-1e30)  # a logit; finite, because its product with a slope of 0 must be 0


def sigmoid_loss(
    queries: Tensor,
    keys: Tensor,
    temperature: Tensor,
    bias: Tensor,
    coefficients: Tensor | None,
    ids: Ids | None,
    positive_offset: int,
    normalize: bool,
    needs: SigmoidNeeds,
) -> tuple[Tensor, SigmoidGradients]:
    """`reference.sigmoid_loss`."""
    with torch.cuda.device_of(queries), torch.autocast(queries.device.type, enabled=False):
        scale, offset = temperature.float().reciprocal().reshape(1), bias.float().reshape(1)
        rows = Rows.both(queries, keys, normalize)
        pair = Pair(*rows, scale, normalize, positive_offset, masks=Masks.of_ids(ids))
        factors = torch.zeros_like(pair.q.inverse_norms) if coefficients is None else coefficients.float()
        if coefficients is None:
            needs = SigmoidNeeds(False, False, False, False)
        sums, grad_queries, grad_keys = _sweep(pair, offset, factors, needs)
        losses, slopes, moments, _ = sums
        return losses, SigmoidGradients(
            grad_queries,
            grad_keys,
            -(factors * moments).sum() * scale[0] if needs.temperature else None,
            (factors * slopes).sum() if needs.bias else None,
        )


def _sweep(
    pair: Pair, bias: Tensor, coefficients: Tensor, needs: SigmoidNeeds
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The sums of every row as `_strip` returns them, [4, N], and the gradients of both sides."""
    q, k = pair.q, pair.k
    sums = pair.scale.new_empty(4, len(q.values))
    totals_q = torch.empty_like(q.values, dtype=torch.float32) if needs.queries else None
    totals_k = torch.zeros_like(k.values, dtype=torch.float32) if needs.keys else None
    # float16 would lose small numbers, so stored values are relative to the largest value and rescaled at the end
    unit, unit_of_queries = similarity.unit_of_exponentials(pair), similarity.unit_of_queries(pair)
    largest = coefficients.abs().amax().clamp_min(torch.finfo(torch.float32).tiny)
    relative = coefficients / largest * q.inverse_norms
    for rows in similarity.strips(pair):
        weights, sums[:, rows] = _strip(pair, rows, bias, unit, needs.queries or needs.keys)
        if totals_q is not None:
            product_(totals_q[rows], weights, k.values)
        if totals_k is not None:
            queries = similarity.weighted(q.values[rows], relative[rows], unit_of_queries)
            accumulate_(totals_k, weights.T, queries)
        del weights  # otherwise two strips would be alive while the next one is computed
    partners = slice(pair.positive, pair.positive + len(q.values))
    pulls = coefficients * pair.scale * sums[3] * q.inverse_norms * k.inverse_norms[partners]
    if totals_q is not None:
        factors = coefficients * pair.scale / unit * q.inverse_norms
        finish_(totals_q, factors, q, k.values, pair.positive, pulls, pair.normalized)
    if totals_k is not None:
        column_pulls = torch.zeros_like(k.inverse_norms)
        column_pulls[partners] = pulls
        factors = (largest * pair.scale / (unit * unit_of_queries)).expand(len(k.values)).contiguous()
        finish_(totals_k, factors, k, q.values, -pair.positive, column_pulls, pair.normalized)
    return sums, totals_q, totals_k


def _strip(pair: Pair, rows: slice, bias: Tensor, unit: Tensor, with_weights: bool) -> tuple[Tensor, Tensor]:
    """The slopes of a strip of n rows, and its sums.

    Returns:
        unit * sigmoid(negatives) / |k|, [n, M] of the inputs' dtype (undefined without `with_weights`); and [4, n]
        float32: the losses, the sums of slope, the sums of slope * scale * similarity, and sigmoid(-positive).
    """
    height, columns = rows.stop - rows.start, len(pair.k.values)
    shape = tiles(pair.q.values.dtype, hopper=False)  # losses and slopes take the registers that larger tiles need
    row_tiles, column_tiles = triton.cdiv(height, shape.block_m), triton.cdiv(columns, shape.block_n)
    weights = pair.k.values.new_empty(height if with_weights else 0, stride(columns))
    sums = pair.scale.new_empty(3, height, column_tiles)
    pulls = pair.scale.new_empty(height)
    strip = pair.strip(rows)
    slopes_kernel[(row_tiles * column_tiles,)](
        *strip.tensors(), bias, unit, weights, *sums, pulls, *strip.numbers(), weights.stride(0),
        WITH_WEIGHTS=with_weights, **strip.constants(shape),
    )  # fmt: skip
    return weights[:, :columns], torch.cat([sums.sum(dim=2), pulls[None]])


@triton.jit(do_not_specialize=RAGGED)
def slopes_kernel(
    queries, columns, q_inverse, k_inverse, scale_pointer, query_ids, column_ids, excluded_rows, thresholds,
    bias_pointer, unit_pointer, weights, losses, slopes, moments, pulls,
    num_rows, num_columns, width, positive, hard_negative, bonus, num_with_ids, stride,
    IDS: tl.constexpr, MULTIPLE: tl.constexpr, WITH_WEIGHTS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """weights = unit * k_inverse * sigmoid(negatives), rounded.

    For each tile of columns it also stores the exact sums of the losses softplus(-z * logits), of the slopes
    -z * sigmoid(-z * logits), and of slopes * (logits - bias). For each row it stores sigmoid(-positive).
    """
    row_tile, column_tile, row, column = tile_of_program(num_rows, BLOCK_M, BLOCK_N)
    products = logits_tile(
        queries, columns, q_inverse, k_inverse, tl.load(scale_pointer), bonus,
        row, column, num_rows, num_columns, width, hard_negative,
        BLOCK_D, EVEN_D, PRECISION,
    )  # fmt: skip
    is_row = row < num_rows
    is_positive = column[None, :] == positive + row[:, None]
    counting, _ = leave_out(
        products, row, column, hard_negative, bonus, query_ids, column_ids, excluded_rows, thresholds,
        num_rows, num_columns, num_with_ids, IDS, MULTIPLE,
    )  # fmt: skip
    counts = (counting != float("-inf")) & (column < num_columns)[None, :]
    bias = tl.load(bias_pointer)
    logits = tl.where(is_positive | counts, products + bias, NEVER)  # the loss and slope of NEVER are 0
    loss, slope = loss_and_slope(logits, is_positive)
    place = row.to(tl.int64) * tl.cdiv(num_columns, BLOCK_N) + column_tile
    tl.store(losses + place, tl.sum(loss, 1), mask=is_row)
    tl.store(slopes + place, tl.sum(slope, 1), mask=is_row)
    tl.store(moments + place, tl.sum(slope * (logits - bias), 1), mask=is_row)
    is_here = holds_positive(row, positive, column_tile, num_rows, num_columns, BLOCK_N)
    tl.store(pulls + row, -tl.sum(tl.where(is_positive, slope, 0.0), 1), mask=is_here)
    if WITH_WEIGHTS:
        factor = tl.load(k_inverse + column, mask=column < num_columns, other=0.0) * tl.load(unit_pointer)
        values = tl.where(is_positive, 0.0, slope) * factor[None, :]
        store_tile(weights, values, row_tile, column_tile, row, column, num_rows, stride, BLOCK_M, BLOCK_N)
