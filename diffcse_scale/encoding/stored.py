"""How embeddings are stored: float32, float16, or quantized like in `sentence_transformers`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffcse_scale.encoding.shard_files import Floats

PRECISIONS = {"int8": "int8", "binary": "ubinary"}
"""From our names to those of sentence-transformers."""


def ranges_of(embeddings: Floats) -> Floats:
    """Minimum and maximum of each dimension, float32 [2, dimension]. int8 is scaled to them."""
    return np.stack([embeddings.min(axis=0), embeddings.max(axis=0)])


def store(embeddings: Floats, dtype: str, ranges: Floats | None = None) -> NDArray[Any]:
    """Convert embeddings [n, dimension] for storage: to `dtype`, or signs packed into uint8 [n, ceil(dimension / 8)].

    Args:
        dtype: float32, float16, int8 or binary.
        ranges: for int8; values outside are clipped to them.
    """
    if dtype in PRECISIONS:
        from sentence_transformers.util.quantization import quantize_embeddings  # takes seconds

        return quantize_embeddings(embeddings, PRECISIONS[dtype], ranges=ranges)
    with np.errstate(over="ignore"):  # float16 overflows to infinity, which the caller checks
        return embeddings.astype(dtype)


def restore(stored: NDArray[Any], dtype: str, dimension: int, ranges: Floats | None = None) -> Floats:
    """Embeddings restored from storage, float32 [n, dimension]: the middle of each int8 step, +1 and -1 for signs."""
    if dtype == "binary":
        return np.unpackbits(stored, axis=1, count=dimension).astype(np.float32) * 2 - 1
    if dtype == "int8":
        assert ranges is not None
        steps = (ranges[1] - ranges[0]) / 255
        return ranges[0] + (stored.astype(np.float32) + 128.5) * steps
    return stored.astype(np.float32, copy=False)
