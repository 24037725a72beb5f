"""InfoNCE (van den Oord et al., 2018) without the similarity matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict, Unpack, overload

from torch import Tensor

from .arguments import check_reduction, check_row_weights, check_rows, check_temperature
from .columns import check_margin, join_columns
from .implementations import resolve
from .info_nce_operator import contrast
from .reference.blocks import compute_dtype
from .types import Ids, InfoNCEStats, NegativeSet, Options, Reduction

__all__ = ["InfoNCEStats", "NegativeSet", "info_nce"]


class _Options(TypedDict, total=False):
    """The keyword arguments of `info_nce` that do not change the type of its result."""

    positive_offset: int
    hard_negatives: Tensor | None
    hard_negative_offset: int
    hard_negative_weight: float
    row_weights: Tensor | None
    normalize: bool
    symmetric: bool
    reduction: Reduction
    query_ids: Tensor | None
    key_ids: Tensor | None
    hard_negative_ids: Tensor | None
    margin: float | None
    negatives: Sequence[NegativeSet]
    multiple_positives: bool
    impl: str


@overload
def info_nce(
    queries: Tensor,
    keys: Tensor,
    temperature: float | Tensor = ...,
    *,
    return_stats: Literal[False] = ...,
    return_lse: Literal[False] = ...,
    **options: Unpack[_Options],
) -> Tensor: ...


@overload
def info_nce(
    queries: Tensor,
    keys: Tensor,
    temperature: float | Tensor = ...,
    *,
    return_stats: Literal[True],
    return_lse: Literal[False] = ...,
    **options: Unpack[_Options],
) -> tuple[Tensor, InfoNCEStats]: ...


@overload
def info_nce(
    queries: Tensor,
    keys: Tensor,
    temperature: float | Tensor = ...,
    *,
    return_stats: Literal[False] = ...,
    return_lse: Literal[True],
    **options: Unpack[_Options],
) -> tuple[Tensor, Tensor]: ...


@overload
def info_nce(
    queries: Tensor,
    keys: Tensor,
    temperature: float | Tensor = ...,
    *,
    return_stats: Literal[True],
    return_lse: Literal[True],
    **options: Unpack[_Options],
) -> tuple[Tensor, InfoNCEStats, Tensor]: ...


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
    reduction: Reduction = "mean",
    query_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    hard_negative_ids: Tensor | None = None,
    margin: float | None = None,
    negatives: Sequence[NegativeSet] = (),
    multiple_positives: bool = False,
    return_stats: bool = False,
    return_lse: bool = False,
    impl: str = "auto",
) -> Tensor | tuple[Tensor, InfoNCEStats] | tuple[Tensor, Tensor] | tuple[Tensor, InfoNCEStats, Tensor]:
    """Contrastive cross-entropy of each query against all keys, one of which is its positive.

    With the defaults it equals

        F.cross_entropy(F.normalize(queries) @ F.normalize(keys).T / temperature, torch.arange(len(queries)))

    but neither the similarities nor their gradient ever exist for all rows at once. All keys get a gradient.
    A caller that gathered keys from other processes must therefore reduce it back with the adjoint of its gather.

    The reference computes float64 inputs in float64 and all others in float32. Triton multiplies the inputs in their
    own dtype; if queries and keys differ, it uses the dtype that holds both. It accumulates in float32 and rounds the
    weights of the gradients to the dtype of the inputs.
    Autocast changes neither. Gradients have the dtype of their input. Second derivatives are not supported.

    Source: equation 4 of van den Oord et al., 2018 (arXiv 1807.03748); with hard negatives, equation 5 of SimCSE
    (Gao et al., 2021, arXiv 2104.08821).

    Args:
        queries: [N, D].
        keys: [M, D]. The positive of row `i` is key `positive_offset + i`; the others are its negatives.
        temperature: a positive number, or a tensor of one element, which then gets a gradient. A tensor's
            value is not checked, because that would wait for the device.
        positive_offset: index of the key that is the positive of this caller's row 0.
        hard_negatives: [K, D], more negatives for every row, after the keys.
        hard_negative_offset: the own hard negative of row `i` is number `hard_negative_offset + i`.
        hard_negative_weight: added, after the division by the temperature, to the logit of a row's own hard
            negative, as SimCSE and DiffCSE do. It has no effect without `hard_negatives`.
        row_weights: [N], a factor on each row's loss. The weights are constants: a weight that requires a gradient
            is refused.
        normalize: True compares by cosine, False by dot product. With True, a row whose norm is at most 1e-12 has no
            direction, so its cosines and its gradient are 0.
        symmetric: return the mean of this loss and of the loss with queries, keys and their ids exchanged, as CLIP
            does. Needs N == M, no offset, no hard negatives and no other sets.
        reduction: "mean" is sum(weight * loss) / sum(weight), "sum" omits the division, "none" returns the [N]
            losses. "mean" and "sum" compute the gradients during the forward pass; "none" computes the similarities
            again in backward.
        query_ids: [N] or [N, C] integers. A key is excluded from a row's sum if it shares an id with the row,
            `(query_ids[i] == key_ids[j]).any()`, and is not the row's own positive. The loss is then computed as if
            the row had fewer keys.
        key_ids: [M] or [M, C] integers, required with `query_ids`.
        hard_negative_ids: [K] or [K, C] integers. Columns without ids are never excluded by id.
        margin: in units of similarity. A negative of any set is excluded if its similarity to the row exceeds the
            positive's by more than this. The margin may be negative. 1e-5 is added to it for the rounding of the
            products, so copies of the positive stay with a margin of 0. The gradient treats this choice as a
            constant. `hard_negative_weight` does not count as similarity.
        negatives: further columns, after keys and hard negatives; see `NegativeSet`.
        multiple_positives: columns that share an id with a row become positives of it, in addition to its own. The
            row's loss is then the mean of `lse - logit` over its positives (L_out of Khosla et al., 2020). Ids
            exclude nothing then, and the margin never excludes a positive. Needs ids.
        return_stats: also return `InfoNCEStats`, for the direction from queries to keys.
        return_lse: also return the logsumexp [N] over each row's columns that count, including its positive, for the
            same direction. It has a gradient, so `torch.logaddexp` can join the sums of several calls over different
            columns. All gradients are then computed in backward, as with "none".
        impl: "auto", "triton" or "reference".

    Returns:
        The loss, float32 (float64 for float64 inputs). If the statistics or the logsumexp are requested, a tuple of
        the loss and these, in this order.

    Raises:
        ValueError: shapes or options that do not fit together, or an implementation that cannot run here.

    Example:
        >>> import torch
        >>> from torch.nn import functional as F
        >>> from diffcse_kernels import info_nce
        >>> queries = torch.tensor([[1.0, 0.0], [1.0, 1.0]], requires_grad=True)
        >>> keys = torch.tensor([[2.0, 1.0], [0.0, 3.0]])
        >>> loss = info_nce(queries, keys, temperature=0.5)
        >>> loss.backward()
        >>> queries.grad.shape
        torch.Size([2, 2])
        >>> cosines = F.normalize(queries) @ F.normalize(keys).T
        >>> torch.allclose(loss, F.cross_entropy(cosines / 0.5, torch.arange(2)))
        True
    """
    check_rows(queries, keys, positive_offset)
    _check_hard_negatives(queries, hard_negatives, hard_negative_offset, hard_negative_weight)
    check_temperature(temperature)
    check_row_weights(queries, row_weights)
    check_margin(margin)
    if symmetric and (len(queries) != len(keys) or hard_negatives is not None or negatives):
        raise ValueError("symmetric=True needs as many queries as keys, no hard_negatives and no other negatives")
    if multiple_positives and query_ids is None:
        raise ValueError("multiple_positives=True needs query_ids and key_ids, which tell what the positives are")
    check_reduction(reduction)
    columns = join_columns(queries, keys, hard_negatives, negatives, query_ids, key_ids, hard_negative_ids)
    dtype = compute_dtype(queries, columns.vectors)
    impl = resolve(impl, "info_nce", len(queries) * len(columns.vectors), queries.device, dtype)
    if not isinstance(temperature, Tensor):
        temperature = queries.new_full((), temperature, dtype=dtype)
    weights = queries.new_ones(len(queries), dtype=dtype) if row_weights is None else row_weights.to(dtype)
    coefficients = {"mean": weights / weights.sum(), "sum": weights, "none": None}[reduction]
    # with a weight of zero no column is marked, so there may be fewer hard negatives than rows
    first = columns.first_hard_negative if hard_negative_weight != 0 else None
    own_hard_negative = None if first is None else first + hard_negative_offset
    options = Options(
        len(keys), positive_offset, own_hard_negative, hard_negative_weight, normalize, columns.excluded, margin,
        multiple_positives,
    )  # fmt: skip
    known = None if return_lse else coefficients
    loss, lse, *stats = contrast(queries, columns.vectors, temperature, known, columns.ids, options, impl)
    if symmetric:
        exchanged = columns.ids and Ids(*reversed(columns.ids))
        loss = (loss + contrast(keys, queries, temperature, known, exchanged, options, impl)[0]) / 2
    if known is None:
        loss = loss * weights if coefficients is None else (coefficients * loss).sum()
    if return_stats:
        return (loss, InfoNCEStats(*stats), lse) if return_lse else (loss, InfoNCEStats(*stats))
    return (loss, lse) if return_lse else loss


def _check_hard_negatives(queries: Tensor, hard_negatives: Tensor | None, offset: int, weight: float) -> None:
    if hard_negatives is None:
        return
    if weight != 0 and (offset < 0 or offset + len(queries) > len(hard_negatives)):
        raise ValueError(
            f"hard_negative_weight needs a hard negative for each of {len(queries)} queries, but there "
            f"are {len(hard_negatives)} and hard_negative_offset={offset}"
        )
