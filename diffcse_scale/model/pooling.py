"""From token vectors to one sentence embedding h."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def pool(outputs: Any, attention_mask: Tensor, how: str) -> Tensor:
    """Pool the output of a transformers backbone.

    Args:
        outputs: has `last_hidden_state` [B, L, H]; for `first_last_mean` also `hidden_states`.
        attention_mask: [B, L], 1 for real tokens; padding may stand on either side, for `cls` on the right.
        how: `cls` (token 0), `mean` (over real tokens), `last` (the last real token), or `first_last_mean`
            (mean over real tokens of the average of embedding output and last layer; SimCSE's avg_first_last).

    Returns:
        [B, H]
    """
    hidden = outputs.last_hidden_state
    if how == "cls":
        return hidden[:, 0]
    if how == "last":
        positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
        last = (attention_mask * positions).argmax(dim=1)
        return hidden[torch.arange(hidden.shape[0], device=hidden.device), last]
    if how == "first_last_mean":
        hidden = (outputs.hidden_states[0] + outputs.hidden_states[-1]) / 2
    elif how != "mean":
        raise ValueError(f"pooling must be cls, mean, last or first_last_mean, not {how!r}")
    weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
