"""Reads the rows of `.csv` and `.tsv` files."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from itertools import chain, islice

from diffcse_scale.foundation.errors import InputError, quoted
from diffcse_scale.text.remote import origin
from diffcse_scale.text.table_layout import SAMPLE, Layout, layout_of, number_or_text, open_text, rows_of

csv.field_size_limit(sys.maxsize)


def records(name: str, usual: str, asked: Layout) -> Iterator[list[str]]:
    """Yield the column names, then the rows. An empty line is an empty row; missing fields at a row's end are empty.

    Args:
        usual: the separator that the file's ending suggests.
        asked: the known part of the layout; the rest is detected from the file.

    Raises:
        InputError: an ambiguous layout, two columns with the same name, a second header, a row with more fields than
            there are columns, or a quotation mark that is not closed; names file and line.
    """
    layout = layout_of(name, usual, asked)
    assert layout.separator is not None
    with open_text(name) as lines:
        reader = rows_of(lines, layout.separator, usual)
        try:
            first = next(filter(None, reader), [])
            header = first if layout.header else [str(number) for number, _ in enumerate(first, start=1)]
            twice = [column for column in header if column and header.count(column) > 1]
            if twice:
                raise InputError(f"Corpus file {origin(name)} has two columns called {quoted(twice[0])}; rename one.")
            yield header
            for fields in reader if layout.header else chain([first] if first else [], reader):
                if layout.header and fields == header and len(header) > 1:
                    raise InputError(
                        f"Corpus file {origin(name)}, line {reader.line_num}: the header is there again, as in files "
                        "that were put together; remove this line."
                    )
                if len(fields) > len(header):
                    raise InputError(
                        f"Corpus file {origin(name)}, line {reader.line_num}: {len(fields)} fields under a header of "
                        f"{len(header)}; {_advice(layout.separator)}."
                    )
                yield fields + [""] * (len(header) - len(fields))
        except csv.Error as error:
            raise InputError(f"Corpus file {origin(name)}, line {reader.line_num}: {error}; fix the quoting.") from None


def sample(name: str, usual: str, asked: Layout) -> Iterator[dict[str, str | float | None]]:
    """The first rows by column; a field may be a number, an empty one is None. An all-None row comes first."""
    rest = records(name, usual, asked)
    header = next(rest)
    yield dict.fromkeys(header)
    for fields in islice(rest, SAMPLE):
        yield dict(zip(header, map(number_or_text, fields), strict=True))


def line_number(name: str, usual: str, asked: Layout, row: int) -> int:
    """The line (from 1) on which row `row` (from 0, after a header) ends; a quoted field may span several lines."""
    layout = layout_of(name, usual, asked)
    assert layout.separator is not None
    with open_text(name) as lines:
        reader = rows_of(lines, layout.separator, usual)
        next(filter(None, reader))  # the header, or the first row
        for _ in range(row + bool(layout.header)):
            next(reader)
        return reader.line_num


def _advice(separator: str) -> str:
    return "take the tab out of the text" if separator == "\t" else f"quote text that contains {separator!r}"
