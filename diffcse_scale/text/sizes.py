"""Rounds sizes so that shapes repeat: memory blocks are reused, and compiled programs see known shapes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

STEPS = 16  # sizes up to a power of two are multiples of this part of it


def repeating_size(count: int) -> int:
    """The next of a few sizes: a multiple of 1/16 of the next power of two, so at most an eighth more than `count`.

    >>> [repeating_size(count) for count in (13, 33, 700, 832, 1000)]
    [13, 36, 704, 832, 1024]
    """
    step = max(1, (1 << max(0, count - 1).bit_length()) // STEPS)
    return -(-count // step) * step


def computed_positions(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The positions of padded rows that packed networks compute: the real tokens, filled up to a size that repeats.

    Args:
        mask: bool, any shape, true on real tokens.

    Returns:
        Ascending indices into the flattened `mask`: all real tokens, and the first positions of padding after as many
        as are missing. Where there is padding, at least one of its positions stays out: whether the indices are all
        positions tells whether there is any.
    """
    flat = mask.ravel()
    real = int(flat.sum())
    if real == flat.size:
        return np.arange(flat.size)
    missing = min(repeating_size(real), flat.size - 1) - real
    computed = flat.copy()
    computed[np.flatnonzero(~flat)[:missing]] = True
    return np.flatnonzero(computed)
