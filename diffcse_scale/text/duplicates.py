"""Finds repeated rows by hashes of their content."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

BUCKETS = 16


def row_hash(content: bytes) -> int:
    """A 64-bit hash of a row, as a signed integer."""
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "little", signed=True)


def first_occurrences(hashes: NDArray[np.int64]) -> NDArray[np.bool_]:
    """True where a value of `row_hash` occurs for the first time.

    Two of n different rows share a 64-bit hash with probability n * n / 2**65, which is 3e-8 for a million rows. The
    second one is then lost. The hashes are sorted bucket by bucket, which needs little memory besides `hashes`.
    """
    first = np.ones(len(hashes), dtype=bool)
    buckets = hashes.astype("<i8", copy=False).view(np.uint8)[::8] % BUCKETS
    for bucket in range(BUCKETS):
        rows = np.flatnonzero(buckets == bucket)
        order = np.argsort(hashes[rows], kind="stable")
        ordered = hashes[rows[order]]
        first[rows[order[1:][ordered[1:] == ordered[:-1]]]] = False
    return first
