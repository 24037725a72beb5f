"""Columns that are carried along unchanged beside the sentences: ids, titles, dates.

Row i of these columns belongs to row i of the sentences. They keep the types of their files. They are copied to the
cache some rows at a time, and any row can be read from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import datasets
import pyarrow
import pyarrow.ipc

from diffcse_scale.foundation.errors import InputError, nearest, quoted
from diffcse_scale.text.arrow_files import open_arrow
from diffcse_scale.text.cache import fingerprint
from diffcse_scale.text.formats import TABLE_ROWS, Lines, reading
from diffcse_scale.text.json_values import cannot_hold
from diffcse_scale.text.prepared import prepared
from diffcse_scale.text.remote import origin
from diffcse_scale.text.sources import HUB, Source


class KeptColumns:
    """The kept columns of all rows. Picklable, because the files are memory-mapped and not in memory."""

    def __init__(self, parts: list[datasets.Dataset]) -> None:
        self._rows = datasets.concatenate_datasets(parts).with_format("arrow")

    def read(self, start: int, stop: int) -> pyarrow.Table:
        """The columns of rows `start` to `stop` - 1, in the order in which the columns were asked for."""
        return self._rows[start:stop].replace_schema_metadata(None)


def open_kept(sources: Sequence[Source], names: list[str], folder: Path, cache: Path) -> KeptColumns:
    """These columns of all rows of the sources. The first call copies them to the cache.

    Args:
        folder: the folder in the cache with the rows of these sources.

    Raises:
        InputError: a source has no columns or lacks one of them, or the values of a column have no common type.
    """
    for source in sources:
        _check(source, names)
    schema = _common([schema for source in sources for schema in _schemas(source, names)])
    place = folder / f"kept-{fingerprint(names)}"
    return KeptColumns(
        [
            prepared(place / str(index), cache, open_arrow, partial(_write, source, schema))
            for index, source in enumerate(sources)
        ]
    )


def _check(source: Source, names: list[str]) -> None:
    """Raise InputError if a source has no columns, or lacks one of them."""
    where = origin(source.names[0])
    if isinstance(source.of_files, Lines) or (source.of_files is None and source.format != HUB):
        raise InputError(f"Corpus {where} is plain text, which has no columns; leave --keep-columns out.")
    there = source.column_types()
    for name in names:
        if name not in there:
            raise InputError(
                f"Corpus {where} has no column {quoted(name)}{nearest(name, there)} to keep; its columns are "
                f"{', '.join(there)}."
            )


def _schemas(source: Source, names: list[str]) -> Iterator[tuple[str, pyarrow.Schema]]:
    """The name and the column types of each file, or of a Hub dataset."""
    if source.of_files is None:
        yield source.names[0], pyarrow.schema([source.hub_rows().features.arrow_schema.field(name) for name in names])
        return
    for file in source.names:
        with reading(file, source.of_files.name):
            types = source.of_files.kept_types(file, names)
        yield origin(file), pyarrow.schema([(name, types[name]) for name in names])


def _common(schemas: list[tuple[str, pyarrow.Schema]]) -> pyarrow.Schema:
    """Types that can hold the values of all files; text for a column without any value.

    Raises:
        InputError: a column has no common type, or one that the cache cannot hold.
    """
    (first, common), *others = schemas
    for file, schema in others:
        for name, before, now in zip(common.names, common.types, schema.types, strict=True):
            try:
                pyarrow.unify_schemas([common, schema.remove_metadata()], promote_options="permissive")
            except pyarrow.ArrowTypeError:
                if before != now:
                    raise InputError(
                        f"Column {quoted(name)} to keep holds {before} in {first} and {now} in {file}; give it one "
                        "type, or leave it out of --keep-columns."
                    ) from None
        common = pyarrow.unify_schemas([common, schema], promote_options="permissive")
    fields = [
        pyarrow.field(field.name, pyarrow.string() if pyarrow.types.is_null(field.type) else field.type)
        for field in common
    ]
    for field in fields:
        try:
            datasets.Features.from_arrow_schema(pyarrow.schema([field]))
        except ValueError:
            raise InputError(
                f"Column {quoted(field.name)} of {first} holds {field.type}, which cannot be kept; leave it out of "
                "--keep-columns."
            ) from None
    return pyarrow.schema(fields)


def _write(source: Source, schema: pyarrow.Schema, folder: Path) -> None:
    """Write all rows of a source to an Arrow file."""
    folder.mkdir(parents=True)
    with pyarrow.ipc.new_stream(str(folder / "kept.arrow"), schema) as sink:
        for table in _tables(source, schema):
            sink.write_table(table)


def _tables(source: Source, schema: pyarrow.Schema) -> Iterator[pyarrow.Table]:
    if source.of_files is None:
        for table in source.hub_rows().select_columns(schema.names).with_format("arrow").iter(TABLE_ROWS):
            yield _cast(table, schema, source.names[0])
        return
    for file in source.names:
        with reading(file, source.of_files.name):
            for table in source.of_files.kept(file, schema):
                yield _cast(table, schema, file)


def _cast(table: pyarrow.Table, schema: pyarrow.Schema, name: str) -> pyarrow.Table:
    """Cast a table to `schema`. Raises InputError for a value that does not fit, such as an integer over 2^53."""
    columns = []
    for field in schema:
        column = table[field.name]
        try:
            columns.append(column.cast(field.type))
        except pyarrow.ArrowInvalid:
            raise cannot_hold(name, field, f"values of {column.type}") from None
    return pyarrow.table(columns, schema=schema)
