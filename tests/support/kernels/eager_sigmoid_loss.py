"""The sigmoid loss as open_clip's SigLipLoss writes it, with the whole matrix."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def eager_sigmoid_loss(
    queries: Tensor,
    keys: Tensor,
    temperature: float | Tensor = 0.1,
    bias: float | Tensor = -10.0,
    *,
    positive_offset: int = 0,
    normalize: bool = True,
    query_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The same loss in the dtype of the inputs; open_clip's `logit_scale` is the reciprocal of the temperature."""
    if normalize:
        queries, keys = F.normalize(queries), F.normalize(keys)
    logits = queries @ keys.T / temperature + bias
    positive = torch.zeros_like(logits, dtype=torch.bool)
    positive[torch.arange(len(queries)), positive_offset + torch.arange(len(queries))] = True
    labels = 2 * positive.to(logits.dtype) - 1
    losses = -F.logsigmoid(labels * logits)
    if query_ids is not None and key_ids is not None:
        own, others = query_ids.reshape(len(queries), 1, -1), key_ids.reshape(1, len(keys), -1)
        losses = losses.masked_fill((own == others).any(dim=2) & ~positive, 0)
    losses = losses.sum(dim=1)
    if reduction == "none":
        return losses
    return losses.sum() / len(queries) if reduction == "mean" else losses.sum()
