"""Pool token vectors into a sentence embedding h; training, export, loading and model card read one table.

`model.pooling` of the recipe (`recipe.py`) lists the names; a test checks that the two agree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pooling:
    """A way to pool.

    Attributes:
        pool: maps token vectors [B, L, H] and attention mask [B, L] to embeddings [B, H].
        token: the embedding is the vector of this one token; None if all tokens count.
        mode, flag: its name in sentence-transformers' Pooling, in code and in its file (`pooling_mode_FLAG`).
        words: description for the model card.
        code: code for the model card, which computes `embeddings` from a transformers `output` and its `mask`.
        first_and_last: pool the average of embedding output and last layer, not the last layer alone. The backbone
            must then return its hidden states, and an export has a layer average before the pooling.
    """

    pool: Callable[[Tensor, Tensor], Tensor]
    token: Literal["first", "last"] | None
    mode: str
    flag: str
    words: str
    code: str
    first_and_last: bool = False


def _first(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    return hidden[:, 0]


def _last(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    last = (attention_mask * positions).argmax(dim=1)
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), last]


def _mean(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)


MEAN_CODE = "embeddings = (vectors * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)"

POOLINGS = {
    "cls": Pooling(
        pool=_first,
        token="first",
        mode="cls",
        flag="cls_token",
        words="the first token's vector",
        code="embeddings = output.last_hidden_state[:, 0]",
    ),
    "mean": Pooling(
        pool=_mean,
        token=None,
        mode="mean",
        flag="mean_tokens",
        words="the mean of the token vectors",
        code=f"vectors = output.last_hidden_state\n{MEAN_CODE}",
    ),
    "last": Pooling(
        pool=_last,
        token="last",
        mode="lasttoken",
        flag="lasttoken",
        words="the end token's vector",
        code="last = mask.cumsum(1).argmax(1)  # of the real tokens, whichever side is padded\n"
        "embeddings = output.last_hidden_state[torch.arange(len(sentences)), last]",
    ),
    # SimCSE's avg_first_last
    "first_last_mean": Pooling(
        pool=_mean,
        token=None,
        mode="mean",
        flag="mean_tokens",
        words="the mean over tokens of the average of embedding output and last layer",
        code=f"vectors = (output.hidden_states[0] + output.hidden_states[-1]) / 2\n{MEAN_CODE}",
        first_and_last=True,
    ),
}


def pooling_named(name: str) -> Pooling:
    """The row of `POOLINGS` with this name.

    Raises:
        ValueError: there is no such row.
    """
    if name not in POOLINGS:
        raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, not {name!r}")
    return POOLINGS[name]


def pool(outputs: Any, attention_mask: Tensor, how: str) -> Tensor:
    """Pool the output of a transformers backbone.

    Args:
        outputs: has `last_hidden_state` [B, L, H]; for a pooling with `first_and_last` also `hidden_states`.
        attention_mask: [B, L], 1 for real tokens; padding may be on either side, but for `cls` only on the right.
        how: a name in `POOLINGS`.

    Returns:
        [B, H]

    Raises:
        ValueError: unknown pooling.
    """
    pooling = pooling_named(how)
    hidden = outputs.last_hidden_state
    if pooling.first_and_last:
        hidden = (outputs.hidden_states[0] + outputs.hidden_states[-1]) / 2
    return pooling.pool(hidden, attention_mask)
