"""Rounds sizes so that shapes repeat; then memory blocks are reused, and compiled programs see known shapes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

STEPS = 16  # sizes up to a power of two are multiples of 1/16 of it


def repeating_size(count: int) -> int:
    """Round `count` up to a multiple of 1/16 of the next power of two, so by at most an eighth.

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
        Ascending indices into the flattened `mask`: all real tokens, and as many of the first padding positions as are
        missing. If there is padding, at least one padding position is left out. So there is padding if and only if the
        indices are not all positions.
    """
    flat = mask.ravel()
    real = int(flat.sum())
    if real == flat.size:
        return np.arange(flat.size)
    missing = min(repeating_size(real), flat.size - 1) - real
    computed = flat.copy()
    computed[np.flatnonzero(~flat)[:missing]] = True
    return np.flatnonzero(computed)
