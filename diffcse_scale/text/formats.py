"""The formats of corpus files, in one table, and the compressions of text files, in another.

The ending of a file's name determines its format, and its first bytes must agree (`contents.py`). Its rows become
strings in a memory-mapped dataset. Each format's docstring says what is lost on the way.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import datasets
import pyarrow

from diffcse_scale.foundation.errors import InputError, one_line, quoted
from diffcse_scale.foundation.unique_keys import load_json
from diffcse_scale.text import delimited, json_objects, json_values, parquet_rows
from diffcse_scale.text.remote import origin
from diffcse_scale.text.table_layout import NOTHING_KNOWN, SAMPLE, Layout, open_text
from diffcse_scale.text.undecodable import shown

LINE = "text"  # the column of a format whose rows are lines
TABLE_ROWS, TABLE_CHARACTERS = 10_000, 2**24  # the most that is in memory at once, except for a longer row
KINDS = {
    "int": "numbers",
    "float": "numbers",
    "bool": "true or false",
    "list": "lists",
    "dict": "objects",
}  # names of types in messages; other types keep their Python names

Parse = Callable[[str, Sequence[str]], Sequence[str | None]]
"""Takes a line and column names, and returns their texts (None if missing); ValueError for a malformed line."""


class Unreadable(InputError, datasets.exceptions.DatasetGenerationError):
    """An `InputError` that `datasets` passes on unchanged, also from another process."""


@contextmanager
def reading(name: str, kind: str) -> Iterator[None]:
    """Inside, any failure is reported as a failure of this file.

    Raises:
        Unreadable: in place of the libraries' exceptions; names the file.
    """
    try:
        yield
    except InputError as error:
        raise Unreadable(*error.args) from None
    except MemoryError:
        raise
    except Exception as error:  # the decompressors raise exceptions of several libraries
        said = one_line(error)
        raise Unreadable(f"Corpus file {origin(name)} cannot be read as {kind}: {said.rstrip('.')}.") from None


@dataclass(frozen=True)
class Format(ABC):
    """How files of one format are read.

    Attributes:
        name: used in messages, and in the key of cached rows.
        endings: endings of file names, in lower case.
        title: what messages call such files.
        first_bytes: the first bytes of such files; None for text, which may begin with anything.
        malformed: the message for a line that `parse` refuses; {} stands for the column names.
    """

    name: str
    endings: tuple[str, ...]
    title: ClassVar[str] = "text"
    first_bytes: ClassVar[re.Pattern[bytes] | None] = None
    malformed: ClassVar[str] = ""

    @property
    def parse(self) -> Parse | None:
        """The function that finds the columns in a line; None if rows are not kept as lines."""
        return None

    def laid_out(self, asked: Layout) -> Format:
        """This format with the known layout of its files; only text tables have a layout."""
        return self

    def identity(self) -> list[Any]:
        """What determines the rows that are read, besides the bytes of the files."""
        return [self.name]

    def column_types(self, files: Sequence[str]) -> dict[str, str]:
        """The type of each column: 'string' if it has text in any of the files, 'null' if it has no values.

        Raises:
            InputError: a malformed file; names it.
        """
        types: dict[str, set[str]] = {}
        for name in files:
            with reading(name, self.name):
                for column, kinds in self.kinds(name).items():
                    types.setdefault(column, set()).update(kinds - {"null"})
        return {
            column: "string" if "string" in kinds else " or ".join(sorted(kinds)) or "null"
            for column, kinds in types.items()
        }

    @abstractmethod
    def kinds(self, name: str) -> dict[str, set[str]]:
        """The types of each column's values in a file, named as in `column_types`."""

    @abstractmethod
    def tables(self, name: str, columns: Sequence[str]) -> Iterator[list[Any]]:
        """All rows of a file, some at a time: the texts of each column, or only of `LINE` if rows are lines."""

    def kept_types(self, name: str, columns: Sequence[str]) -> dict[str, pyarrow.DataType]:
        """The types in which columns of a file are carried along; text if the file has no types."""
        return dict.fromkeys(columns, pyarrow.string())

    def kept(self, name: str, schema: pyarrow.Schema) -> Iterator[pyarrow.Table]:
        """These columns of all rows of a file, unchanged, some rows at a time."""
        for columns in self.tables(name, schema.names):
            yield pyarrow.table([list(map(shown, texts)) for texts in columns], names=schema.names)

    def place(self, file: str, row: int) -> str:
        """The place of row `row` (from 0) in its file, for messages."""
        return f"row {row + 1}"


class TextFormat(Format):
    """Text read row by row; may be compressed. Bytes that are not UTF-8 become `MARK`; a byte order mark is lost."""

    def kinds(self, name: str) -> dict[str, set[str]]:
        """The types found in the first rows."""
        types: dict[str, set[str]] = {}
        for record in self.sample(name):
            for column, value in record.items():
                kind = type(value).__name__
                kind = "string" if isinstance(value, str) else KINDS.get(kind, kind)
                types.setdefault(column, set()).update(() if value is None else (kind,))
        return types

    def tables(self, name: str, columns: Sequence[str]) -> Iterator[list[Any]]:
        """All rows, in tables of at most TABLE_ROWS rows and about TABLE_CHARACTERS characters."""
        batch: list[tuple[str, ...]] = []
        size = 0
        for row in self.rows(name, columns):
            batch.append(row)
            size += sum(map(len, row))
            if len(batch) == TABLE_ROWS or size >= TABLE_CHARACTERS:
                yield list(zip(*batch, strict=True))
                batch, size = [], 0
        if batch:
            yield list(zip(*batch, strict=True))

    @abstractmethod
    def sample(self, name: str) -> Iterator[dict[str, Any]]:
        """The first rows of a file by column. Values that are not text have another type; a missing one is None."""

    @abstractmethod
    def rows(self, name: str, columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
        """All rows of a file."""


class Lines(TextFormat):
    """One sentence per line, with any line ending."""

    def sample(self, name: str) -> Iterator[dict[str, Any]]:
        """One row of text, even for an empty file."""
        yield {LINE: ""}

    def rows(self, name: str, columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
        """The lines without their line endings."""
        with open_text(name, newline=None) as lines:
            for line in lines:
                yield (line.removesuffix("\n"),)

    def place(self, file: str, row: int) -> str:
        """A row is a line."""
        return f"line {row + 1}"


def parse_object(line: str, names: Sequence[str]) -> list[str | None]:
    """The texts of a JSON object; all None for a blank line.

    Raises:
        ValueError: not JSON, not an object, a repeated key, or a value that is not text.
    """
    try:
        record = load_json(line) if line.strip() else {}
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(record, dict):
        raise ValueError("no JSON object")
    values = [record.get(name) for name in names]
    if not all(value is None or isinstance(value, str) for value in values):
        raise ValueError("not text")
    return values


class JsonObjects(TextFormat):
    """JSON objects, one per line or in one array, kept as written. Values outside the chosen columns are lost."""

    malformed = "not a JSON object with text in {}, or a key is there twice"

    @property
    def parse(self) -> Parse:
        """`parse_object`, which returns the values of the object."""
        return parse_object

    def sample(self, name: str) -> Iterator[dict[str, Any]]:
        """The first objects. Malformed ones are skipped here; cleaning and `encode` report them."""
        first = [line for line in islice(json_objects.lines_of(name), SAMPLE) if line.strip()]
        found = [record for record in map(json_objects.object_of, first) if record is not None]
        if first and not found:
            raise InputError(
                f"Corpus file {origin(name)} is not valid json: no JSON object in {self.place(name, 0)}, nor in those "
                "after it; write one object per line, or one array of objects."
            )
        if len(first) == 1 and (name_of_list := json_objects.rows_inside(found[0])):
            raise InputError(
                f"Corpus file {origin(name)} is one JSON object, whose {quoted(name_of_list)} holds the rows; write "
                "them as one array, or one object per line."
            )
        yield from found

    def rows(self, name: str, columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
        """The objects as they are written in the file."""
        for line in json_objects.lines_of(name):
            yield (line,)

    def kept_types(self, name: str, columns: Sequence[str]) -> dict[str, pyarrow.DataType]:
        """The types of the values; reads all of them."""
        return json_values.types_of(name, columns)

    def kept(self, name: str, schema: pyarrow.Schema) -> Iterator[pyarrow.Table]:
        """The values of the objects; a malformed line has none."""
        return json_values.tables(name, schema)

    def place(self, file: str, row: int) -> str:
        """The line of the row, or its number in the array."""
        return f"object {row + 1}" if json_objects.is_array(file) else f"line {row + 1}"


@dataclass(frozen=True)
class Delimited(TextFormat):
    """A table with separators between the fields. Missing fields at the end of a row are empty.

    Attributes:
        separator: the usual separator of such files.
        asked: the known part of their layout.
    """

    separator: str
    asked: Layout = NOTHING_KNOWN

    def laid_out(self, asked: Layout) -> Format:
        """This format with that layout."""
        return replace(self, asked=asked)

    def identity(self) -> list[Any]:
        """The name and the requested layout; the rest of the layout follows from the file itself."""
        return [self.name, self.asked.separator, self.asked.header]

    def sample(self, name: str) -> Iterator[dict[str, Any]]:
        """The first rows; a field that reads as a number is a number."""
        return delimited.sample(name, self.separator, self.asked)

    def rows(self, name: str, columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
        """The fields of the columns.

        Raises:
            InputError: as `records`, or the file has no such column.
        """
        rows = delimited.records(name, self.separator, self.asked)
        header = next(rows)
        if not header:
            return  # an empty file; others may have rows
        for column in columns:
            if column not in header:
                raise InputError(
                    f"Corpus file {origin(name)} has no column {quoted(column)}, only {', '.join(header)}."
                )
        places = [header.index(column) for column in columns]
        for fields in rows:
            yield tuple(fields[place] for place in places)

    def place(self, file: str, row: int) -> str:
        """The line on which the row ends."""
        return f"line {delimited.line_number(file, self.separator, self.asked, row)}"


class Parquet(Format):
    """A table with types. Nothing in a chosen column is lost."""

    title = "Parquet"
    # a sentence may begin with "PAR1", so the pattern also wants a byte that text does not contain
    first_bytes = re.compile(rb"PAR1([\x00-\x08\x0e-\x1f]|$)")

    def kinds(self, name: str) -> dict[str, set[str]]:
        """The types in the file's schema."""
        return {column: {kind} for column, kind in parquet_rows.column_kinds(name).items()}

    def tables(self, name: str, columns: Sequence[str]) -> Iterator[list[Any]]:
        """The file's record batches, or fewer rows at a time."""
        return parquet_rows.batches(name, columns)

    def kept_types(self, name: str, columns: Sequence[str]) -> dict[str, pyarrow.DataType]:
        """The file's own types."""
        return parquet_rows.kept_types(name, columns)

    def kept(self, name: str, schema: pyarrow.Schema) -> Iterator[pyarrow.Table]:
        """The values, unchanged."""
        return parquet_rows.kept(name, schema.names)


FORMATS: dict[str, Format] = {
    one.name: one
    for one in (
        Lines("text", (".txt",)),
        JsonObjects("json", (".jsonl", ".ndjson", ".json")),
        Delimited("csv", (".csv",), separator=","),
        Delimited("tsv", (".tsv",), separator="\t"),
        Parquet("parquet", (".parquet",)),
    )
}
ENDINGS = {ending: one for one in FORMATS.values() for ending in one.endings}


@dataclass(frozen=True)
class Compression:
    """A compression that is recognised by the file's ending; `first_bytes` matches how such files begin."""

    name: str
    first_bytes: re.Pattern[bytes]


COMPRESSIONS = {
    ".gz": Compression("gzip", re.compile(rb"\x1f\x8b")),
    ".xz": Compression("xz", re.compile(rb"\xfd7zXZ\x00")),
    ".zst": Compression("zstd", re.compile(rb"(\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18)")),
    # a sentence may begin with "BZh" too
    ".bz2": Compression("bzip2", re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)")),
}


def format_of(name: str) -> Format:
    """The format of a file by its ending; a file without an ending is text.

    Raises:
        InputError: an unknown ending.
    """
    path = Path(name.lower())
    suffix = path.with_suffix("").suffix if path.suffix in COMPRESSIONS else path.suffix
    if suffix and suffix not in ENDINGS:
        known = ", ".join(ENDINGS)
        raise InputError(f"Corpus file {name}: unknown ending {suffix}; known are {known}, also compressed.")
    return ENDINGS[suffix or ".txt"]
