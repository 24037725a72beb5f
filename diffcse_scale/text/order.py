"""The order of sentences in an epoch: a pseudo-random permutation, any part of it known without the rest.

numpy's and torch's permutations are arrays as long as the corpus, on every rank; this one needs no memory.
"""

from __future__ import annotations

import math

import numpy as np
from diffcse_kernels.counter import GOLDEN_GAMMA, WORD, mix
from numpy.typing import NDArray

from diffcse_scale.foundation.randomness import derive_seed

# four are enough for large halves (Luby and Rackoff 1988); more, because ours are small
ROUNDS = 8
BLOCK = 2**13  # positions at a time, so that what is made of them stays in a core's cache


def permute(positions: NDArray[np.int64], n: int, key: int) -> NDArray[np.int64]:
    """Values at `positions` of a permutation of range(n) that is a function of `key`; O(1) memory.

    A Feistel network over side * side >= n values, side = ceil(sqrt(n)), applied again to what falls outside
    range(n) (cycle walking; Black and Rogaway 2002, "Ciphers with arbitrary finite domains").

    Args:
        positions: int64 in range(n), any shape.
        key: any integer, taken modulo 2**64.

    Returns:
        int64 of the shape of `positions`.
    """
    side = np.uint64(math.isqrt(n - 1) + 1)
    values = positions.astype(np.uint64).reshape(-1)
    for start in range(0, len(values), BLOCK):
        block = values[start : start + BLOCK]
        outside = np.ones(len(block), dtype=bool)
        while outside.any():
            block[outside] = _feistel(block[outside], side, key)
            outside = block >= n
    return values.astype(np.int64).reshape(positions.shape)


def epoch_order(positions: NDArray[np.int64], n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Which of `n` sentences stand at `positions` of an epoch, int64 of the same shape."""
    return permute(positions, n, derive_seed(seed, "order", epoch))


def _feistel(values: NDArray[np.uint64], side: np.uint64, key: int) -> NDArray[np.uint64]:
    left = values // side
    right = values - left * side
    for index in range(1, ROUNDS + 1):
        round_key = np.uint64((key + index * GOLDEN_GAMMA) % WORD)
        word = _mix(_mix(right + round_key) ^ round_key)
        total = left + (word - word // side * side)  # numpy divides by one number much faster than it takes remainders
        left, right = right, total - side * (total >= side)
    return left * side + right


def _mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """`mix` of words without a sign."""
    return mix(words.view(np.int64)).view(np.uint64)
