"""Rows of `.csv` and `.tsv` files."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from typing import Any

import fsspec

from diffcse_scale.foundation.errors import InputError, shown
from diffcse_scale.text.remote import origin

csv.field_size_limit(sys.maxsize)


def open_text(name: str, newline: str | None = "") -> Any:
    """A file that may be compressed (.gz, .xz, .zst, .bz2); without `newline`, all line ends are LF.

    A byte order mark is dropped. Bytes that are not UTF-8 become U+FFFD, by which cleaning finds them.
    """
    decoding = {"encoding": "utf-8-sig", "errors": "replace", "newline": newline}
    return fsspec.open(name, "rt", compression="infer", **decoding).open()


def records(name: str, separator: str) -> Iterator[list[str]]:
    """The header and then the rows; an empty line is an empty row, and missing fields at the end are empty.

    Raises:
        InputError: two columns of one name, a row with more fields than the header, a quotation mark that is
            not closed; names file and line.
    """
    with open_text(name) as lines:
        reader = csv.reader(lines, **_dialect(separator))
        try:
            header = next(reader, [])
            twice = [column for column in header if column and header.count(column) > 1]
            if twice:
                raise InputError(f"Corpus file {origin(name)} has two columns called {shown(twice[0])}; rename one.")
            yield header
            for fields in reader:
                if len(fields) > len(header):
                    raise InputError(
                        f"Corpus file {origin(name)}, line {reader.line_num}: {len(fields)} fields under a header of "
                        f"{len(header)}; {_advice(separator)}."
                    )
                yield fields + [""] * (len(header) - len(fields))
        except csv.Error as error:
            raise InputError(
                f"Corpus file {origin(name)}, line {reader.line_num}: {error}; mend the quoting."
            ) from None


def sample(name: str, separator: str, rows: int) -> Iterator[dict[str, str | float | None]]:
    """The first rows by column; what reads as a number is one, and nothing is None. The first has every column."""
    rest = records(name, separator)
    header = next(rest)
    yield dict.fromkeys(header)
    for _, fields in zip(range(rows), rest, strict=False):
        yield dict(zip(header, map(_value, fields), strict=True))


def line_number(name: str, separator: str, row: int) -> int:
    """The line (from 1) on which row `row` (from 0, after the header) ends: a quoted field may span lines."""
    with open_text(name) as lines:
        reader = csv.reader(lines, **_dialect(separator))
        for _ in range(row + 2):
            next(reader)
        return reader.line_num


def _value(field: str) -> str | float | None:
    if field in ("True", "False", "true", "false"):
        return field[0] in "Tt"
    try:
        return float(field) if field else None
    except ValueError:
        return field


def _dialect(separator: str) -> dict[str, Any]:
    # text/tab-separated-values (IANA) knows no quoting: there a sentence may begin with a quotation mark
    if separator == "\t":
        return {"delimiter": separator, "quoting": csv.QUOTE_NONE}
    return {"delimiter": separator, "strict": True}


def _advice(separator: str) -> str:
    return "take the tab out of the text" if separator == "\t" else "quote text that contains a comma"
