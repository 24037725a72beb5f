"""Definition of `diffcse_kernels.key_blocks`."""

from __future__ import annotations

import torch
from torch import Tensor

from .blocks import compute_dtype, row_blocks


def block_logsumexp(
    queries: Tensor, keys: Tensor, scale: Tensor, positive_offset: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """`diffcse_kernels.key_blocks.block_logsumexp`."""
    q, k, scale = _prepared(queries, keys, scale)
    logsumexp, positives, largest = q.new_full((3, len(q)), -torch.inf)
    if len(k) == 0:
        return logsumexp, positives, largest
    with torch.autocast(q.device.type, enabled=False):
        for rows in row_blocks(len(q), len(k) * q.element_size()):
            logits = (q[rows] * scale) @ k.T
            if positive_offset is not None:
                positive_column = logits.diagonal(positive_offset + rows.start)[: len(logits)]
                positives[rows] = positive_column
                positive_column.fill_(-torch.inf)
            largest[rows] = logits.amax(dim=1)
            # a row whose only key is its positive has no negatives: its shift must be finite for the sum to be 0
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
) -> tuple[Tensor, Tensor]:
    """`diffcse_kernels.key_blocks.block_gradients`."""
    q, k, scale = _prepared(queries, keys, scale)
    grad_q, grad_k = torch.empty_like(q), torch.zeros_like(k)
    with torch.autocast(q.device.type, enabled=False):
        for rows in row_blocks(len(q), len(k) * q.element_size()):
            weights = ((q[rows] * scale) @ k.T).sub_(shifts[rows, None]).exp_()
            if positive_offset is not None:
                weights.diagonal(positive_offset + rows.start)[: len(weights)].zero_()
            row_factors = factors[rows, None]
            torch.mm(weights, k, out=grad_q[rows]).mul_(row_factors)
            grad_k.addmm_(weights.T, q[rows] * row_factors)
    return grad_q, grad_k


def _prepared(queries: Tensor, keys: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dtype = compute_dtype(queries, keys)
    return queries.to(dtype), keys.to(dtype), scale.to(dtype)
