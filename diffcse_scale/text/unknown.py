"""Counts unknown tokens, and states their share in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from diffcse_scale.text.shortening import shortened

if TYPE_CHECKING:  # takes seconds
    from transformers import PreTrainedTokenizerBase

SAMPLE = 10_000  # texts, enough to know a share to 1%


def unknown_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that stands for what is not in the vocabulary.

    None where there is none: byte-level tokenizers know every text, and some of them call their end token unknown.
    """
    if getattr(tokenizer, "unk_token_id", None) is None:  # also of a tokenizer of another kind
        return None
    other = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.mask_token_id}
    return None if tokenizer.unk_token_id in other else tokenizer.unk_token_id


def share_unknown(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int | None) -> float:
    """Share of the tokens of texts, special ones left out, that are unknown; of many texts a sample is looked at.

    Args:
        max_length: tokens a text that are read, special ones included; None for no limit.
    """
    token = unknown_id(tokenizer)
    if token is None or not texts:
        return 0.0
    some = texts[:: -(-len(texts) // SAMPLE) or 1]
    limit = {} if max_length is None else {"truncation": True, "max_length": max_length}
    rows = tokenizer(shortened(tokenizer, some, max_length), add_special_tokens=False, **limit)["input_ids"]
    return sum(ids.count(token) for ids in rows) / max(1, sum(map(len, rows)))


def percent(share: float) -> str:
    """In words, which never say 0% of what is there."""
    return "less than 0.1%" if 0 < share < 0.001 else f"{100 * share:.1f}%".replace(".0%", "%")
