"""Memory that was freed goes back to the system while large tensors come and go (glibc; nothing elsewhere)."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

# parameters of glibc's mallopt, and the values that its own adjustment ends at
MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1
ADJUSTED = {MMAP_THRESHOLD: 32 << 20, TRIM_THRESHOLD: 64 << 20}


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
