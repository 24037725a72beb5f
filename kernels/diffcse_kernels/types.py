"""What the functions take and return besides tensors; all implementations share it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor

Reduction = Literal["mean", "sum", "none"]


class InfoNCEStats(NamedTuple):
    """What a contrastive batch looks like: scalars without a graph, from the same pass as the loss.

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
    """Mean over the N * (M - 1) pairs of a query and a key not its positive, also those that ids or the margin leave
    out, without hard negatives and other sets; NaN if M is 1."""
    accuracy: Tensor
    """Share of the rows whose own positive has a larger logit than all negatives that count, hard ones included."""


class NegativeSet(NamedTuple):
    """More columns that every row is compared with, such as the queries themselves or the other documents.

    The example compares queries with queries too, without the diagonal: each query is one more negative of the other.

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
    """[K] or [K, C] integers, if columns with the id of a row are to be left out of it."""
    excluded_offset: int | None = None
    """Row `i` leaves out vector `excluded_offset + i`; None leaves out nothing."""


class Ids(NamedTuple):
    """What tells which columns are no negatives of a row: those that share an id with it."""

    queries: Tensor
    """[N, C] int64."""
    columns: Tensor
    """[I, C] int64, of the first I columns; the others share no id with anything."""


class Options(NamedTuple):
    """What `contrast` is told besides its tensors."""

    num_keys: int
    """The first columns are keys; negatives follow."""
    positive_offset: int
    """The positive of row `i` is column `positive_offset + i`."""
    own_hard_negative: int | None
    """The hard negative of row `i` itself is column `own_hard_negative + i`."""
    hard_negative_weight: float
    """Added to the logit of a row's own hard negative."""
    normalize: bool
    excluded: Sequence[int] = ()
    """Column `number + i` does not count in row `i`, for each of the numbers."""
    margin: float | None = None
    """A negative counts if its similarity is at most the positive's plus this."""
    multiple_positives: bool = False
    """Columns that share an id with a row are positives of it; else they do not count in it."""


class Needs(NamedTuple):
    """Which gradients are wanted."""

    queries: bool
    columns: bool
    temperature: bool


class Upstream(NamedTuple):
    """The factors of what is differentiated, `losses @ losses + logsumexp @ logsumexp`, both [N]."""

    losses: Tensor
    logsumexp: Tensor | None = None


class Gradients(NamedTuple):
    """None where not wanted."""

    queries: Tensor | None
    columns: Tensor | None
    temperature: Tensor | None


class Contrast(NamedTuple):
    """What an implementation finds."""

    losses: Tensor
    """[N]."""
    logsumexp: Tensor
    """[N], over all columns that count."""
    stats: InfoNCEStats
    gradients: Gradients


class RTDCounts(NamedTuple):
    """Counts over the masked tokens, int64 scalars. A token is called replaced when its logit is positive.

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
    """Of these, tokens whose edited id differs from the original."""
    right_on_replaced: Tensor
    """Replaced tokens called replaced."""
    right_on_kept: Tensor
    """Kept tokens called kept."""


class SigmoidNeeds(NamedTuple):
    """Which gradients of `sigmoid_loss` are wanted."""

    queries: bool
    keys: bool
    temperature: bool
    bias: bool


class SigmoidGradients(NamedTuple):
    """None where not wanted."""

    queries: Tensor | None
    keys: Tensor | None
    temperature: Tensor | None
    bias: Tensor | None
