"""The files of an encoded folder: `embeddings-00000.parquet`, ..., one for each window of rows.

A Parquet shard has the columns `row` (int64, number in the whole input), `embedding` (a fixed-size list) and optionally
`text` and columns of the input. An `.npy` shard is only the matrix of embeddings.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

from diffcse_scale.foundation.errors import InputError, first_line
from diffcse_scale.foundation.file_digest import sha256_of

PARTIAL = ".partial"
ELEMENT = "embedding.list.element"  # Parquet's path of the numbers
Matrix = NDArray[Any]
Floats = NDArray[np.float32]


def shard_name(number: int, form: str) -> str:
    """File name of a shard; the first is `embeddings-00000.parquet`."""
    return f"embeddings-{number:05d}.{form}"


def write_shard(
    file: Path, first: int, matrix: Matrix, texts: list[str] | None, kept: pyarrow.Table | None = None
) -> dict[str, Any]:
    """Write a shard under a temporary name, flush it to disk and rename it. Returns its `bytes` and `sha256`.

    Args:
        file: path of the shard; the suffix, .npy or .parquet, is the format.
        first: number of its first row in the whole input.
        matrix: [rows, stored width].
        texts, kept: sentences and columns to store too, only for Parquet.
    """
    # hosts may share the folder and have equal process ids, so the name is random
    partial = file.with_name(f".{file.name}.{uuid4().hex[:8]}{PARTIAL}")
    with partial.open("wb+") as sink:
        if file.suffix == ".npy":
            np.save(sink, matrix)
        else:
            _write_parquet(sink, first, matrix, texts, kept)
        sink.flush()
        os.fsync(sink.fileno())
    written = {"bytes": partial.stat().st_size, "sha256": sha256_of(partial)}
    os.replace(partial, file)
    return written


def damaged(file: Path, how: str = "its bytes are not those that were written") -> InputError:
    """The error for a damaged shard."""
    return InputError(f"Shard {file} is damaged ({how}); repeat the `encode` command, which writes it again.")


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Turn libraries' errors about an unreadable shard into one sentence."""
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        raise damaged(file, first_line(error).rstrip(".")) from None


def read_shard(file: Path) -> Matrix:
    """The matrix of a shard, [rows, stored width]. An `.npy` shard is memory-mapped.

    Raises:
        InputError: the shard is damaged.
    """
    with _readable(file):
        if file.suffix == ".npy":
            matrix: Matrix = np.load(file, mmap_mode="r")
            return matrix
        column = pyarrow.parquet.read_table(file, columns=["embedding"]).column(0).combine_chunks()
        return column.flatten().to_numpy().reshape(len(column), -1)


def read_columns(file: Path, names: list[str]) -> pyarrow.Table | None:
    """Columns of a Parquet shard; None if it does not have them. Raises the errors of `read_shard`."""
    with _readable(file):
        if file.suffix == ".npy" or not set(names) <= set(pyarrow.parquet.read_schema(file).names):
            return None
        return pyarrow.parquet.read_table(file, columns=names)


def _write_parquet(sink: Any, first: int, matrix: Matrix, texts: list[str] | None, kept: pyarrow.Table | None) -> None:
    values = pyarrow.array(matrix.reshape(-1))
    columns: dict[str, Any] = {"row": pyarrow.array(np.arange(first, first + len(matrix)))}
    if kept is not None:
        columns |= dict(zip(kept.column_names, kept.columns, strict=True))
    if texts is not None:
        columns["text"] = pyarrow.array(texts, type=pyarrow.string())
    columns["embedding"] = pyarrow.FixedSizeListArray.from_arrays(values, matrix.shape[1])
    # embeddings do not compress; everything else does
    compression = {name: "zstd" for name in columns if name != "embedding"} | {ELEMENT: "none"}
    # Parquet stores 8-bit numbers in 32 bits; as indices into a dictionary of 256 entries they take 8 bits
    dictionary = [ELEMENT] if matrix.itemsize == 1 else False
    pyarrow.parquet.write_table(pyarrow.table(columns), sink, compression=compression, use_dictionary=dictionary)
