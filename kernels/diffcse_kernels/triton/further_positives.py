"""Rows that have several positives: one more pass over the similarities, before the exponentials."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .similarity import Pair, row_maxima


class Further(NamedTuple):
    """What rows have that may share ids with columns; all [N] float32."""

    logsumexp: Tensor
    """Of all columns that count but the row's own positive."""
    positives: Tensor
    """The logits of the rows' own positives."""
    largest: Tensor
    """The largest negatives, -inf where there are none."""
    shares: Tensor
    """One over the number of positives, the row's own among them."""
    above_mean: Tensor
    """How far the own positive's logit lies above the mean of all positives'."""


def further_positives(pair: Pair) -> Further:
    """`similarity.negatives_logsumexp` where the masks say which columns are positives too."""
    lowest = pair.scale.new_full((), -torch.inf)
    maxima, sums, positives, found = row_maxima(pair, lowest, -lowest, with_sums=True)
    counts, logits, largest = found[0].sum(dim=1), found[1].sum(dim=1), found[2].amax(dim=1)
    shares = (counts + 1).reciprocal()
    above_mean = (positives * counts - logits) * shares
    return Further(torch.logsumexp(maxima + sums.log(), dim=1), positives, largest, shares, above_mean)
