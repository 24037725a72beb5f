"""The logit of every row's own positive. It is computed first, because the margin is measured from it."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..reference.masks import thresholds_of
from .similarity import RAGGED, Pair, logits_tile
from .tiles import constants, precision_for, tiles_for


def with_margin(pair: Pair, margin: float) -> Pair:
    """The pair with a mask that excludes columns whose similarity exceeds the positive's by more than the margin."""
    thresholds = thresholds_of(own_logits(pair), margin, pair.scale)
    return pair._replace(masks=pair.masks._replace(thresholds=thresholds))


def own_logits(pair: Pair) -> Tensor:
    """[N] float32, from tiles on the diagonal; the products are the same as in the other kernels."""
    rows, width = pair.q.values.shape
    shape = tiles_for(pair.q.values)
    logits = pair.scale.new_empty(rows)
    if rows:
        own_logits_kernel[(triton.cdiv(rows, shape.block_m),)](
            pair.q.values, pair.k.values, pair.q.inverse_norms, pair.k.inverse_norms, pair.scale, logits,
            rows, len(pair.k.values), width, pair.positive,
            **constants(shape, width, precision_for(pair.q.values)),
        )  # fmt: skip
    return logits


@triton.jit(do_not_specialize=RAGGED)
def own_logits_kernel(
    queries, columns, q_inverse, k_inverse, scale_pointer, out,
    num_rows, num_columns, width, positive,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out = logits[arange(N), positive + arange(N)]."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    own = tl.zeros((BLOCK_M,), tl.float32)
    for first in range(0, BLOCK_M, BLOCK_N):
        column = positive + tl.program_id(0) * BLOCK_M + first + tl.arange(0, BLOCK_N)
        logits = logits_tile(
            queries, columns, q_inverse, k_inverse, tl.load(scale_pointer), 0.0,
            row, column, num_rows, num_columns, width, -1,
            BLOCK_D, EVEN_D, PRECISION,
        )  # fmt: skip
        own += tl.sum(tl.where(column[None, :] == positive + row[:, None], logits, 0.0), 1)
    tl.store(out + row, own, mask=row < num_rows)
