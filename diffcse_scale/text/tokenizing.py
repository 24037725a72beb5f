"""Tokenizes a batch of rows with each tokenizer."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from operator import gt
from typing import Any

import pyarrow
from transformers import PreTrainedTokenizerBase

from diffcse_scale.text.duplicates import row_hash
from diffcse_scale.text.shortening import shortened
from diffcse_scale.text.tokenizers import surroundings, truncates_left, unknown_told

BETWEEN_COLUMNS = -1  # no token has this id


def encode_rows(
    batch: dict[str, list[str]],
    columns: Sequence[str],
    tokenizers: Sequence[PreTrainedTokenizerBase],
    max_length: int,
) -> pyarrow.Table:
    """Tokenize a batch of rows. Long sentences are truncated between their special tokens, at the tokenizer's side.

    Rows in which a tokenizer finds no token are left out.

    Returns:
        `ids_K` (lists of int32) and `truncated_K` (bool) for each column of each tokenizer, and `hash` (int64), which
        is equal for rows with the same tokens of the first tokenizer.

    Raises:
        InputError: as `_whole_ids`.
    """
    readers = [tokenizer for tokenizer in tokenizers for _ in columns]
    texts = [batch[column] for _ in tokenizers for column in columns]
    encoded = [_whole_ids(reader, text, max_length) for reader, text in zip(readers, texts, strict=True)]
    specials = [reader.num_special_tokens_to_add() for reader in readers]
    rows = [row for row in zip(*encoded, strict=True) if all(map(gt, map(len, row), specials))]
    table: dict[str, Any] = {}
    kept = []
    for column, sentences in enumerate(zip(*rows, strict=True) if rows else [()] * len(readers)):
        too_long = [len(ids) > max_length for ids in sentences]
        kept.append(_truncated(readers[column], sentences, max_length))
        table[f"ids_{column}"] = pyarrow.array(kept[column], type=pyarrow.list_(pyarrow.int32()))
        table[f"truncated_{column}"] = pyarrow.array(too_long, type=pyarrow.bool_())
    same = [_hash(row) for row in zip(*kept[: len(columns)], strict=True)]
    return pyarrow.table(table | {"hash": pyarrow.array(same, type=pyarrow.int64())})


def _whole_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> list[list[int]]:
    """Token ids of texts, special ones included, up to some point beyond `max_length`.

    Raises:
        InputError: as `unknown_told`.
    """
    only_ids = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
    with unknown_told(tokenizer):
        ids: list[list[int]] = tokenizer(shortened(tokenizer, texts, max_length), **only_ids)["input_ids"]
    return ids


def _truncated(tokenizer: PreTrainedTokenizerBase, sentences: Sequence[list[int]], max_length: int) -> list[list[int]]:
    """Token ids as the tokenizer truncates them, which evaluation and users of the exported model leave to it."""
    head, tail = surroundings(tokenizer)
    if truncates_left(tokenizer):
        return [ids[:head] + ids[head - max_length :] if len(ids) > max_length else ids for ids in sentences]
    return [ids[: max_length - tail] + ids[len(ids) - tail :] if len(ids) > max_length else ids for ids in sentences]


def _hash(row: Sequence[list[int]]) -> int:
    content = array("i")
    for ids in row:
        content.extend([*ids, BETWEEN_COLUMNS])
    return row_hash(content.tobytes())
