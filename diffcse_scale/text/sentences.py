"""The sentences for masked-LM training: a tokenized corpus, split and ordered without being read."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedTokenizerBase

from diffcse_scale.foundation.randomness import derive_seed
from diffcse_scale.text.tokenizers import surroundings
from diffcse_scale.text.tokens import TokenizedCorpus

MOST_BATCHES = 50  # batches that are sorted by length together, at most


class Sentences(Dataset[dict[str, list[int]]]):
    """Some sentences of a corpus; all of the first column come first, then the second, then the third.

    Args:
        numbers: which sentences, int64 [n]: row + column x rows.
    """

    def __init__(
        self, tokens: TokenizedCorpus, tokenizer: PreTrainedTokenizerBase, numbers: NDArray[np.int64] | None = None
    ) -> None:
        self.tokens, self.tokenizer = tokens, tokenizer
        self.numbers = np.arange(len(tokens) * tokens.columns) if numbers is None else numbers
        self._head, self._tail = surroundings(tokenizer)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        """`input_ids`, and `special_tokens_mask` with a 1 for each token that the tokenizer put around the text."""
        column, row = divmod(int(self.numbers[index]), len(self.tokens))
        ids = self.tokens.rows(np.array([row]), column)[0].tolist()
        inside = len(ids) - self._head - self._tail
        return {"input_ids": ids, "special_tokens_mask": [1] * self._head + [0] * inside + [1] * self._tail}

    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each sentence."""
        found = np.empty(len(self), np.int32)
        for column in range(self.tokens.columns):
            here = self.numbers // len(self.tokens) == column
            found[here] = self.tokens.lengths(column, self.numbers[here] - column * len(self.tokens))
        return found

    def split(self, held_out: int, seed: int) -> tuple[Sentences, Sentences]:
        """Split off `held_out` sentences, chosen by the seed; returns the other sentences first."""
        chosen = self.numbers[np.random.default_rng(seed).permutation(len(self))]
        parts = chosen[held_out:], chosen[:held_out]
        train, test = (Sentences(self.tokens, self.tokenizer, numbers) for numbers in parts)
        return train, test


class GroupedByLength(Sampler[int]):
    """A random order in which the sentences of a batch have similar lengths. The longest sentence comes first.

    It is the order of transformers' `LengthGroupedSampler`, which keeps it in lists. Here it takes 12 bytes per
    sentence and depends only on the seed and the epoch, so that training can resume in the middle of an epoch.

    Attributes:
        epoch: the epoch of the next order; must be set before iterating.
    """

    def __init__(self, batch_size: int, lengths: NDArray[np.int32], seed: int) -> None:
        self.batch_size, self.lengths, self.seed, self.epoch = batch_size, lengths, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        draw = torch.Generator().manual_seed(derive_seed(self.seed, "order", self.epoch))
        order = torch.randperm(len(self), generator=draw).numpy()
        batches = max(1, min(len(self) // (4 * self.batch_size), MOST_BATCHES))
        firsts = range(0, len(self), batches * self.batch_size)
        for first in firsts:
            part = order[first : first + batches * self.batch_size]
            part[:] = part[np.argsort(-self.lengths[part], kind="stable")]
        longest = firsts[int(self.lengths[order[firsts]].argmax())]
        order[[0, longest]] = order[[longest, 0]]
        yield from map(int, order)
