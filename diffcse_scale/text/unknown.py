"""Counts unknown tokens, and formats their share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from diffcse_scale.text.shortening import shortened

if TYPE_CHECKING:  # the import takes seconds
    from transformers import PreTrainedTokenizerBase

SAMPLE = 10_000  # texts, enough to estimate a share to 1%


def unknown_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id of the token for anything that is not in the vocabulary, or None.

    Byte-level tokenizers have none, because they can encode every text; some of them call their end token unknown.
    """
    if getattr(tokenizer, "unk_token_id", None) is None:  # other kinds of tokenizers lack the attribute
        return None
    other = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.mask_token_id}
    return None if tokenizer.unk_token_id in other else tokenizer.unk_token_id


def share_unknown(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int | None) -> float:
    """The share of unknown tokens in texts, without special tokens. If there are many texts, a sample is used.

    Args:
        max_length: tokens read per text, special ones included; None for no limit.
    """
    token = unknown_id(tokenizer)
    if token is None or not texts:
        return 0.0
    some = texts[:: -(-len(texts) // SAMPLE) or 1]
    limit = {} if max_length is None else {"truncation": True, "max_length": max_length}
    rows = tokenizer(shortened(tokenizer, some, max_length), add_special_tokens=False, **limit)["input_ids"]
    return sum(ids.count(token) for ids in rows) / max(1, sum(map(len, rows)))


def percent(share: float) -> str:
    """A share in percent; a share above zero is never shown as 0%."""
    return "less than 0.1%" if 0 < share < 0.001 else f"{100 * share:.1f}%".replace(".0%", "%")
