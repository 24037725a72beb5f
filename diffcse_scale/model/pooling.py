"""From token vectors to one sentence embedding h: one table, which training, export, loading and model card read.

`model.pooling` of the recipe (`recipe.py`) lists the names; a test holds the two together.
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
        pool: token vectors [B, L, H] and attention mask [B, L] to embeddings [B, H].
        token: the embedding is the vector of this token alone; None where all of them count.
        mode, flag: what sentence-transformers' Pooling calls it in code, and in its file (`pooling_mode_FLAG`).
        words: for the model card.
        code: for the model card; from a transformers `output` and its `mask` to `embeddings`.
        first_and_last: the average of embedding output and last layer is pooled, not the last layer alone: the
            backbone has to give its hidden states, and a layer average stands before the pooling in an export.
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
    """The row of `POOLINGS`.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in POOLINGS:
        raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, not {name!r}")
    return POOLINGS[name]


def pool(outputs: Any, attention_mask: Tensor, how: str) -> Tensor:
    """Pool the output of a transformers backbone.

    Args:
        outputs: has `last_hidden_state` [B, L, H]; for a pooling of `first_and_last` also `hidden_states`.
        attention_mask: [B, L], 1 for real tokens; padding may stand on either side, for `cls` on the right.
        how: a name of `POOLINGS`.

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
