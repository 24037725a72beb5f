"""Definition of `diffcse_kernels.info_nce`."""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import Gradients, InfoNCEStats, Needs, Options
from .blocks import compute_dtype, row_blocks

NORM_EPS = 1e-12  # where torch.nn.functional.normalize stops dividing by the norm


def contrast(
    queries: Tensor,
    columns: Tensor,
    temperature: Tensor,
    coefficients: Tensor | None,
    options: Options,
    needs: Needs,
) -> tuple[Tensor, InfoNCEStats, Gradients]:
    """InfoNCE of every row, and the gradients of `coefficients @ losses`.

    With the coefficients known, the gradients are made from the block of similarities at hand: three products in all.

    Args:
        queries: [N, D].
        columns: [C, D], keys and then hard negatives.
        temperature: a scalar.
        coefficients: [N], or None where no gradients are wanted.
        options: positions and weights of the special columns.
        needs: the gradients wanted.

    Returns:
        losses [N], statistics and gradients; float64 if the rows are, float32 otherwise.
    """
    with torch.autocast(queries.device.type, enabled=False):
        dtype = compute_dtype(queries, columns)
        scale = temperature.to(dtype).reciprocal().reshape(())
        q, q_inverse = _rows(queries.to(dtype), options.normalize)
        k, k_inverse = _rows(columns.to(dtype), options.normalize)
        if coefficients is None:
            needs = Needs(False, False, False)
        # not as the rows lie, which may be transposed: the operator promises contiguous gradients
        grad_q = q.new_empty(q.shape) if needs.queries or needs.temperature else None
        grad_k = k.new_zeros(k.shape) if needs.columns else None
        losses, positives, is_right = _sweep(q, k, scale, coefficients, options, grad_q, grad_k)
        stats = _stats(q, k[: options.num_keys], positives / scale, is_right)
        grad_temperature = None
        if grad_q is not None and needs.temperature:
            grad_temperature = -torch.linalg.vecdot(q, grad_q).sum() * scale
        if grad_q is not None and q_inverse is not None:
            _normalize_backward_(grad_q, q, q_inverse)
        if grad_k is not None and k_inverse is not None:
            _normalize_backward_(grad_k, k, k_inverse)
    return losses, stats, Gradients(grad_q if needs.queries else None, grad_k, grad_temperature)


def _sweep(
    q: Tensor,
    k: Tensor,
    scale: Tensor,
    coefficients: Tensor | None,
    options: Options,
    grad_q: Tensor | None,
    grad_k: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, positive logit and "the positive is the largest" of every row; fills the gradients given.

    With p the softmax of a row's logits and e the one-hot of its positive, the gradients are
        grad_q_i  = coefficient_i * scale * (p_i - e_i) k
        grad_k   += coefficient_i * scale * (p_i - e_i)^T q_i
    """
    losses, positives = q.new_empty(len(q)), q.new_empty(len(q))
    is_right = q.new_empty(len(q), dtype=torch.bool)
    for rows in row_blocks(len(q), len(k) * q.element_size()):
        logits = (q[rows] * scale) @ k.T
        *results, sums = _softmax_minus_one_hot_(logits, rows.start, options)
        losses[rows], positives[rows], is_right[rows] = results
        if coefficients is None:
            continue
        factors = (coefficients[rows] * scale / sums)[:, None]
        if grad_q is not None:
            torch.mm(logits, k, out=grad_q[rows]).mul_(factors)
        if grad_k is not None:
            grad_k.addmm_(logits.T, q[rows] * factors)
    return losses, positives, is_right


def _softmax_minus_one_hot_(logits: Tensor, first_row: int, options: Options) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Turn a block of logits into (softmax - one-hot of the positive) * sums, in place; return the sums last.

    The positive is kept apart from the sum of the others. When it takes almost all the probability, both its
    loss and its gradient are that small sum, which 1 - p would lose to rounding.
    """
    height = len(logits)
    if options.own_hard_negative is not None:
        logits.diagonal(options.own_hard_negative + first_row)[:height].add_(options.hard_negative_weight)
    positive_column = logits.diagonal(options.positive_offset + first_row)[:height]
    positives = positive_column.clone()
    positive_column.fill_(-torch.inf)
    largest_negatives = logits.amax(dim=1)
    largest = torch.maximum(positives, largest_negatives)
    logits.sub_(largest[:, None]).exp_()
    others = logits.sum(dim=1)
    positive_column.copy_(-others)
    positive = (positives - largest).exp()
    losses = (largest - positives) + torch.log1p(others + (positive - 1))
    return losses, positives, positives > largest_negatives, others + positive


def _stats(q: Tensor, k: Tensor, positive_cosines: Tensor, is_right: Tensor) -> InfoNCEStats:
    """The sum over all pairs is the product of the sums, so that the matrix is not needed."""
    negative_sum = q.sum(dim=0) @ k.sum(dim=0) - positive_cosines.sum()
    pairs = len(q) * (len(k) - 1)
    negative_mean = negative_sum / pairs if pairs else torch.full_like(negative_sum, torch.nan)
    return InfoNCEStats(positive_cosines.mean(), negative_mean, is_right.to(q.dtype).mean())


def _rows(values: Tensor, normalize: bool) -> tuple[Tensor, Tensor | None]:
    """The rows that are compared, and the inverse norms they were multiplied by, 0 for rows without a direction."""
    if not normalize:
        return values, None
    norms = torch.linalg.vector_norm(values, dim=1, keepdim=True)
    inverse_norms = norms.reciprocal().masked_fill_(norms <= NORM_EPS, 0)
    return values * inverse_norms, inverse_norms


def _normalize_backward_(gradient: Tensor, normalized: Tensor, inverse_norms: Tensor) -> None:
    """Gradient of the rows from that of the normalised rows, in place."""
    radial = torch.linalg.vecdot(normalized, gradient)[:, None]
    gradient.addcmul_(normalized, radial, value=-1).mul_(inverse_norms)
