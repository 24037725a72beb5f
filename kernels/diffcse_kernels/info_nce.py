"""InfoNCE (van den Oord et al., 2018) without the similarity matrix."""

from __future__ import annotations

import math
from typing import Literal, TypedDict, Unpack, overload

import torch
from torch import Tensor

from .arguments import check_matrices
from .implementations import resolve
from .info_nce_operator import contrast
from .reference.blocks import compute_dtype
from .types import InfoNCEStats, Reduction

__all__ = ["InfoNCEStats", "info_nce"]


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
    impl: str


@overload
def info_nce(
    queries: Tensor,
    keys: Tensor,
    temperature: float | Tensor = ...,
    *,
    return_stats: Literal[False] = ...,
    **options: Unpack[_Options],
) -> Tensor: ...


@overload
def info_nce(
    queries: Tensor,
    keys: Tensor,
    temperature: float | Tensor = ...,
    *,
    return_stats: Literal[True],
    **options: Unpack[_Options],
) -> tuple[Tensor, InfoNCEStats]: ...


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
    return_stats: bool = False,
    impl: str = "auto",
) -> Tensor | tuple[Tensor, InfoNCEStats]:
    """Contrastive cross-entropy of every query against all keys, of which one is its positive.

    With the defaults it equals

        F.cross_entropy(F.normalize(queries) @ F.normalize(keys).T / temperature, torch.arange(len(queries)))

    but neither the similarities nor their gradient ever exist for all rows at once. All keys get a gradient,
    so a caller that gathered them from other processes reduces it back with the adjoint of its gather.

    The reference computes float64 inputs in float64 and all others in float32. Triton multiplies the inputs as
    they are, in the dtype that holds both where queries and keys differ, and accumulates in float32; the weights of the
    gradients are rounded to that dtype.
    Autocast changes neither. Gradients have the dtype of their input. There is no second derivative.

    Args:
        queries: [N, D].
        keys: [M, D]. The positive of row `i` is key `positive_offset + i`; the others are its negatives.
        temperature: a positive number, or a tensor of one element, which then gets a gradient. A tensor's
            value is not checked, because that would wait for the device.
        positive_offset: where this caller's rows begin among the keys.
        hard_negatives: [K, D], more negatives for every row, after the keys.
        hard_negative_offset: row `i`'s own hard negative is number `hard_negative_offset + i`.
        hard_negative_weight: added, after the division by the temperature, to the logit of a row's own hard
            negative, as SimCSE and DiffCSE do. Without `hard_negatives` it has no effect.
        row_weights: [N], a factor on each row's loss. They are constants: a weight that requires a gradient
            is refused.
        normalize: True compares by cosine; a row no longer than 1e-12 has no direction, so its cosines and its
            gradient are 0. False compares by dot product.
        symmetric: the mean of this loss and of the one with queries and keys exchanged (CLIP). Needs N == M,
            no offset and no hard negatives.
        reduction: "mean" is sum(weight * loss) / sum(weight), "sum" leaves the division out, "none" gives
            [N]. The first two make the gradients during the forward pass; "none" computes the similarities
            again in backward.
        return_stats: also return `InfoNCEStats`, of the direction from queries to keys.
        impl: "auto", "triton" or "reference".

    Returns:
        The loss, float32 (float64 for float64 inputs), or a tuple of the loss and the statistics.

    Raises:
        ValueError: shapes or options that do not fit together, or an implementation that is not installed.
    """
    _check_rows(queries, keys, positive_offset)
    _check_hard_negatives(queries, hard_negatives, hard_negative_offset, hard_negative_weight)
    _check_temperature(temperature)
    _check_row_weights(queries, row_weights)
    if symmetric and (len(queries) != len(keys) or hard_negatives is not None):
        raise ValueError("symmetric=True needs as many queries as keys and no hard_negatives")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', not {reduction!r}")
    columns = keys if hard_negatives is None else torch.cat([keys, hard_negatives])
    dtype = compute_dtype(queries, columns)
    impl = resolve(impl, "info_nce", len(queries) * len(columns), queries.device, dtype)
    if not isinstance(temperature, Tensor):
        temperature = queries.new_full((), temperature, dtype=dtype)
    weights = queries.new_ones(len(queries), dtype=dtype) if row_weights is None else row_weights.to(dtype)
    coefficients = {"mean": weights / weights.sum(), "sum": weights, "none": None}[reduction]
    # a weight of zero marks no column, so the hard negatives may then be fewer than the rows
    is_marked = hard_negatives is not None and hard_negative_weight != 0
    own_hard_negative = len(keys) + hard_negative_offset if is_marked else None
    options = (len(keys), positive_offset, own_hard_negative, hard_negative_weight, normalize, impl)
    loss, *stats = contrast(queries, columns, temperature, coefficients, *options)
    if symmetric:
        loss = (loss + contrast(columns, queries, temperature, coefficients, *options)[0]) / 2
    if reduction == "none":
        loss = loss * weights
    return (loss, InfoNCEStats(*stats)) if return_stats else loss


def _check_row_weights(queries: Tensor, row_weights: Tensor | None) -> None:
    if row_weights is None:
        return
    if row_weights.shape != queries.shape[:1]:
        raise ValueError(f"row_weights must be [{len(queries)}], not {list(row_weights.shape)}")
    if row_weights.requires_grad:
        raise ValueError("row_weights must not require a gradient: they are constants of the loss")


def _check_rows(queries: Tensor, keys: Tensor, positive_offset: int) -> None:
    check_matrices(queries=queries, keys=keys)
    if positive_offset < 0 or positive_offset + len(queries) > len(keys):
        raise ValueError(
            f"the positives of {len(queries)} queries at positive_offset={positive_offset} are not all among "
            f"{len(keys)} keys"
        )


def _check_hard_negatives(queries: Tensor, hard_negatives: Tensor | None, offset: int, weight: float) -> None:
    if hard_negatives is None:
        return
    shape, width = list(hard_negatives.shape), queries.shape[1]
    if len(shape) != 2 or shape[1] != width or not hard_negatives.is_floating_point():
        raise ValueError(f"hard_negatives must be a floating-point [K, {width}], not {shape} of {hard_negatives.dtype}")
    if weight != 0 and (offset < 0 or offset + len(queries) > len(hard_negatives)):
        raise ValueError(
            f"hard_negative_weight needs a hard negative for each of {len(queries)} queries, but there "
            f"are {len(hard_negatives)} and hard_negative_offset={offset}"
        )


def _check_temperature(temperature: float | Tensor) -> None:
    if isinstance(temperature, Tensor):
        if temperature.numel() != 1 or not temperature.is_floating_point():
            raise ValueError(
                f"a temperature tensor must hold one floating-point number, not {list(temperature.shape)} "
                f"of {temperature.dtype}"
            )
    elif not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be a positive finite number, not {temperature}")
