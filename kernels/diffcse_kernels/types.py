"""What the functions take and return besides tensors; all implementations share it."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

Reduction = Literal["mean", "sum", "none"]


class InfoNCEStats(NamedTuple):
    """What a contrastive batch looks like: scalars without a graph, from the same pass as the loss.

    With `normalize=False` the two cosines are dot products.
    """

    positive_cosine: Tensor
    """Mean over the rows."""
    negative_cosine: Tensor
    """Mean over the N * (M - 1) pairs of a query and a key not its positive, without hard negatives; NaN if M
    is 1."""
    accuracy: Tensor
    """Share of the rows whose positive has a larger logit than all negatives, hard ones included."""


class Options(NamedTuple):
    """What `contrast` is told besides its tensors."""

    num_keys: int
    """The first columns are keys, the others hard negatives."""
    positive_offset: int
    """The positive of row `i` is column `positive_offset + i`."""
    own_hard_negative: int | None
    """The hard negative of row `i` itself is column `own_hard_negative + i`."""
    hard_negative_weight: float
    """Added to the logit of a row's own hard negative."""
    normalize: bool


class Needs(NamedTuple):
    """Which gradients are wanted."""

    queries: bool
    columns: bool
    temperature: bool


class Gradients(NamedTuple):
    """None where not wanted."""

    queries: Tensor | None
    columns: Tensor | None
    temperature: Tensor | None


class RTDCounts(NamedTuple):
    """Counts over the masked tokens, int64 scalars. A token is called replaced when its logit is positive."""

    real: Tensor
    """Tokens in the mask."""
    replaced: Tensor
    """Of these, tokens whose edited id differs from the original."""
    right_on_replaced: Tensor
    """Replaced tokens called replaced."""
    right_on_kept: Tensor
    """Kept tokens called kept."""
