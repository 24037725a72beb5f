"""When memory that was freed goes back to the system, and when it stays (glibc; nothing elsewhere)."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

# parameters of glibc's mallopt, and the values that its own adjustment ends at
MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1
ADJUSTED = {MMAP_THRESHOLD: 32 << 20, TRIM_THRESHOLD: 64 << 20}
LIMIT = "MALLOC_MMAP_THRESHOLD_"  # by which a user sets the first of them
# the most that mallopt takes as a limit for blocks (its argument is an int), and no limit to what the heap may keep
LARGEST = {MMAP_THRESHOLD: 1 << 30, TRIM_THRESHOLD: -1}


def keep_freed_blocks() -> None:
    """From now on, blocks of up to 1 GB stay with the process when they are freed.

    A training step on a CPU allocates the same activations, gradients and buckets as the one before. By itself glibc
    takes the large ones from the system each time, which clears every page of them again: a fifth of a small step. The
    price is memory in pieces that fit nothing; who sets $MALLOC_MMAP_THRESHOLD_ (1048576, say) has it returned.
    """
    if LIMIT not in os.environ:
        _set(LARGEST)


def _set(values: dict[int, int]) -> bool:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    for parameter, value in values.items():
        mallopt(parameter, value)
    return True


@contextmanager
def freed_blocks_returned() -> Iterator[None]:
    """Inside, blocks of 1 MB and more go back to the system as soon as they are freed.

    By itself glibc raises that limit to 32 MB once such a block was freed. Where whole tensors and parts of them are
    allocated in turn, the parts then settle in the holes that the whole ones left, and the process stays twice as large
    as what it holds.
    """
    known = _set({MMAP_THRESHOLD: 1 << 20})
    try:
        yield
    finally:
        if known:
            _set(ADJUSTED)
