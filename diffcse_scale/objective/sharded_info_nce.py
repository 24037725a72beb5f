"""InfoNCE over a process group: every rank's queries against the keys of all ranks, as if one process had them all.

Two ways to bring keys and queries together, with the same results:

- gather: every rank holds all keys, and `info_nce` makes loss and gradients in one pass. Fastest while the keys fit.
- ring: every rank holds its own keys and two more blocks. The blocks travel round the ranks, each while the one
  before it is worked on; in backward they travel once more, and each block's gradient, a sum over ranks, travels
  behind it and ends where it belongs. Memory does not grow with the number of ranks, at the price of a fourth
  matrix product (the similarities are computed again in backward).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from diffcse_kernels import InfoNCEStats, info_nce
from diffcse_kernels.key_blocks import block_gradients, block_logsumexp
from torch import Tensor
from torch.autograd.function import once_differentiable

from diffcse_scale.distributed import PROCESS_GROUP, Ranks, RingSum, all_sum, gather_rows, ring, row_counts

Strategy = Literal["gather", "ring"]
NORM_EPS = 1e-12  # as in info_nce


class _Options(NamedTuple):
    hard_negative_weight: float
    normalize: bool
    shares: Sequence[int]
    impl: str
    ranks: Ranks


def sharded_info_nce(
    queries: Tensor,
    keys: Tensor,
    temperature: float | Tensor = 0.05,
    *,
    hard_negatives: Tensor | None = None,
    hard_negative_weight: float = 0.0,
    normalize: bool = True,
    strategy: Strategy = "gather",
    equal_shares: bool = False,
    impl: str = "auto",
    ranks: Ranks = PROCESS_GROUP,
) -> tuple[Tensor, InfoNCEStats]:
    """This rank's part of the InfoNCE of all ranks' rows, each against the keys of all ranks.

    With one rank it is `diffcse_kernels.info_nce`. With W ranks let L be the mean, over the rows of all ranks, of
    the loss that one process would compute from the concatenation of everybody's inputs in rank order. The parts
    that the ranks return are W times their own rows' terms of L (see `diffcse_scale.distributed`), so that, after
    every rank has back-propagated its part,

        L                                        = all_mean(loss)
        gradient of L in what all ranks share    = all_mean(gradient), as data-parallel engines average it:
                                                   parameters, a learnt temperature
        gradient of L in this rank's own inputs  = gradient / W

    Every rank has to make this call and its backward pass, also one without rows: the ranks wait for each other.
    Dtypes, options, and which inputs are given and require gradients must therefore be the same on every rank.

    float64 is computed in float64, all else in float32; gradients have the dtype of their input. The ring multiplies
    and sends half-precision rows in their own dtype, rounded after normalisation; sums are float32.

    Args:
        queries: [n, D] of this rank; the shares may differ in size, and may be empty.
        keys: [n, D], the positives of the queries, row by row.
        temperature: a positive number, or a tensor of one element, the same on every rank.
        hard_negatives: [n, D], a hard negative of each query, which is a negative of everybody's queries.
        hard_negative_weight: added to the logit of a row's own hard negative, after the division by the temperature.
        normalize: True compares by cosine, as `info_nce` does, False by dot product.
        strategy: "gather" or "ring", see above.
        equal_shares: True where the caller knows that n is the same on every rank; else the ranks exchange their n,
            which waits for the device.
        impl: which kernels to use: "auto", "triton" or "reference".
        ranks: those whose rows compete.

    Returns:
        The loss, float32 (float64 for float64 inputs), and the statistics without a graph, whose mean over ranks
        also is the value of the whole.

    Raises:
        ValueError: shapes or options that do not fit together, or no rank has a row.
    """
    _check(queries, keys, hard_negatives, temperature, strategy)
    shares = [len(queries)] * ranks.world_size if equal_shares else row_counts(queries, ranks)
    if not any(shares):
        raise ValueError("no rank has a row, and a mean over no rows is no loss")
    contrast = _gathered if strategy == "gather" else _around_the_ring
    options = _Options(hard_negative_weight, normalize, shares, impl, ranks)
    loss_sum, means = contrast(queries, keys, hard_negatives, temperature, options)
    weight = ranks.world_size * len(queries) / sum(shares)
    stats = (mean * weight if len(queries) else torch.zeros_like(mean) for mean in means)
    return loss_sum * ranks.world_size / sum(shares), InfoNCEStats(*stats)


def _gathered(
    queries: Tensor, keys: Tensor, hard_negatives: Tensor | None, temperature: float | Tensor, options: _Options
) -> tuple[Tensor, InfoNCEStats]:
    """Sum of the losses of this rank's rows and means of their statistics."""
    shares = options.shares
    first = sum(shares[: options.ranks.rank])
    return info_nce(
        queries,
        gather_rows(keys, shares, options.ranks),
        temperature,
        positive_offset=first,
        hard_negatives=None if hard_negatives is None else gather_rows(hard_negatives, shares, options.ranks),
        hard_negative_offset=first,
        hard_negative_weight=options.hard_negative_weight,
        normalize=options.normalize,
        reduction="sum",
        return_stats=True,
        impl=options.impl,
    )


def _around_the_ring(
    queries: Tensor, keys: Tensor, hard_negatives: Tensor | None, temperature: float | Tensor, options: _Options
) -> tuple[Tensor, InfoNCEStats]:
    """As `_gathered`."""
    given = [queries, keys] if hard_negatives is None else [queries, keys, hard_negatives]
    travelling = torch.promote_types(queries.dtype, keys.dtype)
    dtype = torch.promote_types(travelling, torch.float32)
    with torch.autocast(queries.device.type, enabled=False):
        rows = [tensor.to(dtype) for tensor in given]
        if options.normalize:
            rows = [_normalized(tensor) for tensor in rows]
        if not isinstance(temperature, Tensor):
            temperature = queries.new_full((), temperature, dtype=dtype)
        scale = temperature.to(dtype).reshape(()).reciprocal()
        loss_sum, positives, largest = _Ring.apply(options, travelling, scale, *rows)
        stats = _stats(rows[0], rows[1], positives / scale, positives > largest, options)
    return loss_sum, stats


class _Ring(torch.autograd.Function):
    """Sum of the losses of this rank's rows, their positives' logits and the largest of their negatives'.

    A column of a row's own, its positive and its hard negative, lies in the own block only. It is kept apart from
    the others: `diffcse_kernels.key_blocks` says why for the positive, and the hard negative has a weight.
    """

    @staticmethod
    def forward(
        ctx: Any, options: _Options, travelling: torch.dtype, scale: Tensor, *rows: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        queries, *columns = (tensor.to(travelling) for tensor in rows)
        # finite from the start: for a row without negatives, -inf - -inf would be no number
        negatives = largest = scale.new_full((len(queries),), torch.finfo(scale.dtype).min)
        own = []  # the logits of the rows' own columns
        for held in columns:
            for owner, block in ring(held, options.shares, options.ranks):
                offset = 0 if owner == options.ranks.rank else None
                logsumexp, logits, peak = block_logsumexp(queries, block, scale, offset, options.impl)
                negatives, largest = torch.logaddexp(negatives, logsumexp), torch.maximum(largest, peak)
                if owner == options.ranks.rank:
                    own.append(logits)
        positives, *hard = own
        hard = [logits + options.hard_negative_weight for logits in hard]
        for logits in hard:
            negatives, largest = torch.logaddexp(negatives, logits), torch.maximum(largest, logits)
        ctx.options, ctx.columns = options, len(columns)
        ctx.save_for_backward(scale, negatives, largest, queries, *columns, positives, *hard)
        ctx.mark_non_differentiable(positives, largest)
        excess = negatives - positives
        return torch.logaddexp(torch.zeros_like(excess), excess).sum(), positives, largest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        scale, negatives, largest, queries, *saved = ctx.saved_tensors
        options: _Options = ctx.options
        columns, (positives, *hard) = saved[: ctx.columns], saved[ctx.columns :]
        missed = upstream * scale * torch.sigmoid(negatives - positives)
        factors = missed * (largest - negatives).exp()
        own = [-missed, *(factors * (logits - largest).exp() for logits in hard)]
        grad_queries = torch.zeros_like(queries, dtype=scale.dtype)
        grad_columns = []
        for held, own_factors in zip(columns, own, strict=True):
            sums = RingSum(options.shares, options.ranks)
            for owner, block in ring(held, options.shares, options.ranks):
                offset = 0 if owner == options.ranks.rank else None
                grad_q, grad_k = block_gradients(queries, block, scale, largest, factors, offset, options.impl)
                if owner == options.ranks.rank:
                    grad_q.addcmul_(own_factors[:, None], block)
                    grad_k.addcmul_(own_factors[:, None], queries)
                grad_queries += grad_q
                sums.add(grad_k)
            grad_columns.append(sums.total())
        grad_scale = (queries * grad_queries).sum() / scale
        return None, None, grad_scale, grad_queries, *grad_columns


@torch.no_grad()
def _stats(
    queries: Tensor, keys: Tensor, positive_cosines: Tensor, is_right: Tensor, options: _Options
) -> InfoNCEStats:
    """Means over this rank's rows; the sum over all pairs is the product of the sums."""
    pair_sum = queries.sum(dim=0) @ all_sum(keys.sum(dim=0), options.ranks)
    negative_mean = (pair_sum - positive_cosines.sum()) / len(queries) / (sum(options.shares) - 1 or math.nan)
    return InfoNCEStats(positive_cosines.mean(), negative_mean, is_right.to(queries.dtype).mean())


def _normalized(rows: Tensor) -> Tensor:
    """Rows divided by their norms; 0, without a gradient, where a row is too short to have a direction."""
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return torch.where(norms > NORM_EPS, rows / norms.clamp_min(NORM_EPS), 0)


def _check(
    queries: Tensor, keys: Tensor, hard_negatives: Tensor | None, temperature: float | Tensor, strategy: str
) -> None:
    if strategy not in ("gather", "ring"):
        raise ValueError(f"strategy must be 'gather' or 'ring', not {strategy!r}")
    for name, rows in (("queries", queries), ("keys", keys), ("hard_negatives", hard_negatives)):
        if rows is not None and (rows.dim() != 2 or rows.shape != queries.shape or not rows.is_floating_point()):
            raise ValueError(
                f"{name} must be a floating-point matrix of the queries' shape {list(queries.shape)}, not "
                f"{list(rows.shape)} of {rows.dtype}"
            )
    if not isinstance(temperature, Tensor) and not temperature > 0:
        raise ValueError(f"temperature must be a positive number, not {temperature}")
