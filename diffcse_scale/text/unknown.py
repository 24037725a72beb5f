"""Counts what a tokenizer does not know, and formats its share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from diffcse_scale.text.shortening import shortened

if TYPE_CHECKING:  # the import takes seconds
    from transformers import PreTrainedTokenizerBase

SAMPLE = 10_000  # texts, enough to estimate a share to 1%
RARE = "\U00012000"  # a cuneiform sign, which hardly a vocabulary has


def unknown_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id of the token for anything that is not in the vocabulary, or None.

    Byte-level tokenizers have none, because they can encode every text; some of them call their end token unknown.
    """
    if getattr(tokenizer, "unk_token_id", None) is None:  # other kinds of tokenizers lack the attribute
        return None
    other = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.mask_token_id}
    return None if tokenizer.unk_token_id in other else tokenizer.unk_token_id


def leaves_out(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer leaves out what is not in its vocabulary.

    BPE does if it has neither bytes nor an unknown token.
    """
    if unknown_id(tokenizer) is not None or not getattr(tokenizer, "is_fast", False):
        return False
    return not tokenizer(RARE, add_special_tokens=False)["input_ids"]


def left_out(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> tuple[int, int]:
    """In texts, the number of characters that are in no token, and of all characters, both without spaces.

    If there are many texts, a sample is used.

    Args:
        tokenizer: one that `leaves_out` characters.
    """
    some = _sample(texts)
    found = characters = 0
    places = tokenizer(some, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    for text, spans in zip(some, places, strict=True):
        inside = {place for start, end in spans for place in range(start, end)}
        written = [place for place, character in enumerate(text) if not character.isspace()]
        found += sum(place not in inside for place in written)
        characters += len(written)
    return found, characters


def share_unknown(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int | None) -> float:
    """The share of unknown tokens in texts, without special tokens. If there are many texts, a sample is used.

    For a tokenizer that leaves out what it does not know, it is the share of characters that it leaves out.

    Args:
        max_length: tokens read per text, special ones included; None for no limit.
    """
    if leaves_out(tokenizer):
        found, characters = left_out(tokenizer, texts)
        return found / max(1, characters)
    token = unknown_id(tokenizer)
    if token is None or not texts:
        return 0.0
    some = _sample(texts)
    limit = {} if max_length is None else {"truncation": True, "max_length": max_length}
    rows = tokenizer(shortened(tokenizer, some, max_length), add_special_tokens=False, **limit)["input_ids"]
    return sum(ids.count(token) for ids in rows) / max(1, sum(map(len, rows)))


def _sample(texts: Sequence[str]) -> list[str]:
    return list(texts[:: -(-len(texts) // SAMPLE) or 1])


def percent(share: float) -> str:
    """A share in percent; a share above zero is never shown as 0%."""
    return "less than 0.1%" if 0 < share < 0.001 else f"{100 * share:.1f}%".replace(".0%", "%")
