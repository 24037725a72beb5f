"""Long texts, shortened to what can be seen of them before they are tokenized.

A tokenizer reads all of a text, with some 300 bytes of memory a character, and only then are the first `max_length`
tokens taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # takes seconds
    from transformers import PreTrainedTokenizerBase

CHARACTERS = 16  # a token: more than tokens have on the average in any language, so that the first piece mostly does
# and the least: a word that begins in the first piece shows in the second that it is too long for WordPiece (over 100)
LEAST = 256
GROWTH = 8
# Of a text whose first so many characters make fewer than `max_length` tokens, the rest is not read.
MOST_CHARACTERS = 1 << 20
NO_LIMIT = 1 << 20  # tokens: `model_max_length` of a tokenizer that names none is 1e30


def shortened(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int | None) -> list[str]:
    """The texts, the long ones cut to a piece whose first `max_length` token ids are those of the whole.

    A piece is taken when it and another of more than twice its length begin with the same `max_length` tokens, special
    ones included, and have more: what follows does not reach back to them. Where they do not agree (a word without an
    end, say), larger pieces are tried, and in the end the whole text.

    Args:
        max_length: tokens a text, special ones included; None for no limit.
    """
    pieces = list(texts)
    side = getattr(tokenizer, "truncation_side", None)  # none: a tokenizer of another kind
    if max_length is None or max_length > NO_LIMIT or side != "right":
        return pieces
    size = max(LEAST, CHARACTERS * max_length)
    long = [index for index, text in enumerate(pieces) if len(text) > size]
    while long and size < MOST_CHARACTERS:
        twice = 2 * size + 1  # and one: lengths that two does not divide show what repeated characters hide
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
    """Token ids of texts, special ones included, at most `max_length` of each."""
    pieces = shortened(tokenizer, texts, max_length)
    ids: list[list[int]] = tokenizer(pieces, truncation=True, max_length=max_length)["input_ids"]
    return ids


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(texts, return_attention_mask=False, return_token_type_ids=False, verbose=False)[
        "input_ids"
    ]
    return ids


def _enough(tokenizer: PreTrainedTokenizerBase, ids: list[int], max_length: int) -> bool:
    """Whether the text alone makes more than `max_length` tokens, so that the whole text is one that is truncated."""
    return len(ids) - tokenizer.num_special_tokens_to_add() > max_length
