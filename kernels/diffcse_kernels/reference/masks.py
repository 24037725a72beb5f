"""Which columns of a block of logits do not count in which rows, one block at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import Ids

ROUNDING = 1e-5  # of a float32 product of two rows, relative to their lengths: what two orders of adding differ by


def thresholds_of(positives: Tensor, margin: float, scale: Tensor) -> Tensor:
    """The logits above which a column is more similar to a row than its positive by more than the margin."""
    return positives + margin * scale + ROUNDING * (positives.abs() + scale)


def bytes_a_logit(dtype: torch.dtype, ids: Ids | None, masked_above: bool, multiple_positives: bool = False) -> int:
    """What a block takes for each of its logits: itself, its masks, and a copy where positives are told apart."""
    return dtype.itemsize * (1 + multiple_positives) + max(2 * (ids is not None), int(masked_above))


def leave_out_(
    logits: Tensor,
    rows: slice,
    ids: Ids | None,
    thresholds: Tensor | None,
    multiple_positives: bool = False,
) -> Tensor | None:
    """Put -inf where a column does not count; a row's own positive, too, is treated as any other column.

    Args:
        logits: [n, columns] of the rows `rows`.
        rows: numbers of the rows.
        ids: columns that share an id with the row do not count.
        thresholds: [n], above which columns do not count.
        multiple_positives: columns that share an id with the row do count, whatever their logit.

    Returns:
        With `multiple_positives` a bool [n, I]: whether the column shares an id with the row.
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
    """bool [n, I]: (ids.queries[rows, None] == ids.columns[None]).any(-1), one of the C ids at a time."""
    found = ids.queries[rows, :1] == ids.columns[:, 0]
    for number in range(1, ids.columns.shape[1]):
        found |= ids.queries[rows, number, None] == ids.columns[:, number]
    return found
