"""InfoNCE as plain PyTorch says it, and gradients to compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffcse_kernels import NegativeSet
from torch import Tensor
from torch.nn import functional as F


def eager_info_nce(
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
    reduction: str = "mean",
    query_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    hard_negative_ids: Tensor | None = None,
    margin: float | None = None,
    negatives: Sequence[NegativeSet] = (),
    multiple_positives: bool = False,
    return_lse: bool = False,
) -> Any:
    """The same loss with the whole matrix and masks of its size, in the dtype of the inputs."""
    hard = [] if hard_negatives is None else [NegativeSet(hard_negatives, hard_negative_ids)]
    sets = [NegativeSet(keys, key_ids), *hard, *negatives]
    columns = torch.cat([one.vectors for one in sets])
    if normalize:
        queries, columns = F.normalize(queries), F.normalize(columns)
    similarities = queries @ columns.T
    rows = torch.arange(len(queries), device=queries.device)
    positive = torch.zeros(similarities.shape, dtype=torch.bool, device=queries.device)
    positive[rows, positive_offset + rows] = True
    own_similarity = similarities.detach()[rows, positive_offset + rows][:, None]
    alike = torch.cat([_alike(query_ids, one, len(queries)) for one in sets], dim=1)
    left_out = torch.cat([_diagonal(one, len(queries)) for one in sets], dim=1)
    if multiple_positives:
        positive |= alike & ~left_out
    else:
        left_out = left_out | (alike & ~positive)
    if margin is not None:
        left_out = left_out | ((similarities.detach() > own_similarity + margin) & ~positive)
    logits = similarities / temperature
    if hard_negatives is not None and hard_negative_weight:
        bonus = torch.zeros_like(logits)
        bonus[rows, len(keys) + hard_negative_offset + rows] = hard_negative_weight
        logits = logits + bonus
    logits = logits.masked_fill(left_out, -torch.inf)
    lse = logits.logsumexp(dim=1)
    losses = F.cross_entropy(logits, positive_offset + rows, reduction="none")
    if multiple_positives:
        losses = (lse[:, None] - logits).masked_fill(~positive, 0).sum(dim=1) / positive.sum(dim=1)
    if symmetric:
        exchanged = {"query_ids": key_ids, "key_ids": query_ids, "margin": margin, "normalize": normalize}
        options = {**exchanged, "multiple_positives": multiple_positives, "reduction": "none"}
        losses = (losses + eager_info_nce(keys, queries, temperature, **options)) / 2
    weights = torch.ones_like(losses) if row_weights is None else row_weights.to(losses.dtype)
    total = (losses * weights).sum()
    loss = {"none": losses * weights, "sum": total, "mean": total / weights.sum()}[reduction]
    return (loss, lse) if return_lse else loss


def _alike(query_ids: Tensor | None, one: NegativeSet, rows: int) -> Tensor:
    """bool [N, K]: whether they share an id."""
    if query_ids is None or one.ids is None:
        return torch.zeros(rows, len(one.vectors), dtype=torch.bool, device=one.vectors.device)
    of_queries, of_columns = (ids.reshape(len(ids), -1) for ids in (query_ids, one.ids))
    return (of_queries[:, None] == of_columns[None]).any(dim=-1)


def _diagonal(one: NegativeSet, rows: int) -> Tensor:
    """bool [N, K]: what the rows leave out of the set."""
    number = torch.arange(len(one.vectors), device=one.vectors.device)
    if one.excluded_offset is None:
        return torch.zeros(rows, len(number), dtype=torch.bool, device=number.device)
    return number[None] == one.excluded_offset + torch.arange(rows, device=number.device)[:, None]


def loss_and_gradients(
    function: Callable[..., Tensor], inputs: dict[str, Tensor], **options: Any
) -> tuple[Tensor, list[Tensor]]:
    """The loss, and its gradients after an upstream gradient that differs by row where the loss does."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in inputs.items()}
    loss = function(**leaves, **options)
    upstream = torch.linspace(0.5, 1.7, loss.numel(), dtype=loss.dtype).reshape(loss.shape)
    return loss.detach(), list(torch.autograd.grad(loss, list(leaves.values()), upstream))


def random_rows(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normally distributed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
