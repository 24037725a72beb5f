"""Shortens long texts before tokenization to the part that the first `max_length` tokens depend on.

A tokenizer reads the whole text, which takes some 300 bytes of memory per character. Only then does it keep the first
`max_length` tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the import takes seconds
    from transformers import PreTrainedTokenizerBase

CHARACTERS = 16  # per token: more than the average of any language, so that the first piece is mostly enough
# The shortest piece, in characters. If a word begins in the first piece and is too long for WordPiece (over 100), the
# second piece shows it.
LEAST = 256
GROWTH = 8
# The rest of a text is not read if its first MOST_CHARACTERS characters make fewer than `max_length` tokens.
MOST_CHARACTERS = 1 << 20
NO_LIMIT = 1 << 20  # tokens: a tokenizer without a limit has the `model_max_length` 1e30


def shortened(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int | None) -> list[str]:
    """The texts, with long ones cut to a piece whose first `max_length` token ids equal those of the whole text.

    A piece is accepted if it and a piece of more than twice its length begin with the same `max_length` tokens, special
    ones included, and have more tokens. Then the following text does not affect them. If the two do not agree, for
    example because of an endless word, larger pieces are tried, and finally the whole text.

    Args:
        max_length: tokens per text, special ones included; None for no limit.
    """
    pieces = list(texts)
    side = getattr(tokenizer, "truncation_side", None)  # other kinds of tokenizers have none
    if max_length is None or max_length > NO_LIMIT or side != "right":
        return pieces
    size = max(LEAST, CHARACTERS * max_length)
    long = [index for index, text in enumerate(pieces) if len(text) > size]
    while long and size < MOST_CHARACTERS:
        twice = 2 * size + 1  # plus one: with repeated characters, an odd length shows a difference that 2 * size hides
        some, more = ([texts[index][:length] for index in long] for length in (size, twice))
        settled = [
            index
            for index, first, second in zip(long, _ids(tokenizer, some), _ids(tokenizer, more), strict=True)
            if _enough(tokenizer, first, max_length) and first[:max_length] == second[:max_length]
        ]
        for index in settled:
            pieces[index] = texts[index][:twice]
        size *= GROWTH
        long = [index for index in long if index not in set(settled) and len(texts[index]) > size]
    for index in long:
        pieces[index] = texts[index][:MOST_CHARACTERS]
    return pieces


def truncated_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> list[list[int]]:
    """Token ids of texts, special ones included, at most `max_length` per text."""
    pieces = shortened(tokenizer, texts, max_length)
    ids: list[list[int]] = tokenizer(pieces, truncation=True, max_length=max_length)["input_ids"]
    return ids


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(texts, return_attention_mask=False, return_token_type_ids=False, verbose=False)[
        "input_ids"
    ]
    return ids


def _enough(tokenizer: PreTrainedTokenizerBase, ids: list[int], max_length: int) -> bool:
    """Whether the text without special tokens has more than `max_length` tokens, so that the whole is truncated."""
    return len(ids) - tokenizer.num_special_tokens_to_add() > max_length
