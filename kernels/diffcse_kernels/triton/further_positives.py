"""Rows with several positives need one more pass over the similarities, before the exponentials."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .similarity import Pair, row_maxima


class Further(NamedTuple):
    """The results of this pass for rows that may share ids with columns; all [N] float32."""

    logsumexp: Tensor
    """The logsumexp over all columns that count, except the row's own positive."""
    positives: Tensor
    """The logits of the rows' own positives."""
    largest: Tensor
    """The largest negatives, -inf for rows without negatives."""
    shares: Tensor
    """1 / the number of positives, including the row's own."""
    above_mean: Tensor
    """The logit of the row's own positive minus the mean logit of all its positives."""


def further_positives(pair: Pair) -> Further:
    """Like `similarity.negatives_logsumexp`, for masks that say which columns are positives too."""
    lowest = pair.scale.new_full((), -torch.inf)
    maxima, sums, positives, found = row_maxima(pair, lowest, -lowest, with_sums=True)
    counts, logits, largest = found[0].sum(dim=1), found[1].sum(dim=1), found[2].amax(dim=1)
    shares = (counts + 1).reciprocal()
    above_mean = (positives * counts - logits) * shares
    return Further(torch.logsumexp(maxima + sums.log(), dim=1), positives, largest, shares, above_mean)
