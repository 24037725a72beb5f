"""Returns freed memory to the system while large tensors come and go (with glibc; elsewhere it does nothing)."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

# parameters of glibc's mallopt, and the values that glibc's dynamic adjustment ends at
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
    """Inside, blocks of at least 1 MB return to the system as soon as they are freed.

    By default glibc raises this threshold, up to 32 MB, when such a block is freed. If whole tensors and parts of them
    are allocated in turn, the parts then fill the holes that the whole tensors left. The process stays twice as large
    as its data.
    """
    known = _set({MMAP_THRESHOLD: 1 << 20})
    try:
        yield
    finally:
        if known:
            _set(ADJUSTED)
