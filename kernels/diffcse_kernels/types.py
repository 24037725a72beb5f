"""The types, besides tensors, that the functions take and return; all implementations share them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor

Reduction = Literal["mean", "sum", "none"]


class InfoNCEStats(NamedTuple):
    """Statistics of a contrastive batch: scalars without a graph, computed in the same pass as the loss.

    With `normalize=False` the two cosines are dot products.

    Example:
        >>> import torch
        >>> from diffcse_kernels import info_nce
        >>> rows = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> loss, stats = info_nce(rows, rows, return_stats=True)
        >>> stats.positive_cosine.item(), stats.negative_cosine.item(), stats.accuracy.item()
        (1.0, 0.0, 1.0)
    """

    positive_cosine: Tensor
    """Mean over the rows."""
    negative_cosine: Tensor
    """Mean over the N * (M - 1) pairs of a query and a key that is not its positive; NaN if M is 1. Pairs that ids or
    the margin exclude are included; hard negatives and other sets are not."""
    accuracy: Tensor
    """Share of rows whose own positive has a larger logit than all negatives that count, including hard negatives."""


class NegativeSet(NamedTuple):
    """More columns to compare every row with, such as the queries themselves or other documents.

    The example also compares queries with queries, without the diagonal: each query becomes a negative of the other.

    Example:
        >>> import torch
        >>> from diffcse_kernels import NegativeSet, info_nce
        >>> queries, keys = torch.eye(4)[:2], torch.eye(4)[2:]  # no two of them are alike: four equal logits
        >>> info_nce(queries, keys).exp().round().item()
        2.0
        >>> info_nce(queries, keys, negatives=[NegativeSet(queries, excluded_offset=0)]).exp().round().item()
        3.0
    """

    vectors: Tensor
    """[K, D]."""
    ids: Tensor | None = None
    """[K] or [K, C] integers: a row leaves out the columns that share an id with it."""
    excluded_offset: int | None = None
    """Row `i` leaves out vector `excluded_offset + i`; None leaves out nothing."""


class Ids(NamedTuple):
    """Ids of rows and columns: a column that shares an id with a row is not a negative of it."""

    queries: Tensor
    """[N, C] int64."""
    columns: Tensor
    """[I, C] int64, for the first I columns; the other columns have no ids."""


class Options(NamedTuple):
    """The arguments of `contrast` that are not tensors."""

    num_keys: int
    """The first `num_keys` columns are keys; negatives follow."""
    positive_offset: int
    """The positive of row `i` is column `positive_offset + i`."""
    own_hard_negative: int | None
    """Row `i`'s own hard negative is column `own_hard_negative + i`."""
    hard_negative_weight: float
    """Added to the logit of a row's own hard negative."""
    normalize: bool
    excluded: Sequence[int] = ()
    """For each of these numbers, column `number + i` does not count in row `i`."""
    margin: float | None = None
    """A negative counts if its similarity is at most the positive's plus this."""
    multiple_positives: bool = False
    """If True, columns that share an id with a row are positives of it; if False, they do not count in it."""


class Needs(NamedTuple):
    """Which gradients are wanted."""

    queries: bool
    columns: bool
    temperature: bool


class Upstream(NamedTuple):
    """The upstream gradients of a row's loss and of its logsumexp, both [N].

    The backward pass differentiates `upstream.losses @ losses + upstream.logsumexp @ logsumexp`.
    """

    losses: Tensor
    logsumexp: Tensor | None = None


class Gradients(NamedTuple):
    """The gradients; None for each that is not wanted."""

    queries: Tensor | None
    columns: Tensor | None
    temperature: Tensor | None


class Contrast(NamedTuple):
    """The result of an implementation."""

    losses: Tensor
    """[N]."""
    logsumexp: Tensor
    """[N], over all columns that count."""
    stats: InfoNCEStats
    gradients: Gradients


class RTDCounts(NamedTuple):
    """Counts over the tokens in `mask`, int64 scalars. A token is predicted as replaced if its logit is positive.

    Example:
        >>> import torch
        >>> from diffcse_kernels import replaced_token_bce
        >>> hidden, weight, bias = torch.tensor([[2.0], [-1.0], [3.0]]), torch.ones(1), torch.zeros(1)
        >>> original, edited = torch.tensor([5, 6, 7]), torch.tensor([9, 6, 7])
        >>> mask = torch.tensor([True, True, True])
        >>> _, counts = replaced_token_bce(hidden, weight, bias, original, edited, mask)
        >>> [count.item() for count in counts]  # real, replaced, right on replaced, right on kept
        [3, 1, 1, 1]
    """

    real: Tensor
    """Tokens in the mask."""
    replaced: Tensor
    """Tokens in the mask whose edited id differs from the original."""
    right_on_replaced: Tensor
    """Replaced tokens that are predicted as replaced."""
    right_on_kept: Tensor
    """Kept tokens that are predicted as kept."""


class SigmoidNeeds(NamedTuple):
    """Which gradients of `sigmoid_loss` are wanted."""

    queries: bool
    keys: bool
    temperature: bool
    bias: bool


class SigmoidGradients(NamedTuple):
    """The gradients of `sigmoid_loss`; None for each that is not wanted."""

    queries: Tensor | None
    keys: Tensor | None
    temperature: Tensor | None
    bias: Tensor | None
