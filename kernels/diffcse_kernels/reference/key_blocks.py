"""Reference implementation of `diffcse_kernels.key_blocks`."""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import Ids
from .blocks import compute_dtype, row_blocks
from .masks import bytes_a_logit, leave_out_


def block_logsumexp(
    queries: Tensor,
    keys: Tensor,
    scale: Tensor,
    positive_offset: int | None = None,
    ids: Ids | None = None,
    thresholds: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`diffcse_kernels.key_blocks.block_logsumexp`."""
    q, k, scale = _prepared(queries, keys, scale)
    logsumexp, positives, largest = q.new_full((3, len(q)), -torch.inf)
    if len(k) == 0:
        return logsumexp, positives, largest
    with torch.autocast(q.device.type, enabled=False):
        for rows in row_blocks(len(q), len(k) * bytes_a_logit(q.dtype, ids, thresholds is not None)):
            logits = (q[rows] * scale) @ k.T
            positive_column = None
            if positive_offset is not None:
                positive_column = logits.diagonal(positive_offset + rows.start)[: len(logits)]
                positives[rows] = positive_column
            leave_out_(logits, rows, ids, None if thresholds is None else thresholds[rows])
            if positive_column is not None:
                positive_column.fill_(-torch.inf)
            largest[rows] = logits.amax(dim=1)
            # a row without negatives in the block needs a finite shift, so that its sum is 0 and not NaN
            shifts = largest[rows].clamp_min(torch.finfo(q.dtype).min)
            logsumexp[rows] = logits.sub_(shifts[:, None]).exp_().sum(dim=1).log_().add_(shifts)
    return logsumexp, positives, largest


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
    q, k, scale = _prepared(queries, keys, scale)
    grad_q, grad_k = torch.empty_like(q), torch.zeros_like(k)
    with torch.autocast(q.device.type, enabled=False):
        for rows in row_blocks(len(q), len(k) * bytes_a_logit(q.dtype, ids, thresholds is not None)):
            weights = (q[rows] * scale) @ k.T
            leave_out_(weights, rows, ids, None if thresholds is None else thresholds[rows])
            weights.sub_(shifts[rows, None]).exp_()
            if positive_offset is not None:
                weights.diagonal(positive_offset + rows.start)[: len(weights)].zero_()
            row_factors = factors[rows, None]
            torch.mm(weights, k, out=grad_q[rows]).mul_(row_factors)
            grad_k.addmm_(weights.T, q[rows] * row_factors)
    return grad_q, grad_k


def _prepared(queries: Tensor, keys: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dtype = compute_dtype(queries, keys)
    return queries.to(dtype), keys.to(dtype), scale.to(dtype)
