"""Columns of text in Parquet files, as strings, however they are stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow
import pyarrow.parquet
from pyarrow import types

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.text.remote import origin

BATCH_ROWS, BATCH_BYTES = 10_000, 2**24  # the most that is read at once


def column_kinds(name: str) -> dict[str, str]:
    """Column to type: 'string' for what holds text, categories of text included, 'null' for what holds nothing."""
    return {field.name: _kind(field.type) for field in pyarrow.parquet.read_schema(name)}


def batches(name: str, columns: Sequence[str]) -> Iterator[list[pyarrow.Array]]:
    """These columns of all rows, as arrays of strings; bytes that are not UTF-8 become U+FFFD.

    Raises:
        InputError: no such column, or one that holds no text.
    """
    kinds = column_kinds(name)
    for column in columns:
        if column not in kinds:
            raise InputError(f"Corpus file {origin(name)} has no column {column!r}, only {', '.join(kinds)}.")
        if kinds[column] not in ("string", "null"):
            raise InputError(f"Corpus file {origin(name)}: column {column!r} holds {kinds[column]}, not text.")
    with pyarrow.parquet.ParquetFile(name) as file:
        groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
        largest = max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=0)
        rows = max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, largest)))
        for batch in file.iter_batches(rows, columns=list(columns)):
            yield [_strings(batch.column(column)) for column in columns]


def _kind(kind: pyarrow.DataType) -> str:
    if types.is_dictionary(kind):
        return _kind(kind.value_type)
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return "string" if text else str(kind)


def _strings(array: pyarrow.Array) -> pyarrow.Array:
    if types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if types.is_null(array.type):
        return array.cast(pyarrow.string())
    try:
        array.validate(full=True)
    except pyarrow.ArrowInvalid:
        texts = array.cast(pyarrow.large_binary()).to_pylist()
        return pyarrow.array([text if text is None else text.decode(errors="replace") for text in texts])
    return array.cast(pyarrow.string())
