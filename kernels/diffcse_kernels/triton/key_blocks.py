"""InfoNCE for one block of keys at a time, with the kernels of InfoNCE."""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import Ids
from . import similarity
from .masks import Masks
from .normed_rows import Rows
from .products import accumulate_, product_
from .similarity import Pair


def block_logsumexp(
    queries: Tensor,
    keys: Tensor,
    scale: Tensor,
    positive_offset: int | None = None,
    ids: Ids | None = None,
    thresholds: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`diffcse_kernels.key_blocks.block_logsumexp`."""
    if not len(keys):
        logsumexp, positives, largest = queries.new_full((3, len(queries)), -torch.inf, dtype=torch.float32)
        return logsumexp, positives, largest
    with torch.cuda.device_of(queries), torch.autocast(queries.device.type, enabled=False):
        return similarity.negatives_logsumexp(_pair(queries, keys, scale, positive_offset, ids, thresholds))


def block_gradients(
    queries: Tensor,
    keys: Tensor,
    scale: Tensor,
    shifts: Tensor,
    factors: Tensor,
    positive_offset: int | None = None,
    ids: Ids | None = None,
    thresholds: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`diffcse_kernels.key_blocks.block_gradients`."""
    grad_q = torch.zeros_like(queries, dtype=torch.float32)
    grad_k = torch.zeros_like(keys, dtype=torch.float32)
    if not len(queries) or not len(keys):
        return grad_q, grad_k
    with torch.cuda.device_of(queries), torch.autocast(queries.device.type, enabled=False):
        pair = _pair(queries, keys, scale, positive_offset, ids, thresholds)
        shifts, factors = shifts.float(), factors.float()
        unit, unit_of_queries = similarity.unit_of_exponentials(pair), similarity.unit_of_queries(pair)
        largest_factor = factors.abs().amax().clamp_min(torch.finfo(torch.float32).tiny)
        relative = factors / largest_factor
        for rows in similarity.strips(pair):
            weights, *_ = similarity.exponentials(pair, rows, shifts[rows], unit)
            product_(grad_q[rows], weights, pair.k.values)
            accumulate_(grad_k, weights.T, similarity.weighted(pair.q.values[rows], relative[rows], unit_of_queries))
            del weights  # otherwise two strips would be alive while the next one is computed
        grad_q *= (factors / unit)[:, None]
        grad_k *= largest_factor / (unit * unit_of_queries)
    return grad_q, grad_k


def _pair(
    queries: Tensor,
    keys: Tensor,
    scale: Tensor,
    positive_offset: int | None,
    ids: Ids | None,
    thresholds: Tensor | None,
) -> Pair:
    nowhere = len(keys)  # beyond the last column, so no row has its positive here
    return Pair(
        *Rows.both(queries, keys, normalize=False),
        scale.float().reshape(1),
        normalized=False,
        positive=nowhere if positive_offset is None else positive_offset,
        masks=Masks.of_ids(ids)._replace(thresholds=None if thresholds is None else thresholds.float().contiguous()),
    )
