"""The formats of files that sentences come from: one table, and one of what a text file may be compressed by.

The ending of a file's name says its format, and its first bytes have to agree (`contents.py`). Its rows become strings
in a memory-mapped dataset; what is lost on the way each format says itself.
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
TABLE_ROWS, TABLE_CHARACTERS = 10_000, 2**24  # the most that is in memory at once, but for a longer row
KINDS = {
    "int": "numbers",
    "float": "numbers",
    "bool": "true or false",
    "list": "lists",
    "dict": "objects",
}  # in messages; others are called as in Python

Parse = Callable[[str, Sequence[str]], Sequence[str | None]]
"""A line and the names of columns to their texts, None where there is none; ValueError for a malformed line."""


class Unreadable(InputError, datasets.exceptions.DatasetGenerationError):
    """An `InputError` that `datasets` passes on as it is, from another process too."""


@contextmanager
def reading(name: str, kind: str) -> Iterator[None]:
    """Inside, what goes wrong goes wrong with this file.

    Raises:
        Unreadable: for whatever the libraries raise; names the file.
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
        name: in messages, and part of what cached rows are found by.
        endings: of the names of its files, in lower case.
        title, first_bytes: what its files are called by, and begin with; text begins with anything.
        malformed: what is said of a line that `parse` refuses; {} is for the names of the columns.
    """

    name: str
    endings: tuple[str, ...]
    title: ClassVar[str] = "text"
    first_bytes: ClassVar[re.Pattern[bytes] | None] = None
    malformed: ClassVar[str] = ""

    @property
    def parse(self) -> Parse | None:
        """Where the rows are kept as lines: what finds the columns in one."""
        return None

    def laid_out(self, asked: Layout) -> Format:
        """This format with what is known of its files' layout, which only tables of text have."""
        return self

    def identity(self) -> list[Any]:
        """What says, beside the bytes of the files, which rows are read."""
        return [self.name]

    def column_types(self, files: Sequence[str]) -> dict[str, str]:
        """Column to type; what holds text in one of the files is 'string', what holds nothing 'null'.

        Raises:
            InputError: malformed file; names it.
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
        """Column to the types of its values in a file, named as in `column_types`."""

    @abstractmethod
    def tables(self, name: str, columns: Sequence[str]) -> Iterator[list[Any]]:
        """All rows of a file, some at a time: the texts of each column; of `LINE` alone where rows are lines."""

    def kept_types(self, name: str, columns: Sequence[str]) -> dict[str, pyarrow.DataType]:
        """The types in which columns of a file are carried along: text, where the file knows no other."""
        return dict.fromkeys(columns, pyarrow.string())

    def kept(self, name: str, schema: pyarrow.Schema) -> Iterator[pyarrow.Table]:
        """These columns of all rows of a file as they are, some rows at a time."""
        for columns in self.tables(name, schema.names):
            yield pyarrow.table([list(map(shown, texts)) for texts in columns], names=schema.names)

    def place(self, file: str, row: int) -> str:
        """Where row `row` (from 0) stands in its file."""
        return f"row {row + 1}"


class TextFormat(Format):
    """Text, which may be compressed, row by row; bytes that are not UTF-8 become `MARK`, a byte order mark is lost."""

    def kinds(self, name: str) -> dict[str, set[str]]:
        """From the first rows."""
        types: dict[str, set[str]] = {}
        for record in self.sample(name):
            for column, value in record.items():
                kind = type(value).__name__
                kind = "string" if isinstance(value, str) else KINDS.get(kind, kind)
                types.setdefault(column, set()).update(() if value is None else (kind,))
        return types

    def tables(self, name: str, columns: Sequence[str]) -> Iterator[list[Any]]:
        """As many rows as make a table that is neither too long nor too large."""
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
        """The first rows of a file by column; what is not text is of another type, nothing is None."""

    @abstractmethod
    def rows(self, name: str, columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
        """All rows of a file."""


class Lines(TextFormat):
    """A sentence a line, whatever ends it."""

    def sample(self, name: str) -> Iterator[dict[str, Any]]:
        """Every line is text, also where there is none."""
        yield {LINE: ""}

    def rows(self, name: str, columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
        """The lines without their ends."""
        with open_text(name, newline=None) as lines:
            for line in lines:
                yield (line.removesuffix("\n"),)

    def place(self, file: str, row: int) -> str:
        """A row is a line."""
        return f"line {row + 1}"


def parse_object(line: str, names: Sequence[str]) -> list[str | None]:
    """The texts of a JSON object; of a blank line None.

    Raises:
        ValueError: no JSON, no object, a key twice, or a value that is not text.
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
    """JSON objects, one a line or in one array, kept as they are; values that are not in a chosen column are lost."""

    malformed = "not a JSON object with text in {}, or a key is there twice"

    @property
    def parse(self) -> Parse:
        """The values of the object."""
        return parse_object

    def sample(self, name: str) -> Iterator[dict[str, Any]]:
        """The first objects; of malformed ones cleaning and `encode` say what becomes of them."""
        first = [line for line in islice(json_objects.lines_of(name), SAMPLE) if line.strip()]
        found = [record for record in map(json_objects.object_of, first) if record is not None]
        if first and not found:
            raise InputError(
                f"Corpus file {origin(name)} is not valid json: no JSON object in {self.place(name, 0)}, nor in those "
                "after it; write one object per line, or one array of objects."
            )
        yield from found

    def rows(self, name: str, columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
        """The objects as they are written."""
        for line in json_objects.lines_of(name):
            yield (line,)

    def kept_types(self, name: str, columns: Sequence[str]) -> dict[str, pyarrow.DataType]:
        """Those of the values; reads all of them."""
        return json_values.types_of(name, columns)

    def kept(self, name: str, schema: pyarrow.Schema) -> Iterator[pyarrow.Table]:
        """The values of the objects; of a malformed line none."""
        return json_values.tables(name, schema)

    def place(self, file: str, row: int) -> str:
        """A row is a line, or an element of the array."""
        return f"object {row + 1}" if json_objects.is_array(file) else f"line {row + 1}"


@dataclass(frozen=True)
class Delimited(TextFormat):
    """A table, its fields between separators; missing fields at the end of a row are empty.

    Attributes:
        separator: the usual one of such files.
        asked: what is known of their layout.
    """

    separator: str
    asked: Layout = NOTHING_KNOWN

    def laid_out(self, asked: Layout) -> Format:
        """With all of it."""
        return replace(self, asked=asked)

    def identity(self) -> list[Any]:
        """With the layout that is asked for, since a file says the rest itself."""
        return [self.name, self.asked.separator, self.asked.header]

    def sample(self, name: str) -> Iterator[dict[str, Any]]:
        """What reads as a number is one."""
        return delimited.sample(name, self.separator, self.asked)

    def rows(self, name: str, columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
        """The fields of the columns.

        Raises:
            InputError: as `records`, or the file has no such column.
        """
        rows = delimited.records(name, self.separator, self.asked)
        header = next(rows)
        if not header:
            return  # an empty file among others
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
    """A table with types; nothing of a chosen column is lost."""

    title = "Parquet"
    # a sentence may begin with "PAR1": here a byte follows that is in no text
    first_bytes = re.compile(rb"PAR1([\x00-\x08\x0e-\x1f]|$)")

    def kinds(self, name: str) -> dict[str, set[str]]:
        """As the file's schema has them."""
        return {column: {kind} for column, kind in parquet_rows.column_kinds(name).items()}

    def tables(self, name: str, columns: Sequence[str]) -> Iterator[list[Any]]:
        """As the file has them, or fewer rows at a time."""
        return parquet_rows.batches(name, columns)

    def kept_types(self, name: str, columns: Sequence[str]) -> dict[str, pyarrow.DataType]:
        """The file's own."""
        return parquet_rows.kept_types(name, columns)

    def kept(self, name: str, schema: pyarrow.Schema) -> Iterator[pyarrow.Table]:
        """The values as they are."""
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
    """What fsspec unpacks because of the ending; `first_bytes` are those of such a file."""

    name: str
    first_bytes: re.Pattern[bytes]


COMPRESSIONS = {
    ".gz": Compression("gzip", re.compile(rb"\x1f\x8b")),
    ".xz": Compression("xz", re.compile(rb"\xfd7zXZ\x00")),
    ".zst": Compression("zstd", re.compile(rb"(\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18)")),
    # a sentence may begin with "BZh", too
    ".bz2": Compression("bzip2", re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)")),
}


def format_of(name: str) -> Format:
    """By the ending; a file without one is text.

    Raises:
        InputError: an ending that no format has.
    """
    path = Path(name.lower())
    suffix = path.with_suffix("").suffix if path.suffix in COMPRESSIONS else path.suffix
    if suffix and suffix not in ENDINGS:
        known = ", ".join(ENDINGS)
        raise InputError(f"Corpus file {name}: unknown ending {suffix}; known are {known}, also compressed.")
    return ENDINGS[suffix or ".txt"]
