"""Definition of `diffcse_kernels.info_nce`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .blocks import compute_dtype, row_blocks

NORM_EPS = 1e-12  # of torch.nn.functional.normalize


class InfoNCEStats(NamedTuple):
    """What a contrastive batch looks like: scalars without a graph, from the same pass as the loss.

    With `normalize=False` the two cosines are dot products.
    """

    positive_cosine: Tensor
    """Mean over the rows."""
    negative_cosine: Tensor
    """Mean over the N * (M - 1) pairs of a query and a key not its positive, without hard negatives; NaN if M
    is 1."""
    accuracy: Tensor
    """Share of the rows whose positive has a larger logit than all negatives, hard ones included."""


def info_nce(
    queries: Tensor,
    keys: Tensor,
    temperature: float | Tensor = 0.05,
    *,
    positive_offset: int = 0,
    hard_negatives: Tensor | None = None,
    hard_negative_offset: int = 0,
    hard_negative_weight: float = 0.0,
    row_weights: Tensor | None = None,
    normalize: bool = True,
    symmetric: bool = False,
    reduction: str = "mean",
) -> tuple[Tensor, InfoNCEStats]:
    """`diffcse_kernels.info_nce`, always with the statistics."""
    columns = keys if hard_negatives is None else torch.cat([keys, hard_negatives])
    dtype = compute_dtype(queries, columns)
    # Casting out here lets autograd cast the gradients back, after their product with the upstream gradient:
    # before a loss scale is applied, half-precision gradients would underflow.
    queries, columns = queries.to(dtype), columns.to(dtype)
    if isinstance(temperature, Tensor):
        temperature = temperature.to(queries).reshape(())
    else:
        temperature = queries.new_full((), temperature)
    weights = queries.new_ones(len(queries)) if row_weights is None else row_weights.to(dtype)
    options = _Options(
        num_keys=len(keys),
        positive_offset=positive_offset,
        # A weight of zero marks no column, so the hard negatives may then be fewer than the rows.
        own_hard_negative=len(keys) + hard_negative_offset if hard_negative_weight else None,
        hard_negative_weight=hard_negative_weight,
        normalize=normalize,
        gradients_wanted=torch.is_grad_enabled(),
    )
    coefficients = {"mean": weights / weights.sum(), "sum": weights, "none": None}[reduction]
    loss, *stats = _InfoNCE.apply(queries, columns, temperature, coefficients, options)
    if symmetric:
        reverse, *_ = _InfoNCE.apply(columns, queries, temperature, coefficients, options)
        loss = (loss + reverse) / 2
    if reduction == "none":
        loss = loss * weights
    return loss, InfoNCEStats(*stats)


class _Options(NamedTuple):
    num_keys: int
    positive_offset: int
    own_hard_negative: int | None
    hard_negative_weight: float
    normalize: bool
    gradients_wanted: bool


_Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]  # of queries, columns, temperature


class _InfoNCE(torch.autograd.Function):
    """Losses of the rows, or with coefficients their weighted sum.

    Knowing the coefficients, the forward pass makes the gradients from the block of similarities it has at
    hand: three products in all. Without them (upstream gradients differ by row) backward has to compute the
    similarities again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        columns: Tensor,
        temperature: Tensor,
        coefficients: Tensor | None,
        options: _Options,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ctx.options = options
        ctx.per_row = coefficients is None
        now = options.gradients_wanted and coefficients is not None
        needs = ctx.needs_input_grad[:3] if now else (False, False, False)
        losses, stats, gradients = _contrast(queries, columns, temperature, coefficients, options, needs)
        ctx.mark_non_differentiable(*stats)
        if coefficients is None:
            ctx.save_for_backward(queries, columns, temperature)
            return losses, *stats
        ctx.save_for_backward(*gradients)
        return (coefficients * losses).sum(), *stats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        gradients: Sequence[Tensor | None]
        if ctx.per_row:
            queries, columns, temperature = ctx.saved_tensors
            needs = ctx.needs_input_grad[:3]
            gradients = _contrast(queries, columns, temperature, upstream, ctx.options, needs)[2]
        else:
            gradients = [None if saved is None else saved * upstream for saved in ctx.saved_tensors]
        return *gradients, None, None


def _contrast(
    queries: Tensor,
    columns: Tensor,
    temperature: Tensor,
    coefficients: Tensor | None,
    options: _Options,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor, InfoNCEStats, _Gradients]:
    """Row losses, statistics, and the gradients of `coefficients @ losses` that `needs` asks for."""
    with torch.autocast(queries.device.type, enabled=False):
        scale = temperature.reciprocal()
        q, q_norms = _normalize(queries) if options.normalize else (queries, None)
        k, k_norms = _normalize(columns) if options.normalize else (columns, None)
        grad_q = torch.empty_like(q) if needs[0] or needs[2] else None
        grad_k = torch.zeros_like(k) if needs[1] else None
        losses, positives, is_right = _sweep(q, k, scale, coefficients, options, grad_q, grad_k)
        stats = _stats(q, k[: options.num_keys], positives / scale, is_right)
        grad_temperature = None
        if grad_q is not None and needs[2]:
            grad_temperature = -torch.linalg.vecdot(q, grad_q).sum() * scale
        if grad_q is not None and q_norms is not None:
            _normalize_backward_(grad_q, q, q_norms)
        if grad_k is not None and k_norms is not None:
            _normalize_backward_(grad_k, k, k_norms)
    return losses, stats, (grad_q if needs[0] else None, grad_k, grad_temperature)


def _sweep(
    q: Tensor,
    k: Tensor,
    scale: Tensor,
    coefficients: Tensor | None,
    options: _Options,
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


def _softmax_minus_one_hot_(logits: Tensor, first_row: int, options: _Options) -> tuple[Tensor, Tensor, Tensor, Tensor]:
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


def _normalize(rows: Tensor) -> tuple[Tensor, Tensor]:
    """F.normalize, and the norms it divided by; infinite where a row is too short to have a direction."""
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    clamped = norms.clamp_min(NORM_EPS)
    return rows / clamped, clamped.masked_fill_(norms <= NORM_EPS, torch.inf)


def _normalize_backward_(gradient: Tensor, normalized: Tensor, norms: Tensor) -> None:
    """Gradient of the rows from that of the normalised rows, in place; zero for rows without a direction."""
    radial = torch.linalg.vecdot(normalized, gradient)[:, None]
    gradient.addcmul_(normalized, radial, value=-1).div_(norms)
