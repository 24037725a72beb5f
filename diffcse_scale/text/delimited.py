"""What `.csv` and `.tsv` files need beside the reader of `datasets`: columns, dialect, line numbers."""

from __future__ import annotations

import csv
from typing import Any

import datasets
import fsspec
import pandas

from diffcse_scale.errors import InputError

# bytes that are not UTF-8 become U+FFFD, by which cleaning finds them
DECODING = {"encoding": "utf-8-sig", "encoding_errors": "replace"}


def open_text(name: str) -> Any:
    """The lines of a file that may be compressed (.gz, .xz, .zst, .bz2), line ends kept."""
    decoding = {"encoding": "utf-8-sig", "errors": "replace", "newline": ""}
    return fsspec.open(name, "rt", compression="infer", **decoding).open()


def columns(name: str, separator: str) -> dict[str, str]:
    """Column to type as pandas guesses it from the first rows; text is 'string'.

    Raises:
        InputError: the first row is longer than the header, so that pandas would shift the columns.
    """
    with open_text(name) as lines:
        records = csv.reader(lines, **_dialect(separator))
        header, first = next(records, []), next(records, [])
    if len(first) > len(header):
        raise InputError(
            f"Corpus file {name}, line 2: {len(first)} fields under a header of {len(header)}; "
            "quote sentences that contain the separator."
        )
    rows = pandas.read_csv(name, nrows=1000, **reader_options(separator))
    is_text = pandas.api.types.is_string_dtype
    return {str(column): "string" if is_text(rows[column]) else str(rows[column].dtype) for column in rows}


def builder_options(name: str, separator: str) -> dict[str, Any]:
    """Arguments of the `csv` builder of `datasets`: every column as strings, no type guessed."""
    text = datasets.Features(dict.fromkeys(columns(name, separator), datasets.Value("string")))
    return {**reader_options(separator), "features": text}


def reader_options(separator: str) -> dict[str, Any]:
    """Arguments of `pandas.read_csv`: "NA" and "null" are words, and an empty line is an empty row."""
    missing = {"keep_default_na": False, "skip_blank_lines": False, "index_col": False}
    dialect = _dialect(separator)
    return {**DECODING, **missing, "sep": dialect.pop("delimiter"), **dialect}


def line_number(name: str, separator: str, row: int) -> int:
    """The line (from 1) on which row `row` (from 0, after the header) ends: a quoted field may span lines."""
    with open_text(name) as lines:
        records = csv.reader(lines, **_dialect(separator))
        for _ in range(row + 2):
            next(records)
        return records.line_num


def _dialect(separator: str) -> dict[str, Any]:
    # text/tab-separated-values (IANA) knows no quoting: there a sentence may begin with a quotation mark
    return {"delimiter": separator, "quoting": csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL}
