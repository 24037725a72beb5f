"""InfoNCE of nested prefixes of the embeddings (Kusupati et al., 2022), with shared products."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from .arguments import check_reduction, check_row_weights, check_rows, check_temperature, one_number
from .columns import join_columns
from .implementations import resolve
from .loss_operator import loss_operator
from .reference.blocks import compute_dtype
from .types import Ids, Needs, Reduction

__all__ = ["matryoshka_info_nce"]

_OPTIONS = "SymInt[] widths, float[] weights, SymInt positive_offset, bool normalize"
_losses = loss_operator("matryoshka_info_nce", Needs, _OPTIONS)


def matryoshka_info_nce(
    queries: Tensor,
    keys: Tensor,
    temperature: float | Tensor,
    widths: Sequence[int],
    weights: Sequence[float] | None = None,
    *,
    positive_offset: int = 0,
    hard_negatives: Tensor | None = None,
    row_weights: Tensor | None = None,
    normalize: bool = True,
    symmetric: bool = False,
    reduction: Reduction = "mean",
    query_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    hard_negative_ids: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """Weighted sum of InfoNCE over several prefixes of every row.

    It equals

        sum(weight * info_nce(queries[:, :width], keys[:, :width], temperature)
            for width, weight in zip(widths, weights))

    but shares work between prefixes. The products of a prefix extend the products of the next shorter prefix. The
    gradient of an entry is computed once, from the sum over all prefixes that contain it.

    Precision, autocast and derivatives are as in `info_nce`.

    Source: equation 1 of Kusupati et al., 2022 (arXiv 2205.13147), with InfoNCE as the loss of a prefix.

    Args:
        queries: [N, D].
        keys: [M, D]. The positive of row `i` is key `positive_offset + i`; the others are its negatives.
        temperature: as in `info_nce`.
        widths: number of entries of each prefix: increasing, at most D. Entries beyond the last width have no gradient.
        weights: a number for each width; None means that all are 1.
        positive_offset: index of the key that is the positive of this caller's row 0.
        hard_negatives: [K, D], more negatives for every row, after the keys.
        row_weights, symmetric, reduction, query_ids, key_ids, hard_negative_ids: as in `info_nce`.
        normalize: True compares prefixes by cosine, each divided by its own norm; False by dot product.
        impl: "auto", "triton" or "reference".

    Returns:
        The loss, float32 (float64 for float64 inputs).

    Raises:
        ValueError: shapes or options that do not fit together, or an implementation that cannot run here.

    Example:
        >>> from diffcse_kernels import info_nce, matryoshka_info_nce
        >>> import torch
        >>> queries = torch.tensor([[1.0, 0.0, 2.0, 1.0], [1.0, 1.0, 0.0, 3.0]])
        >>> keys = torch.tensor([[2.0, 1.0, 1.0, 1.0], [0.0, 3.0, 1.0, 2.0]])
        >>> loss = matryoshka_info_nce(queries, keys, 0.5, widths=(2, 4), weights=(0.3, 1.0))
        >>> parts = [info_nce(queries[:, :width], keys[:, :width], 0.5) for width in (2, 4)]
        >>> torch.allclose(loss, 0.3 * parts[0] + parts[1])
        True
    """
    check_rows(queries, keys, positive_offset)
    check_temperature(temperature)
    check_row_weights(queries, row_weights)
    weights = _checked_weights(queries, widths, weights)
    if symmetric and (len(queries) != len(keys) or hard_negatives is not None):
        raise ValueError("symmetric=True needs as many queries as keys and no hard_negatives")
    check_reduction(reduction)
    columns = join_columns(queries, keys, hard_negatives, (), query_ids, key_ids, hard_negative_ids)
    dtype = compute_dtype(queries, columns.vectors)
    impl = resolve(impl, "info_nce", len(queries) * len(columns.vectors), queries.device, dtype)
    factors = queries.new_ones(len(queries), dtype=dtype) if row_weights is None else row_weights.to(dtype)
    coefficients = {"mean": factors / factors.sum(), "sum": factors, "none": None}[reduction]
    number = one_number("temperature", temperature, queries, dtype)
    options = (list(widths), weights, positive_offset, normalize, impl)
    loss = _losses((queries, columns.vectors, number), coefficients, columns.ids, *options)
    if symmetric:
        exchanged = columns.ids and Ids(*reversed(columns.ids))
        loss = (loss + _losses((keys, queries, number), coefficients, exchanged, *options)) / 2
    return loss * factors if coefficients is None else loss


def _checked_weights(queries: Tensor, widths: Sequence[int], weights: Sequence[float] | None) -> list[float]:
    ends = list(widths)
    if not ends or ends != sorted(set(ends)) or ends[0] < 1 or ends[-1] > queries.shape[1]:
        raise ValueError(f"widths must be increasing numbers from 1 to {queries.shape[1]}, not {ends}")
    found = [1.0] * len(ends) if weights is None else [float(weight) for weight in weights]
    if len(found) != len(ends) or not all(map(math.isfinite, found)):
        raise ValueError(f"weights must be a finite number for each of {len(ends)} widths, not {weights}")
    return found
