"""InfoNCE one block of keys at a time, for callers whose keys never lie in one place.

A caller that sees the blocks one after another (a ring of processes, keys streamed from a host) joins the blocks'
`logsumexp` by `torch.logaddexp` and their `largest` by `torch.maximum`. With n the joined logsumexp of a row's
negatives, m their largest logit and p its positive's, the row's

    loss                              logaddexp(0, n - p)
    gradient of the positive's logit  -sigmoid(n - p)
    gradients of the negatives        those of `block_gradients` with shifts m and
                                      factors scale * sigmoid(n - p) * exp(m - n) * upstream

so that a nearly certain positive leaves a small loss and gradient, not the rounding error of 1 minus a probability.

Rows are compared by dot product; callers that want cosines normalise them first. The products of half-precision
rows accumulate in float32. Neither function has a gradient of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .arguments import check_matrices
from .implementations import implementation, resolve
from .reference.blocks import compute_dtype

__all__ = ["block_gradients", "block_logsumexp"]


@torch.no_grad()
def block_logsumexp(
    queries: Tensor, keys: Tensor, scale: Tensor, positive_offset: int | None = None, impl: str = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    """What one block of keys adds to the rows' losses; the logits are `scale * queries @ keys.T`.

    Args:
        queries: [N, D].
        keys: [B, D], one block.
        scale: [], the reciprocal of the temperature.
        positive_offset: the positive of row `i` is key `positive_offset + i` of this block; None if the block
            holds no row's positive.
        impl: "auto", "triton" or "reference".

    Returns:
        Three [N], float32 (float64 for float64 inputs): the logsumexp of the row's negatives in this block, the
        logit of its positive, and the largest logit of its negatives; -inf where there is none.

    Raises:
        ValueError: shapes that do not fit together, or an implementation that cannot run here.
    """
    _check(queries, keys, positive_offset)
    impl = resolve(impl, "info_nce", len(queries) * len(keys), queries.device, compute_dtype(queries, keys))
    return implementation(impl, "key_blocks").block_logsumexp(queries, keys, scale, positive_offset)


@torch.no_grad()
def block_gradients(
    queries: Tensor,
    keys: Tensor,
    scale: Tensor,
    shifts: Tensor,
    factors: Tensor,
    positive_offset: int | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The products that make the gradients of one block's negatives, `w @ keys` and `w.T @ queries`, where

        w[i, j] = factors[i] * exp(scale * queries[i] @ keys[j] - shifts[i]), and 0 for a row's positive

    Args:
        queries, keys, scale, positive_offset, impl: as of `block_logsumexp`.
        shifts: [N], no smaller than the row's largest negative logit if nothing is to overflow.
        factors: [N]. They multiply the products, so that rounding `w` to half precision does not lose them.

    Returns:
        [N, D] and [B, D], float32 (float64 for float64 inputs).

    Raises:
        ValueError: as `block_logsumexp`.
    """
    _check(queries, keys, positive_offset)
    for name, values in (("shifts", shifts), ("factors", factors)):
        if values.shape != queries.shape[:1]:
            raise ValueError(f"{name} must be [{len(queries)}], not {list(values.shape)}")
    impl = resolve(impl, "info_nce", len(queries) * len(keys), queries.device, compute_dtype(queries, keys))
    return implementation(impl, "key_blocks").block_gradients(queries, keys, scale, shifts, factors, positive_offset)


def _check(queries: Tensor, keys: Tensor, positive_offset: int | None) -> None:
    check_matrices(queries=queries, keys=keys)
    if positive_offset is not None and not 0 <= positive_offset <= len(keys) - len(queries):
        raise ValueError(
            f"the positives of {len(queries)} queries at positive_offset={positive_offset} are not all among the "
            f"block's {len(keys)} keys"
        )
