"""The rows most similar to queries, by cosine: exactly, block by block, or with a faiss index.

Embeddings restored from int8 and binary shards are compared with the query in full precision. For binary shards this
is the cosine with a vector of +1 and -1. It orders rows more finely than the Hamming distance to the query's signs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffcse_scale.encoding.folder import Embeddings
from diffcse_scale.encoding.shard_files import Floats
from diffcse_scale.foundation.durable import publish
from diffcse_scale.foundation.errors import InputError, disk_errors_at, quoted
from diffcse_scale.foundation.finite import check_rows

BLOCK = 16_384  # rows that are in memory as float32 at once
ROUNDING = 1e-5  # larger than the differences in a row's cosine between orders of summation
SMALLEST_NORM = np.float32(1e-30)
HNSW_NEIGHBOURS = 32
TRAINING_ROWS = 64  # training rows per cluster of an IVF index; faiss needs at least 39
INDEXES = ("exact", "hnsw", "ivf")

Search = Callable[[Floats, int], tuple[Floats, NDArray[np.int64]]]
"""From queries [q, dimension] and k to cosines [q, k], largest first, and the numbers of those rows."""


def unit(vectors: Floats) -> Floats:
    """Rows normalized to length 1. A zero row stays zero.

    First each row is scaled by a power of two, which is exact, so that no square overflows or vanishes.
    """
    _, exponents = np.frexp(np.abs(vectors).max(axis=1, keepdims=True))
    vectors = np.ldexp(vectors, -exponents)
    scaled: Floats = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), SMALLEST_NORM)
    return scaled


def exact(embeddings: Embeddings) -> Search:
    """Compare every row. Memory: a block of rows and q x (block + k) cosines. Equal cosines are in order of row number.

    (sentence-transformers' `semantic_search` needs all rows in one tensor and does not define the order of equal
    cosines.)

    Raises:
        InputError: a shard is damaged.
    """
    embeddings.verify()

    def search(queries: Floats, k: int) -> tuple[Floats, NDArray[np.int64]]:
        queries = unit(queries)
        best = np.empty((len(queries), 0), np.float32)
        rows = np.empty((len(queries), 0), np.int64)
        for first, block in _blocks(embeddings):
            block = unit(block)
            numbers = np.broadcast_to(np.arange(first, first + len(block)), (len(queries), len(block)))
            best = np.concatenate([best, _cosines(queries, block, best, k)], axis=1)
            rows = np.concatenate([rows, numbers], axis=1)
            if best.shape[1] > k:
                # among equal cosines the lowest rows are kept: the sort is stable and the rows are in order
                chosen = np.sort(np.argsort(-best, axis=1, kind="stable")[:, :k], axis=1)
                best, rows = np.take_along_axis(best, chosen, 1), np.take_along_axis(rows, chosen, 1)
        order = np.argsort(-best, axis=1, kind="stable")
        return np.take_along_axis(best, order, 1), np.take_along_axis(rows, order, 1)

    return search


def _cosines(queries: Floats, block: Floats, best: Floats, k: int) -> Floats:
    """Cosines [q, rows] of unit vectors. Equal rows get equal cosines if they may be among the k best.

    In a matrix product the order of summation depends on a row's position, so near the limit cosines are recomputed.

    Args:
        best: the best cosines of earlier blocks, [q, at most k].
    """
    cosines = queries @ block.T
    known = np.concatenate([best, cosines], axis=1)
    least = np.partition(known, -k, axis=1)[:, -k] if known.shape[1] > k else np.full(len(queries), -np.inf)
    for query, of_query, edge in zip(queries, cosines, least, strict=True):
        near = np.flatnonzero(of_query >= edge - ROUNDING)
        of_query[near] = (block[near] * query).sum(axis=1)
    return cosines


def approximate(embeddings: Embeddings, kind: str, folder: Path) -> Search:
    """Search with a faiss index, which is read from `folder` or built and stored there.

    Args:
        kind: hnsw (a graph, no training) or ivf (about 4 sqrt(rows) clusters, of which an eighth are searched).

    Raises:
        InputError: faiss is not installed, or the folder cannot be written.
    """
    try:
        import faiss
    except ImportError:
        raise InputError("A faiss index needs `pip install 'diffcse-scale[search]'`; --index exact does not.") from None
    file = index_file(embeddings, kind, folder)
    try:
        index = faiss.read_index(str(file)) if file.is_file() else _built(faiss, embeddings, kind, file)
    except RuntimeError as error:  # faiss raises no other class
        reason = " ".join(str(error).split())[-200:]
        raise InputError(f"The index {file} cannot be written or read ({reason}); --index exact needs none.") from None

    def search(queries: Floats, k: int) -> tuple[Floats, NDArray[np.int64]]:
        cosines, rows = index.search(unit(queries), min(k, len(embeddings)))
        return cosines, rows

    return search


def index_file(embeddings: Embeddings, kind: str, folder: Path) -> Path:
    """Path of an index, existing or not. An earlier version's name has no underscore."""
    name = f"{kind}-{embeddings.fingerprint}.faiss"
    file, earlier = folder / f"_{name}", folder / name
    return earlier if earlier.is_file() and not file.is_file() else file


def check_index(kind: str) -> None:
    """Raise InputError unless `kind` is in `INDEXES`."""
    if kind not in INDEXES:
        raise InputError(f"There is no index {quoted(kind)}; there are {', '.join(INDEXES)}.")


def make_search(embeddings: Embeddings, kind: str, folder: Path) -> Search:
    """The search for one of `INDEXES`.

    Raises:
        InputError: the index does not exist, or as for `approximate`.
    """
    check_index(kind)
    return exact(embeddings) if kind == "exact" else approximate(embeddings, kind, folder)


def _built(faiss: Any, embeddings: Embeddings, kind: str, file: Path) -> Any:
    """Build an index from the shards in order, and store it."""
    embeddings.verify()
    width, inner = embeddings.dimension, faiss.METRIC_INNER_PRODUCT
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(width, HNSW_NEIGHBOURS, inner)
    else:
        clusters = max(1, min(round(4 * math.sqrt(len(embeddings))), len(embeddings) // 39))
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, clusters, inner)
        index.nprobe = max(1, clusters // 8)
        index.train(_sample(embeddings, clusters * TRAINING_ROWS))
    for _, block in _blocks(embeddings):
        index.add(unit(block))
    partial = file.with_suffix(".partial")
    with disk_errors_at(file):
        faiss.write_index(index, str(partial))
        publish(partial, file)
    return index


def _sample(embeddings: Embeddings, count: int) -> Floats:
    """About `count` evenly spaced rows."""
    step = max(1, len(embeddings) // count)
    return np.concatenate([unit(block[-first % step :: step]) for first, block in _blocks(embeddings)])


def _blocks(embeddings: Embeddings) -> Iterator[tuple[int, Floats]]:
    """Number of the first row and float32 rows, at most BLOCK at a time.

    Raises:
        NotFinite: a row is not finite; earlier versions could write such rows.
    """
    for first, shard in embeddings.floats():
        for start in range(0, len(shard), BLOCK):
            block = shard[start : start + BLOCK]
            check_rows(block, "of the embeddings", "encode them again with --precision float32", first + start)
            yield first + start, block
