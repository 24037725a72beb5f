"""InfoNCE as plain PyTorch says it, and gradients to compare."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
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
) -> Tensor:
    """The same loss with the whole matrix, in the dtype of the inputs."""
    columns = keys if hard_negatives is None else torch.cat([keys, hard_negatives])
    if normalize:
        queries, columns = F.normalize(queries), F.normalize(columns)
    logits = queries @ columns.T / temperature
    rows = torch.arange(len(queries))
    if hard_negatives is not None and hard_negative_weight:
        bonus = torch.zeros_like(logits)
        bonus[rows, len(keys) + hard_negative_offset + rows] = hard_negative_weight
        logits = logits + bonus
    losses = F.cross_entropy(logits, positive_offset + rows, reduction="none")
    if symmetric:
        losses = (losses + F.cross_entropy(logits.T, rows, reduction="none")) / 2
    weights = torch.ones_like(losses) if row_weights is None else row_weights.to(losses.dtype)
    if reduction == "none":
        return losses * weights
    total = (losses * weights).sum()
    return total / weights.sum() if reduction == "mean" else total


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
