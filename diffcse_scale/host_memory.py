"""Giving memory back to the system while many large tensors come and go."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

# parameters of glibc's mallopt, and the values that its own adjustment ends at
MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1
ADJUSTED = {MMAP_THRESHOLD: 32 << 20, TRIM_THRESHOLD: 64 << 20}


@contextmanager
def freed_blocks_returned() -> Iterator[None]:
    """Inside, blocks of 1 MB and more go back to the system as soon as they are freed (glibc; nothing elsewhere).

    By itself glibc raises that limit to 32 MB once such a block was freed. Where whole tensors and parts of them are
    allocated in turn, the parts then settle in the holes that the whole ones left, and the process stays twice as large
    as what it holds.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        yield
        return
    mallopt(MMAP_THRESHOLD, 1 << 20)
    try:
        yield
    finally:
        # training allocates the same activations in every step, and should find them in the heap again
        for parameter, value in ADJUSTED.items():
            mallopt(parameter, value)
