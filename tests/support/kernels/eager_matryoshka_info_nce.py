"""InfoNCE of nested prefixes as sentence-transformers' MatryoshkaLoss makes it: a loss of each, by the whole matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from tests.support.kernels.eager_info_nce import eager_info_nce


def eager_matryoshka_info_nce(
    queries: Tensor,
    keys: Tensor,
    temperature: float | Tensor,
    widths: Sequence[int],
    weights: Sequence[float] | None = None,
    *,
    hard_negatives: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """The same loss in the dtype of the inputs."""
    total = queries.new_zeros(())
    for width, weight in zip(widths, weights or [1.0] * len(widths), strict=True):
        hard = None if hard_negatives is None else hard_negatives[:, :width]
        loss = eager_info_nce(queries[:, :width], keys[:, :width], temperature, hard_negatives=hard, **options)
        total = total + weight * loss
    return total
