"""Reads the values of JSON objects with their types, so that whole numbers stay whole numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import pyarrow

from diffcse_scale.foundation.errors import InputError, quoted
from diffcse_scale.foundation.unique_keys import load_json
from diffcse_scale.text import json_objects
from diffcse_scale.text.remote import origin
from diffcse_scale.text.undecodable import ERRORS, shown

ROWS = 1_000  # rows in memory at once
# the type of a column whose values have exactly these Python types
TYPES: dict[frozenset[type], pyarrow.DataType] = {
    frozenset(): pyarrow.null(),
    frozenset({bool}): pyarrow.bool_(),
    frozenset({int}): pyarrow.int64(),
    frozenset({float}): pyarrow.float64(),
    frozenset({int, float}): pyarrow.float64(),
    frozenset({str}): pyarrow.string(),
}
WORDS = {bool: "true or false", int: "whole numbers", float: "fractions", str: "text", list: "lists", dict: "objects"}


def types_of(name: str, columns: Sequence[str]) -> dict[str, pyarrow.DataType]:
    """The type of each column; null if it has no value.

    Raises:
        InputError: lists, objects, or values without a common type; as `json_objects.lines_of`.
    """
    found: dict[str, set[type]] = {column: set() for column in columns}
    for values in _rows(name, columns):
        for kinds, value in zip(found.values(), values, strict=True):
            if value is not None:
                kinds.add(type(value))
    for column, kinds in found.items():
        if frozenset(kinds) not in TYPES:
            what = " and ".join(sorted(WORDS[kind] for kind in kinds))
            raise InputError(
                f"Corpus file {origin(name)}: column {quoted(column)} to keep holds {what}; give it values of one "
                "type, or leave it out of --keep-columns."
            )
    return {column: TYPES[frozenset(kinds)] for column, kinds in found.items()}


def tables(name: str, schema: pyarrow.Schema) -> Iterator[pyarrow.Table]:
    """The columns of `schema` for all lines or elements of a file, some at a time.

    Raises:
        InputError: a number that its column cannot hold.
    """
    rows = _rows(name, schema.names)
    while batch := list(islice(rows, ROWS)):
        arrays = []
        for field, values in zip(schema, zip(*batch, strict=True), strict=True):
            try:
                arrays.append(pyarrow.array(values, field.type))
            except (OverflowError, pyarrow.ArrowInvalid):
                raise cannot_hold(name, field, WORDS[int]) from None
        yield pyarrow.table(arrays, schema=schema)


def cannot_hold(name: str, field: pyarrow.Field, held: str) -> InputError:
    """The error for a value that does not fit its column's type; the type is common to all files."""
    return InputError(
        f"Corpus {origin(name)}: column {quoted(field.name)} to keep holds {held} that {field.type}, its type in all "
        "files together, cannot hold as they are; write them as text, or leave it out of --keep-columns."
    )


def _rows(name: str, columns: Sequence[str]) -> Iterator[list[Any]]:
    """The values of each object; None for a missing value, and for every value of a malformed line."""
    for line in json_objects.lines_of(name):
        try:
            record = load_json(line) if line.strip() else {}
        except (ValueError, RecursionError):
            record = {}
        yield [_readable(record.get(column)) if isinstance(record, dict) else None for column in columns]


def _readable(value: Any) -> Any:
    """The value; in a text, lone surrogates and bytes that are not UTF-8 become U+FFFD."""
    if not isinstance(value, str):
        return value
    return shown(value.encode("utf-16", "surrogatepass").decode("utf-16", ERRORS))
