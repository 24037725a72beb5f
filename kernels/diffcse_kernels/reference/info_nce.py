"""Reference implementation of `diffcse_kernels.info_nce`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..types import Contrast, Gradients, Ids, InfoNCEStats, Needs, Options, Upstream
from .blocks import compute_dtype, row_blocks
from .masks import bytes_a_logit, leave_out_, thresholds_of

NORM_EPS = 1e-12  # below this torch.nn.functional.normalize does not divide by the norm


def contrast(
    queries: Tensor,
    columns: Tensor,
    temperature: Tensor,
    upstream: Upstream | None,
    ids: Ids | None,
    options: Options,
    needs: Needs,
) -> Contrast:
    """The InfoNCE loss of every row, and the gradients.

    If the upstream factors are known, the gradients are computed from the current block of similarities. This takes
    three products in total.

    Args:
        queries: [N, D].
        columns: [C, D], keys and then other negatives.
        temperature: a scalar.
        upstream: the upstream gradients of losses and logsumexp, or None if no gradients are wanted.
        ids: the ids of the queries and of the first columns.
        options: positions and weights of the special columns.
        needs: which gradients are wanted.

    Returns:
        Losses, logsumexp, statistics and gradients; float64 if the rows are float64, float32 otherwise.

    Example:
        >>> import torch
        >>> from diffcse_kernels.reference import contrast
        >>> from diffcse_kernels.types import Needs, Options
        >>> options, needs = Options(2, 0, None, 0.0, normalize=True), Needs(False, False, False)
        >>> found = contrast(torch.eye(2), torch.eye(2), torch.tensor(1.0), None, None, options, needs)
        >>> torch.allclose(found.losses, torch.log1p(torch.tensor([-1.0, -1.0]).exp())), found.stats.accuracy.item()
        (True, 1.0)
    """
    with torch.autocast(queries.device.type, enabled=False):
        dtype = compute_dtype(queries, columns)
        scale = temperature.to(dtype).reciprocal().reshape(())
        q, q_inverse = normalized_rows(queries.to(dtype), options.normalize)
        k, k_inverse = normalized_rows(columns.to(dtype), options.normalize)
        if upstream is None:
            needs = Needs(False, False, False)
        # no empty_like, because the rows may be transposed and the operator promises contiguous gradients
        grad_q = q.new_empty(q.shape) if needs.queries or needs.temperature else None
        grad_k = k.new_zeros(k.shape) if needs.columns else None
        losses, logsumexp, positives, is_right = _sweep(q, k, scale, upstream, ids, options, grad_q, grad_k)
        stats = _stats(q, k[: options.num_keys], positives / scale, is_right)
        grad_temperature = None
        if grad_q is not None and needs.temperature:
            grad_temperature = -torch.linalg.vecdot(q, grad_q).sum() * scale
        if grad_q is not None and q_inverse is not None:
            normalize_backward_(grad_q, q, q_inverse)
        if grad_k is not None and k_inverse is not None:
            normalize_backward_(grad_k, k, k_inverse)
    gradients = Gradients(grad_q if needs.queries else None, grad_k, grad_temperature)
    return Contrast(losses, logsumexp, stats, gradients)


class _Block(NamedTuple):
    """Exponentials of the logits of some rows, relative to the largest of each row."""

    exponentials: Tensor
    """[n, columns]; 0 at a row's own positive and where a column does not count."""
    positives: Tensor
    """[n], the exponentials of the rows' own positives."""
    others: Tensor
    """[n], the sums of `exponentials`."""
    further: tuple[Tensor, Tensor] | None
    """Only with multiple positives: bool [n, I], whether a column is a further positive; and [n], 1 / their number."""


def _sweep(
    q: Tensor,
    k: Tensor,
    scale: Tensor,
    upstream: Upstream | None,
    ids: Ids | None,
    options: Options,
    grad_q: Tensor | None,
    grad_k: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Every row's loss, logsumexp, positive logit and whether the positive is the largest; fills the given gradients.

    With p the softmax of a row's logits and e the one-hot vector of its positive, the gradients of the loss are
        grad_q_i  = coefficient_i * scale * (p_i - e_i) k
        grad_k   += coefficient_i * scale * (p_i - e_i)^T q_i
    """
    losses, logsumexp, positives = (q.new_empty(len(q)) for _ in range(3))
    is_right = q.new_empty(len(q), dtype=torch.bool)
    size = bytes_a_logit(q.dtype, ids, options.margin is not None, options.multiple_positives)
    for rows in row_blocks(len(q), len(k) * size):
        logits = (q[rows] * scale) @ k.T
        block, *results = exponentials_(logits, rows, scale, ids, options)
        losses[rows], logsumexp[rows], positives[rows], is_right[rows] = results
        if upstream is None:
            continue
        factors = softmax_minus_positives_(block, rows, scale, upstream, options.positive_offset)
        if grad_q is not None:
            torch.mm(logits, k, out=grad_q[rows]).mul_(factors[:, None])
        if grad_k is not None:
            grad_k.addmm_(logits.T, q[rows] * factors[:, None])
    return losses, logsumexp, positives, is_right


def exponentials_(
    logits: Tensor, rows: slice, scale: Tensor, ids: Ids | None, options: Options
) -> tuple[_Block, Tensor, Tensor, Tensor, Tensor]:
    """Turn a block of logits into a `_Block` in place; also return the results of `_sweep` for its rows.

    The positive is kept separate from the sum of the others. If the positive has almost all of the probability, its
    loss and gradient are both this small sum. Computing 1 - p instead would lose it to rounding.
    """
    height, multiple = len(logits), options.multiple_positives
    own_positive = _own(logits, options.positive_offset, rows)
    positives = own_positive.clone()
    thresholds = None if options.margin is None else thresholds_of(positives, options.margin, scale)
    alike = leave_out_(logits, rows, ids, thresholds, multiple)
    if options.own_hard_negative is not None:
        _own(logits, options.own_hard_negative, rows).add_(options.hard_negative_weight)
    for left_out in (options.positive_offset, *options.excluded):
        _own(logits, left_out, rows).fill_(-torch.inf)
        if alike is not None:
            alike.diagonal(left_out + rows.start)[:height].fill_(False)
    largest_others = largest_negatives = logits.amax(dim=1)
    if alike is not None:
        counts, above_mean, largest_negatives = _further_positives(logits, alike, positives)
    largest = torch.maximum(positives, largest_others)
    logits.sub_(largest[:, None]).exp_()
    others = logits.sum(dim=1)
    positive = (positives - largest).exp()
    losses = (largest - positives) + torch.log1p(others + (positive - 1))
    further = None
    if alike is not None:
        losses += above_mean
        further = alike, counts.reciprocal()
    logsumexp = largest + (others + positive).log()
    return _Block(logits, positive, others, further), losses, logsumexp, positives, positives > largest_negatives


def _further_positives(logits: Tensor, alike: Tensor, positives: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each row: the number of positives, how far its own is above their mean, and its largest negative."""
    with_ids, without = logits.tensor_split([alike.shape[1]], dim=1)
    counts = alike.sum(dim=1).add_(1).to(logits.dtype)
    above_mean = (positives * (counts - 1) - torch.where(alike, with_ids, 0).sum(dim=1)) / counts
    largest_negatives = with_ids.masked_fill(alike, -torch.inf).amax(dim=1)
    if without.shape[1]:
        largest_negatives = torch.maximum(largest_negatives, without.amax(dim=1))
    return counts, above_mean, largest_negatives


def softmax_minus_positives_(
    block: _Block, rows: slice, scale: Tensor, upstream: Upstream, positive_offset: int
) -> Tensor:
    """Turn a block of exponentials into gradient weights in place; return the factors [n] that scale their products."""
    weights, sums, coefficients = block.exponentials, block.others + block.positives, upstream.losses[rows]
    own_positive = _own(weights, positive_offset, rows)
    if upstream.logsumexp is None and block.further is None:
        own_positive.copy_(-block.others)
        return coefficients * scale / sums
    of_logsumexp = torch.zeros_like(sums) if upstream.logsumexp is None else upstream.logsumexp[rows]
    both = coefficients + of_logsumexp
    weights.mul_((both / sums)[:, None])
    of_own = of_logsumexp - both * (block.others / sums)
    if block.further is not None:
        alike, shares = block.further
        weights[:, : alike.shape[1]].addcmul_(alike.to(weights.dtype), (coefficients * shares)[:, None], value=-1)
        of_own += coefficients * (1 - shares)
    own_positive.copy_(of_own)
    return scale.expand(len(weights))


def _own(logits: Tensor, first: int, rows: slice) -> Tensor:
    """A view [n] of the logits in column `first + i` of each row i."""
    return logits.diagonal(first + rows.start)[: len(logits)]


def _stats(q: Tensor, k: Tensor, positive_cosines: Tensor, is_right: Tensor) -> InfoNCEStats:
    """The statistics. The sum over all pairs is the product of the sums, so they need no matrix."""
    negative_sum = q.sum(dim=0) @ k.sum(dim=0) - positive_cosines.sum()
    pairs = len(q) * (len(k) - 1)
    negative_mean = negative_sum / pairs if pairs else torch.full_like(negative_sum, torch.nan)
    return InfoNCEStats(positive_cosines.mean(), negative_mean, is_right.to(q.dtype).mean())


def normalized_rows(values: Tensor, normalize: bool) -> tuple[Tensor, Tensor | None]:
    """The rows to compare, and the inverse norms that scaled them: 0 for rows without a direction."""
    if not normalize:
        return values, None
    norms = torch.linalg.vector_norm(values, dim=1, keepdim=True)
    inverse_norms = norms.reciprocal().masked_fill_(norms <= NORM_EPS, 0)
    return values * inverse_norms, inverse_norms


def normalize_backward_(gradient: Tensor, normalized: Tensor, inverse_norms: Tensor) -> None:
    """Turn the gradient of the normalised rows into the gradient of the rows, in place."""
    radial = torch.linalg.vecdot(normalized, gradient)[:, None]
    gradient.addcmul_(normalized, radial, value=-1).mul_(inverse_norms)
