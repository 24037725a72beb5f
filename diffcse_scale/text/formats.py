"""The formats of files that sentences come from: one table, and one of what a text file may be compressed by.

The ending of a file's name says its format, and its first bytes have to agree (`contents.py`). Its rows become strings
in a memory-mapped dataset; what is lost on the way each format says itself.
"""

from __future__ import annotations

import glob
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import datasets
import pyarrow
import pyarrow.parquet

from diffcse_scale.foundation.errors import InputError, shown
from diffcse_scale.foundation.unique_keys import load_json
from diffcse_scale.text import delimited
from diffcse_scale.text.remote import origin

TEXT = datasets.Value("string")
LINE = "text"  # the column of a format whose rows are lines
ROWS_A_TABLE = 10_000
# rows of each file by which the columns are chosen
SAMPLE = 1_000

Parse = Callable[[str, Sequence[str]], Sequence[str | None]]
"""A line and the names of columns to their texts, None where there is none; ValueError for a malformed line."""


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

    @abstractmethod
    def column_types(self, files: Sequence[str]) -> dict[str, str]:
        """Column to type; what holds text is 'string', what holds nothing 'null'.

        Raises:
            InputError: malformed file; besides, whatever the libraries raise that read it.
        """

    @abstractmethod
    def builder(self, files: Sequence[str], columns: Sequence[str], cache: Path) -> datasets.DatasetBuilder:
        """What makes a dataset with these columns, or with `LINE` where rows are lines, of all rows of the files."""

    def place(self, file: str, row: int) -> str:
        """Where row `row` (from 0) stands in its file."""
        return f"row {row + 1}"


class TextFormat(Format):
    """Text, which may be compressed, row by row; bytes that are not UTF-8 become U+FFFD, a byte order mark is lost."""

    def column_types(self, files: Sequence[str]) -> dict[str, str]:
        """From the first rows of every file: a column that holds text in one of them holds text."""
        types: dict[str, set[str]] = {}
        for name in files:
            for record in self.sample(name):
                for column, value in record.items():
                    types.setdefault(column, set()).update(() if value is None else (type(value).__name__,))
        return {
            column: "string" if "str" in kinds else " or ".join(sorted(kinds)) or "null"
            for column, kinds in types.items()
        }

    def builder(self, files: Sequence[str], columns: Sequence[str], cache: Path) -> datasets.DatasetBuilder:
        """`Rows` of this format."""
        kept = (LINE,) if self.parse else tuple(columns)
        return Rows(cache_dir=str(cache), files=tuple(files), columns=kept, format=self.name)

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
        with delimited.open_text(name, newline=None) as lines:
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
    record = load_json(line) if line.strip() else {}
    if not isinstance(record, dict):
        raise ValueError("no JSON object")
    values = [record.get(name) for name in names]
    if not all(value is None or isinstance(value, str) for value in values):
        raise ValueError("not text")
    return values


class JsonLines(Lines):
    """A JSON object a line, kept as it is; values that are not in a chosen column are lost."""

    malformed = "not a JSON object with text in {}, or a key is there twice"

    @property
    def parse(self) -> Parse:
        """The values of the object."""
        return parse_object

    def sample(self, name: str) -> Iterator[dict[str, Any]]:
        """The objects of the first lines; of malformed ones cleaning and `encode` say what becomes of them."""
        with delimited.open_text(name, newline=None) as lines:
            first = [line for line in islice(lines, SAMPLE) if line.strip()]
        found = [record for record in map(_object, first) if record is not None]
        if first and not found:
            raise InputError(
                f"Corpus file {origin(name)} is not valid json: no JSON object in line 1, nor in those after it."
            )
        yield from found


def _object(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


@dataclass(frozen=True)
class Delimited(TextFormat):
    """A table with a header, its fields between separators; missing fields at the end of a row are empty."""

    separator: str

    def sample(self, name: str) -> Iterator[dict[str, Any]]:
        """What reads as a number is one."""
        return delimited.sample(name, self.separator, SAMPLE)

    def rows(self, name: str, columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
        """The fields of the columns.

        Raises:
            InputError: as `records`, or the file has no such column.
        """
        rows = delimited.records(name, self.separator)
        header = next(rows)
        for column in columns:
            if column not in header:
                raise InputError(f"Corpus file {origin(name)} has no column {shown(column)}, only {', '.join(header)}.")
        places = [header.index(column) for column in columns]
        for fields in rows:
            yield tuple(fields[place] for place in places)

    def place(self, file: str, row: int) -> str:
        """The line on which the row ends."""
        return f"line {delimited.line_number(file, self.separator, row)}"


class Parquet(Format):
    """A table with types, read by `datasets`; nothing of a chosen column is lost."""

    title = "Parquet"
    # a sentence may begin with "PAR1": here a byte follows that is in no text
    first_bytes = re.compile(rb"PAR1([\x00-\x08\x0e-\x1f]|$)")

    def column_types(self, files: Sequence[str]) -> dict[str, str]:
        """From the first file."""
        return {field.name: str(field.type) for field in pyarrow.parquet.read_schema(files[0])}

    def builder(self, files: Sequence[str], columns: Sequence[str], cache: Path) -> datasets.DatasetBuilder:
        """The library's own."""
        paths = [glob.escape(name) for name in files]
        return datasets.load_dataset_builder("parquet", data_files=paths, cache_dir=str(cache), columns=list(columns))


FORMATS: dict[str, Format] = {
    one.name: one
    for one in (
        Lines("text", (".txt",)),
        JsonLines("json", (".jsonl", ".ndjson", ".json")),
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


@dataclass
class RowsConfig(datasets.BuilderConfig):
    """Files of a `TextFormat`, by its name, and the columns wanted."""

    files: tuple[str, ...] = ()
    columns: tuple[str, ...] = (LINE,)
    format: str = "text"


class Rows(datasets.ArrowBasedBuilder):
    """Builder in the sense of `datasets`: it writes Arrow files, with a process for each share of the files."""

    BUILDER_CONFIG_CLASS = RowsConfig

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=datasets.Features(dict.fromkeys(self.config.columns, TEXT)))

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        return [datasets.SplitGenerator(name="train", gen_kwargs={"files": list(self.config.files)})]

    def _generate_tables(self, files: list[str]) -> Iterator[tuple[str, pyarrow.Table]]:
        schema, kind = self.info.features.arrow_schema, FORMATS[self.config.format]
        assert isinstance(kind, TextFormat)
        for shard, name in enumerate(files):
            rows = kind.rows(name, self.config.columns)
            index = 0
            while batch := list(islice(rows, ROWS_A_TABLE)):
                yield f"{shard}-{index}", pyarrow.table(list(zip(*batch, strict=True)), schema=schema)
                index += 1
