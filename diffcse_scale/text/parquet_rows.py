"""Reads text columns of Parquet files as strings, however they are stored."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import pyarrow
import pyarrow.compute
import pyarrow.parquet
from pyarrow import types

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.text.remote import origin
from diffcse_scale.text.undecodable import ERRORS, MARK

BATCH_ROWS, BATCH_BYTES = 10_000, 2**24  # the most that is read at once


def column_kinds(name: str) -> dict[str, str]:
    """The type of each column: 'string' for text and for categories of text, 'null' for a column without values."""
    return {field.name: _kind(field.type) for field in pyarrow.parquet.read_schema(name)}


def batches(name: str, columns: Sequence[str]) -> Iterator[list[pyarrow.Array]]:
    """These columns of all rows, as arrays of strings. Bytes that are not UTF-8 become `MARK`.

    Raises:
        InputError: no such column, or a column that is not text.
    """
    kinds = column_kinds(name)
    _check_columns(name, columns, kinds)
    for column in columns:
        if kinds[column] not in ("string", "null"):
            raise InputError(f"Corpus file {origin(name)}: column {column!r} holds {kinds[column]}, not text.")
    for batch in _record_batches(name, columns):
        yield [_strings(batch.column(column)) for column in columns]


def kept_types(name: str, columns: Sequence[str]) -> dict[str, pyarrow.DataType]:
    """The type in which each column is carried along. Categories get the type of their values; all text has one type.

    Raises:
        InputError: no such column.
    """
    schema = pyarrow.parquet.read_schema(name)
    _check_columns(name, columns, schema.names)
    return {column: pyarrow.string() if _is_text(kind) else kind for column, kind in _plain_types(schema, columns)}


def kept(name: str, columns: Sequence[str]) -> Iterator[pyarrow.Table]:
    """These columns of all rows, unchanged, except that bytes in text that are not UTF-8 become U+FFFD."""
    for batch in _record_batches(name, columns):
        arrays = [_decoded(batch.column(column)) for column in columns]
        yield pyarrow.table([_readable(array) if _is_text(array.type) else array for array in arrays], list(columns))


def _check_columns(name: str, columns: Sequence[str], there: Collection[str]) -> None:
    for column in columns:
        if column not in there:
            raise InputError(f"Corpus file {origin(name)} has no column {column!r}, only {', '.join(there)}.")


def _record_batches(name: str, columns: Sequence[str]) -> Iterator[pyarrow.RecordBatch]:
    with pyarrow.parquet.ParquetFile(name) as file:
        groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
        largest = max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=0)
        rows = max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, largest)))
        yield from file.iter_batches(rows, columns=list(columns))


def _plain_types(schema: pyarrow.Schema, columns: Sequence[str]) -> Iterator[tuple[str, pyarrow.DataType]]:
    for column in columns:
        kind = schema.field(column).type
        yield column, kind.value_type if types.is_dictionary(kind) else kind


def _kind(kind: pyarrow.DataType) -> str:
    if types.is_dictionary(kind):
        return _kind(kind.value_type)
    return "string" if _is_text(kind) else str(kind)


def _is_text(kind: pyarrow.DataType) -> bool:
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _decoded(array: pyarrow.Array) -> pyarrow.Array:
    return array.dictionary_decode() if types.is_dictionary(array.type) else array


def _readable(array: pyarrow.Array) -> pyarrow.Array:
    strings = _strings(array)
    return pyarrow.compute.replace_substring(strings, MARK, "\ufffd")


def _strings(array: pyarrow.Array) -> pyarrow.Array:
    array = _decoded(array)
    if types.is_null(array.type):
        return array.cast(pyarrow.string())
    try:
        array.validate(full=True)
    except pyarrow.ArrowInvalid:
        texts = array.cast(pyarrow.large_binary()).to_pylist()
        return pyarrow.array([text if text is None else text.decode(errors=ERRORS) for text in texts])
    return array.cast(pyarrow.string())
