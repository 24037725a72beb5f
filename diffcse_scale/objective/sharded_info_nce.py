"""InfoNCE over a process group: every rank's queries against the keys of all ranks, as if one process had them all.

There are two ways to bring keys and queries together, with the same results:

- gather: every rank holds all keys, and `info_nce` computes loss and gradients in one pass. The gradients of a rank's
  keys are sent back to it from all other ranks and summed there. This sends least, and is fastest while the keys fit.
  On several nodes with the same number of ranks, both go in two levels, so that less is sent between nodes.
- ring: every rank holds its own keys and two more blocks. The blocks travel around the ring of ranks; each block is
  sent while the previous block is being computed. In backward they travel once more. Each block's gradient, a sum over
  ranks, follows it and ends at its owner. Memory does not grow with the number of ranks. The price is a fourth matrix
  product, because backward computes the similarities again.
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

from diffcse_scale.distributed import PROCESS_GROUP, Ranks, all_sum, gather_rows, row_counts
from diffcse_scale.objective.ring import RingSum, ring

__all__ = ["chosen", "sharded_info_nce"]

Strategy = Literal["auto", "gather", "ring"]
# if gathered columns take more, "auto" chooses the ring; one number for all devices, as all ranks must choose alike
GATHERED_BYTES = 4 * 2**30
NORM_EPS = 1e-12  # as in info_nce


class _Options(NamedTuple):
    hard_negative_weight: float
    normalize: bool
    shares: Sequence[int]
    impl: str
    ranks: Ranks
    query_ids: Tensor | None  # [n, C], of this rank
    column_ids: list[Tensor | None]  # [N, C], of all ranks: first for the keys, then for the hard negatives

    def ids_of_block(self, column_ids: Tensor | None, owner: int) -> dict[str, Tensor | None]:
        """The ids that `key_blocks` must compare for the block of columns of rank `owner`."""
        if column_ids is None:
            return {}
        return {"query_ids": self.query_ids, "key_ids": column_ids.split(list(self.shares))[owner]}


def sharded_info_nce(
    queries: Tensor,
    keys: Tensor,
    temperature: float | Tensor = 0.05,
    *,
    hard_negatives: Tensor | None = None,
    hard_negative_weight: float = 0.0,
    query_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    hard_negative_ids: Tensor | None = None,
    normalize: bool = True,
    strategy: Strategy = "gather",
    shares: Sequence[int] | None = None,
    impl: str = "auto",
    ranks: Ranks = PROCESS_GROUP,
) -> tuple[Tensor, InfoNCEStats]:
    """This rank's part of the InfoNCE loss of all ranks' rows, each compared with the keys of all ranks.

    With one rank it is `diffcse_kernels.info_nce`. With W ranks let L be the mean over all ranks' rows of the loss that
    one process would compute from all inputs, concatenated in rank order. Each rank returns W times its own rows' terms
    of L (see `diffcse_scale.distributed`). After every rank has back-propagated its part,

        L                                      = all_mean(loss)
        gradient of L by a shared parameter    = all_mean(gradient), as data-parallel engines average it
        gradient of L by this rank's own input = gradient / W

    A learnt temperature is a shared parameter.

    Every rank must make this call and its backward pass, even a rank without rows, because the ranks wait for each
    other. Dtypes, options, which inputs are given, and which require gradients must therefore be equal on all ranks.

    float64 inputs are computed in float64, all others in float32; gradients have the dtype of their input. The ring
    multiplies and sends half-precision rows in their own dtype, rounded after normalisation; sums are float32.

    Args:
        queries: [n, D], of this rank; the ranks' shares may differ in size, and may be empty.
        keys: [n, D], the positives of the queries, row by row.
        temperature: a positive number, or a tensor of one element, the same on every rank.
        hard_negatives: [n, D], a hard negative for each query; it is also a negative of all other ranks' queries.
        hard_negative_weight: added to the logit of a row's own hard negative, after the division by the temperature.
        query_ids, key_ids, hard_negative_ids: int64 [n] or [n, C]. A column is not a negative of a query if their ids
            are equal in at least one of the C places. Ids of queries and keys must be given together; ids of hard
            negatives need both. Both strategies gather the ids of all ranks, because ids are short.
        normalize: True compares by cosine, as `info_nce` does, False by dot product.
        strategy: "gather" or "ring", see above; "auto" lets `chosen` decide.
        shares: every rank's n, if the caller knows them. With None the ranks exchange them, which waits for the device.
        impl: which kernels to use: "auto", "triton" or "reference".
        ranks: the ranks whose rows are compared.

    Returns:
        The loss, float32 (float64 for float64 inputs), and the statistics without a graph. For both, the mean over
        ranks is the value for all rows.

    Raises:
        ValueError: shapes or options that do not fit together, or no rank has a row.

    Example:
        >>> import torch
        >>> from diffcse_kernels import info_nce
        >>> from diffcse_scale.objective.sharded_info_nce import sharded_info_nce
        >>> queries, keys = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[2.0, 1.0], [0.0, 3.0]])
        >>> loss, stats = sharded_info_nce(queries, keys, 0.5, strategy="ring")  # of one rank
        >>> torch.allclose(loss, info_nce(queries, keys, 0.5)), stats.accuracy.item()
        (True, 0.5)
    """
    _check(queries, keys, hard_negatives, temperature, strategy)
    query_ids, key_ids, hard_negative_ids = _checked_ids(queries, hard_negatives, query_ids, key_ids, hard_negative_ids)
    shares = row_counts(queries, ranks) if shares is None else shares
    if shares[ranks.rank] != len(queries):
        raise ValueError(f"shares says that rank {ranks.rank} has {shares[ranks.rank]} rows, but it has {len(queries)}")
    if not any(shares):
        raise ValueError("no rank has a row; the loss needs at least one")
    gathered = 0 if ranks.world_size == 1 else sum(shares) * (1 if hard_negatives is None else 2)
    gathers = chosen(strategy, gathered, keys.shape[1], keys.dtype) == "gather"
    contrast = _gathered if gathers else _around_the_ring
    column_ids = [None if ids is None else gather_rows(ids, shares, ranks) for ids in (key_ids, hard_negative_ids)]
    options = _Options(hard_negative_weight, normalize, shares, impl, ranks, query_ids, column_ids)
    loss_sum, means = contrast(queries, keys, hard_negatives, temperature, options)
    weight = ranks.world_size * len(queries) / sum(shares)
    stats = (mean * weight if len(queries) else torch.zeros_like(mean) for mean in means)
    return loss_sum * ranks.world_size / sum(shares), InfoNCEStats(*stats)


def chosen(strategy: Strategy, columns: int, width: int, dtype: torch.dtype) -> Strategy:
    """Resolve "auto": gather if what it holds of all columns takes at most `GATHERED_BYTES`, otherwise ring.

    It holds the columns and their gradients in the dtype that is sent, and normalised columns and gradient sums in
    float32.

    Args:
        strategy: "auto", "gather" or "ring".
        columns: number of keys and hard negatives of all ranks; 0 if there is only one rank.
        width: numbers in a column.
        dtype: the dtype in which columns are sent.

    Returns:
        "gather" or "ring".

    Example:
        >>> import torch
        >>> from diffcse_scale.objective.sharded_info_nce import chosen
        >>> [chosen("auto", columns, 768, torch.float32) for columns in (2**18, 2**20)]
        ['gather', 'ring']
    """
    if strategy != "auto":
        return strategy
    return "gather" if columns * width * 2 * (dtype.itemsize + 4) <= GATHERED_BYTES else "ring"


def _gathered(
    queries: Tensor, keys: Tensor, hard_negatives: Tensor | None, temperature: float | Tensor, options: _Options
) -> tuple[Tensor, InfoNCEStats]:
    """The sum of the losses of this rank's rows, and the means of their statistics."""
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
        query_ids=options.query_ids,
        key_ids=options.column_ids[0],
        hard_negative_ids=options.column_ids[1],
        normalize=options.normalize,
        reduction="sum",
        return_stats=True,
        impl=options.impl,
    )


def _around_the_ring(
    queries: Tensor, keys: Tensor, hard_negatives: Tensor | None, temperature: float | Tensor, options: _Options
) -> tuple[Tensor, InfoNCEStats]:
    """The same results as `_gathered`, computed with the ring."""
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
    """The sum of the losses of this rank's rows, the logits of their positives, and their largest negative logits.

    A row's own columns, its positive and its hard negative, are only in this rank's own block. They are kept separate
    from the other columns: the positive for the reason in `diffcse_kernels.key_blocks`, the hard negative because it
    has a weight.
    """

    @staticmethod
    def forward(
        ctx: Any, options: _Options, travelling: torch.dtype, scale: Tensor, *rows: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        queries, *columns = (tensor.to(travelling) for tensor in rows)
        # start with finite values, because for a row without negatives -inf - -inf would be NaN
        negatives = largest = scale.new_full((len(queries),), torch.finfo(scale.dtype).min)
        own = []  # the logits of the rows' own columns
        for held, ids in zip(columns, options.column_ids, strict=False):
            for owner, block in ring(held, options.shares, options.ranks):
                offset = 0 if owner == options.ranks.rank else None
                known = options.ids_of_block(ids, owner)
                logsumexp, logits, peak = block_logsumexp(queries, block, scale, offset, options.impl, **known)
                negatives, largest = torch.logaddexp(negatives, logsumexp), torch.maximum(largest, peak)
                if owner == options.ranks.rank:
                    own.append(logits)
        positives, *hard = own
        hard = [_counted(logits + options.hard_negative_weight, options) for logits in hard]
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
        for held, own_factors, ids in zip(columns, own, options.column_ids, strict=False):
            sums = RingSum(options.shares, options.ranks)
            for owner, block in ring(held, options.shares, options.ranks):
                offset = 0 if owner == options.ranks.rank else None
                known = options.ids_of_block(ids, owner)
                grad_q, grad_k = block_gradients(queries, block, scale, largest, factors, offset, options.impl, **known)
                if owner == options.ranks.rank:
                    grad_q.addcmul_(own_factors[:, None], block)
                    grad_k.addcmul_(own_factors[:, None], queries)
                grad_queries += grad_q
                sums.add(grad_k)
            grad_columns.append(sums.total())
        grad_scale = (queries * grad_queries).sum() / scale
        return None, None, grad_scale, grad_queries, *grad_columns


def _counted(hard: Tensor, options: _Options) -> Tensor:
    """The logits [n] of the rows' own hard negatives; the lowest number for one that the ids exclude."""
    if options.query_ids is None or options.column_ids[1] is None:
        return hard
    own = options.column_ids[1].split(list(options.shares))[options.ranks.rank]
    return hard.masked_fill((own == options.query_ids).any(1), torch.finfo(hard.dtype).min)


@torch.no_grad()
def _stats(
    queries: Tensor, keys: Tensor, positive_cosines: Tensor, is_right: Tensor, options: _Options
) -> InfoNCEStats:
    """Means over this rank's rows. The sum over all pairs is the product of the sums."""
    pair_sum = queries.sum(dim=0) @ all_sum(keys.sum(dim=0), options.ranks)
    negative_mean = (pair_sum - positive_cosines.sum()) / len(queries) / (sum(options.shares) - 1 or math.nan)
    return InfoNCEStats(positive_cosines.mean(), negative_mean, is_right.to(queries.dtype).mean())


def _normalized(rows: Tensor) -> Tensor:
    """Rows divided by their norms; a row too short to have a direction becomes 0 and gets no gradient."""
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return torch.where(norms > NORM_EPS, rows / norms.clamp_min(NORM_EPS), 0)


def _check(
    queries: Tensor, keys: Tensor, hard_negatives: Tensor | None, temperature: float | Tensor, strategy: str
) -> None:
    if strategy not in ("auto", "gather", "ring"):
        raise ValueError(f"strategy must be 'auto', 'gather' or 'ring', not {strategy!r}")
    for name, rows in (("queries", queries), ("keys", keys), ("hard_negatives", hard_negatives)):
        if rows is not None and (rows.dim() != 2 or rows.shape != queries.shape or not rows.is_floating_point()):
            raise ValueError(
                f"{name} must be a floating-point matrix of the queries' shape {list(queries.shape)}, not "
                f"{list(rows.shape)} of {rows.dtype}"
            )
    if not isinstance(temperature, Tensor) and not temperature > 0:
        raise ValueError(f"temperature must be a positive number, not {temperature}")


def _checked_ids(
    queries: Tensor, hard_negatives: Tensor | None, *given: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Check the ids of queries, keys and hard negatives, and return them as [n, C]."""
    of_queries, of_keys, of_hard = (ids is not None for ids in given)
    if of_queries != of_keys or (of_hard and not (of_keys and hard_negatives is not None)):
        raise ValueError(
            "query_ids and key_ids must be given together, and hard_negative_ids with both and with hard_negatives"
        )
    checked = []
    for name, ids in zip(("query_ids", "key_ids", "hard_negative_ids"), given, strict=True):
        ids = ids[:, None] if ids is not None and ids.dim() == 1 else ids
        if ids is not None and (ids.dim() != 2 or len(ids) != len(queries) or ids.dtype != torch.int64):
            raise ValueError(
                f"{name} must be int64 [{len(queries)}] or [{len(queries)}, C], not {list(ids.shape)} of {ids.dtype}"
            )
        checked.append(ids)
    if len({ids.shape[1] for ids in checked if ids is not None}) > 1:
        raise ValueError("query_ids, key_ids and hard_negative_ids must have the same number of places")
    return checked[0], checked[1], checked[2]
