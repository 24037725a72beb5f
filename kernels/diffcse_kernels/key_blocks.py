"""InfoNCE one block of keys at a time, for callers that never hold all keys in one place.

Some callers see the blocks one after another: a ring of processes, or keys streamed from a host. They join the blocks'
`logsumexp` by `torch.logaddexp` and their `largest` by `torch.maximum`. Let n be the joined logsumexp of a row's
negatives, m their largest logit and p the logit of its positive. Then for this row

    loss                              logaddexp(0, n - p)
    gradient of the positive's logit  -sigmoid(n - p)
    gradients of the negatives        `block_gradients` with shifts m and
                                      factors scale * sigmoid(n - p) * exp(m - n) * upstream

In this form a nearly certain positive has a small loss and gradient, not the rounding error of 1 minus a probability.

Rows are compared by dot product; callers that want cosines must normalise the rows first. The products of
half-precision rows accumulate in float32. Neither function has a gradient of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .arguments import check_matrices
from .columns import join_ids
from .implementations import implementation, resolve
from .reference.blocks import compute_dtype
from .types import Ids, NegativeSet

__all__ = ["block_gradients", "block_logsumexp"]


@torch.no_grad()
def block_logsumexp(
    queries: Tensor,
    keys: Tensor,
    scale: Tensor,
    positive_offset: int | None = None,
    impl: str = "auto",
    *,
    query_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    thresholds: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The contribution of one block of keys to the rows' losses; the logits are `scale * queries @ keys.T`.

    Args:
        queries: [N, D].
        keys: [B, D], one block.
        scale: [], the reciprocal of the temperature.
        positive_offset: the positive of row `i` is key `positive_offset + i` of this block; None if the block
            holds no row's positive.
        impl: "auto", "triton" or "reference".
        query_ids: [N] or [N, C] integers. A key that shares an id with a row is not a negative of it.
        key_ids: [B] or [B, C] integers, required with `query_ids`.
        thresholds: [N]. A key with a larger logit is not a negative of the row; for a margin m, pass
            `positives + m * scale`. Neither thresholds nor ids affect a row's positive.

    Returns:
        Three tensors [N], float32 (float64 for float64 inputs): the logsumexp of the row's negatives in this block,
        the logit of its positive, and the largest logit of its negatives; -inf where the block has none.

    Raises:
        ValueError: shapes that do not fit together, or an implementation that cannot run here.

    Example:
        >>> import torch
        >>> from diffcse_kernels import info_nce
        >>> from diffcse_kernels.key_blocks import block_logsumexp
        >>> queries, keys, scale = torch.eye(2), torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 1.0]]), torch.tensor(2.0)
        >>> first, positives, _ = block_logsumexp(queries, keys[:2], scale, positive_offset=0)
        >>> second, _, _ = block_logsumexp(queries, keys[2:], scale)
        >>> negatives = torch.logaddexp(first, second)
        >>> loss = torch.logaddexp(torch.zeros(2), negatives - positives).mean()
        >>> torch.allclose(loss, info_nce(queries, keys, 0.5, normalize=False))
        True
    """
    ids = _checked(queries, keys, positive_offset, query_ids, key_ids, thresholds=thresholds)
    impl = resolve(impl, "info_nce", len(queries) * len(keys), queries.device, compute_dtype(queries, keys))
    return implementation(impl, "key_blocks").block_logsumexp(queries, keys, scale, positive_offset, ids, thresholds)


@torch.no_grad()
def block_gradients(
    queries: Tensor,
    keys: Tensor,
    scale: Tensor,
    shifts: Tensor,
    factors: Tensor,
    positive_offset: int | None = None,
    impl: str = "auto",
    *,
    query_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    thresholds: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The gradients of one block's negatives, as the products `w @ keys` and `w.T @ queries`, where

        w[i, j] = factors[i] * exp(scale * queries[i] @ keys[j] - shifts[i]) for a row's negatives, 0 otherwise

    Args:
        queries, keys, scale, positive_offset, impl, query_ids, key_ids, thresholds: as in `block_logsumexp`.
        shifts: [N]. To avoid overflow, they must be at least the row's largest negative logit.
        factors: [N]. They multiply the products, so rounding `w` to half precision does not lose them.

    Returns:
        [N, D] and [B, D], float32 (float64 for float64 inputs).

    Raises:
        ValueError: as in `block_logsumexp`.

    Example:
        >>> import torch
        >>> from diffcse_kernels.key_blocks import block_gradients
        >>> queries, keys = torch.eye(2), torch.tensor([[2.0, 1.0], [0.0, 3.0]])
        >>> shifts, factors = torch.tensor([2.0, 3.0]), torch.tensor([1.0, 10.0])
        >>> of_queries, of_keys = block_gradients(queries, keys, torch.tensor(1.0), shifts, factors)
        >>> weights = factors[:, None] * torch.exp(queries @ keys.T - shifts[:, None])
        >>> torch.allclose(of_queries, weights @ keys), torch.allclose(of_keys, weights.T @ queries)
        (True, True)
    """
    vectors = {"shifts": shifts, "factors": factors, "thresholds": thresholds}
    ids = _checked(queries, keys, positive_offset, query_ids, key_ids, **vectors)
    impl = resolve(impl, "info_nce", len(queries) * len(keys), queries.device, compute_dtype(queries, keys))
    run = implementation(impl, "key_blocks").block_gradients
    return run(queries, keys, scale, shifts, factors, positive_offset, ids, thresholds)


def _checked(
    queries: Tensor,
    keys: Tensor,
    positive_offset: int | None,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    **vectors: Tensor | None,
) -> Ids | None:
    """Check all arguments, and return the ids if there are any."""
    check_matrices(queries=queries, keys=keys)
    if positive_offset is not None and not 0 <= positive_offset <= len(keys) - len(queries):
        raise ValueError(
            f"the positives of {len(queries)} queries at positive_offset={positive_offset} are not all among the "
            f"block's {len(keys)} keys"
        )
    for name, values in vectors.items():
        if values is not None and values.shape != queries.shape[:1]:
            raise ValueError(f"{name} must be [{len(queries)}], not {list(values.shape)}")
    return join_ids(queries, query_ids, {"keys": NegativeSet(keys, key_ids)})
