"""Masks: which columns do not count in which rows, computed for one block of logits at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import Ids

ROUNDING = 1e-5  # difference between two summation orders of a float32 product of rows, relative to their lengths


def thresholds_of(positives: Tensor, margin: float, scale: Tensor) -> Tensor:
    """The logits above which a column's similarity exceeds the positive's by more than the margin."""
    return positives + margin * scale + ROUNDING * (positives.abs() + scale)


def bytes_a_logit(dtype: torch.dtype, ids: Ids | None, masked_above: bool, multiple_positives: bool = False) -> int:
    """Bytes a block needs per logit: the logit, its masks, and a copy if there are multiple positives."""
    return dtype.itemsize * (1 + multiple_positives) + max(2 * (ids is not None), int(masked_above))


def leave_out_(
    logits: Tensor,
    rows: slice,
    ids: Ids | None,
    thresholds: Tensor | None,
    multiple_positives: bool = False,
) -> Tensor | None:
    """Set the logits of columns that do not count to -inf; a row's own positive is treated like any other column.

    Args:
        logits: [n, columns], the logits of `rows`.
        rows: numbers of the rows.
        ids: columns that share an id with the row do not count.
        thresholds: [n]; columns with a larger logit do not count.
        multiple_positives: columns that share an id with the row do count, whatever their logit.

    Returns:
        With ids and `multiple_positives`, a bool [n, I]: whether the column shares an id with the row; else None.
    """
    alike = None if ids is None else shares_id(ids, rows)
    if thresholds is not None:
        above = logits > thresholds[:, None]
        if alike is not None and multiple_positives:
            above[:, : alike.shape[1]].masked_fill_(alike, False)
        logits.masked_fill_(above, -torch.inf)
    if alike is None or multiple_positives:
        return alike
    logits[:, : alike.shape[1]].masked_fill_(alike, -torch.inf)
    return None


def shares_id(ids: Ids, rows: slice) -> Tensor:
    """bool [n, I]: (ids.queries[rows, None] == ids.columns[None]).any(-1), computed for one of the C ids at a time."""
    found = ids.queries[rows, :1] == ids.columns[:, 0]
    for number in range(1, ids.columns.shape[1]):
        found |= ids.queries[rows, number, None] == ids.columns[:, number]
    return found
