"""The order of sentences in an epoch: a pseudo-random permutation, any part of which is computed without the rest.

The permutations of numpy and torch are arrays as long as the corpus, on every rank. This one only needs tables as long
as the square root of the corpus.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from diffcse_kernels.counter import GOLDEN_GAMMA, WORD, mix
from numpy.typing import NDArray

from diffcse_scale.foundation.randomness import derive_seed

# four are enough for large halves (Luby and Rackoff 1988); ours are small, so we take more
ROUNDS = 8
BLOCK = 2**14  # positions at a time, so that the intermediate values stay in a core's cache
TABLED = 2**17  # the largest half with tabled round functions: 8 MiB, enough for over ten thousand million sentences

Words = NDArray[np.uint64]


def permute(positions: NDArray[np.int64], n: int, key: int) -> NDArray[np.int64]:
    """The values at `positions` of a permutation of range(n) that depends on `key`; O(sqrt(n)) memory.

    It is a Feistel network over side * side >= n values, side = ceil(sqrt(n)). Values outside range(n) go through it
    again (cycle walking; Black and Rogaway 2002, "Ciphers with arbitrary finite domains").

    Args:
        positions: int64 in range(n), any shape.
        key: any integer, taken modulo 2**64.

    Returns:
        int64 of the shape of `positions`.
    """
    side = math.isqrt(n - 1) + 1
    tables = _tables(side, key % WORD) if side <= TABLED else None
    values = positions.astype(np.uint64).reshape(-1)
    for start in range(0, len(values), BLOCK):
        values[start : start + BLOCK] = _feistel(values[start : start + BLOCK], side, key, tables)
    outside = np.flatnonzero(values >= n)
    while len(outside):
        values[outside] = _feistel(values[outside], side, key, tables)
        outside = outside[values[outside] >= n]
    return values.view(np.int64).reshape(positions.shape)


def epoch_order(positions: NDArray[np.int64], n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The sentences (of `n`) at `positions` of an epoch, int64 of the same shape."""
    return permute(positions, n, derive_seed(seed, "order", epoch))


def _feistel(values: Words, side: int, key: int, tables: list[Words] | None) -> Words:
    """Apply the Feistel network; `tables` come from `_tables`, or are None if they would be too large."""
    base = np.uint64(side)
    left = values // base
    right = values - left * base
    for index in range(ROUNDS):
        word = _round(right, side, key, index) if tables is None else tables[index][right.view(np.int64)]
        word += left
        # the sum modulo `side`: if the sum is below `side`, the unsigned difference wraps around to a larger value
        left, right = right, np.minimum(word, word - base)
    return left * base + right


@lru_cache(maxsize=2)
def _tables(side: int, key: int) -> list[Words]:
    """All values of each round's function; worthwhile because a batch has more sentences than a half has values."""
    return [_round(np.arange(side, dtype=np.uint64), side, key, index) for index in range(ROUNDS)]


def _round(halves: Words, side: int, key: int, index: int) -> Words:
    """The function of a round; its values are below `side`."""
    round_key = np.uint64((key + (index + 1) * GOLDEN_GAMMA) % WORD)
    return _mix(_mix(halves + round_key) ^ round_key) % np.uint64(side)


def _mix(words: Words) -> Words:
    """`mix` for unsigned words."""
    return mix(words.view(np.int64)).view(np.uint64)
