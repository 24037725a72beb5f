"""Reads files of graded pairs as tables: three columns, or more with names, in any format of a corpus."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet

from diffcse_scale.foundation.errors import InputError, one_line
from diffcse_scale.foundation.unique_keys import load_json
from diffcse_scale.recipe import SEPARATORS
from diffcse_scale.text import json_objects
from diffcse_scale.text.contents import FIRST_BYTES, seems_to_be
from diffcse_scale.text.formats import COMPRESSIONS, ENDINGS
from diffcse_scale.text.sources import GRADES
from diffcse_scale.text.table_layout import (
    USUAL_PAIRS,
    number_or_text,
    open_text,
    quoted_as_csv,
    rows_of,
    said_separator,
)

FORM = ("score", "sentence", "sentence")
ADVICE = "give three columns, of a score and two sentences, or call them score, sentence1 and sentence2"
SCORES = (*GRADES, "relatedness_score")
SIDES = ((*USUAL_PAIRS[0], "sentence_a", "text1"), (*USUAL_PAIRS[1], "sentence_b", "text2"))


@dataclass(frozen=True)
class Table:
    """Rows of fields.

    Attributes:
        names: names of the columns; None if the first row may hold them.
        unit: what a row is called in messages.
    """

    rows: list[list[Any]]
    names: list[str] | None = None
    unit: str = "line"


def graded_rows(file: Path) -> list[tuple[Any, Any, Any, str]]:
    """The unconverted score, first and second sentence of each row, and the row's position for messages.

    The score is the first or the last column, unless a header or the keys of objects name the columns.

    Raises:
        InputError: the file cannot be read, is empty, or does not tell which column is which.
    """
    table = _table(file)
    names, rows, first = table.names, table.rows, 1
    if names is None and rows and _is_header(rows[0]):
        names, rows, first = list(map(str, rows[0])), rows[1:], 2
    if not rows:
        raise InputError(f"{file} is empty; expected are lines of {', '.join(FORM)}.")
    places = _by_name(file, names) if names else None
    if places is None:
        width = len(names or rows[0])
        if width != len(FORM):
            columns = f"the columns {', '.join(names)}" if names else f"{width} columns and no header"
            raise InputError(f"{file} has {columns}; {ADVICE}.")
        places = (0, 1, 2) if _numbers(rows, 0) >= _numbers(rows, 2) else (2, 0, 1)
    found = []
    for number, row in enumerate(rows, start=first):
        where = f"{file}, {table.unit} {number}"
        if len(row) != len(names or FORM):
            raise InputError(f"{where} has {len(row)} fields, not {', '.join(names or FORM)}.")
        score, one, other = (row[place] for place in places)
        found.append((score, one, other, where))
    return found


def read_lines(file: Path, form: Sequence[str]) -> list[list[str]]:
    """Read lines of tab-separated fields, one for each name in `form`. Drops a byte order mark and CR before LF.

    Raises:
        InputError: the file cannot be read, is empty or is not text, or a line is not UTF-8 or has another number of
            fields.
    """
    expected = f"expected are lines of {', '.join(form)}, with tabs between"
    rows = []
    try:
        with file.open("rb") as lines:
            if found := seems_to_be(lines.read(FIRST_BYTES)):
                raise InputError(f"{file} seems to be {found}; {expected}.")
            lines.seek(0)
            for number, line in enumerate(lines, start=1):
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                rows.append(_fields(line.removesuffix(b"\n"), form, f"{file}, line {number}"))
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}.") from None
    if not rows:
        raise InputError(f"{file} is empty; {expected}.")
    return rows


def _fields(line: bytes, form: Sequence[str], where: str) -> list[str]:
    try:
        fields = line.removesuffix(b"\r").decode("utf-8").split("\t")
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8 at byte {error.start + 1}; convert the file.") from None
    if len(fields) != len(form):
        raise InputError(f"{where} has {len(fields)} tab-separated fields, not {', '.join(form)}.")
    return fields


def _table(file: Path) -> Table:
    path = Path(file.name.lower())
    kind = ENDINGS.get(path.with_suffix("").suffix if path.suffix in COMPRESSIONS else path.suffix)
    name = kind.name if kind else "text"
    if name in ("text", "tsv") and path.suffix not in COMPRESSIONS:
        return Table(_unquoted(file, read_lines(file, FORM)))
    try:
        if name == "parquet":
            table = pyarrow.parquet.read_table(file)
            return Table(list(map(list, zip(*table.to_pydict().values(), strict=True))), table.column_names, "row")
        return _objects(file) if name == "json" else _delimited(file, "," if name == "csv" else "\t")
    except InputError:
        raise
    except Exception as error:  # from several libraries
        raise InputError(f"{file} cannot be read as {name}: {one_line(error).rstrip('.')}.") from None


def _unquoted(file: Path, rows: list[list[str]]) -> list[list[str]]:
    """The rows, which were read without quoting; InputError if they are quoted."""
    if rows and quoted_as_csv(str(file), rows):
        raise InputError(
            f"{file}: its fields are quoted as in CSV, but between tabs quotation marks are text; give it the ending "
            ".csv (tabs may stay)."
        )
    return rows


def _objects(file: Path) -> Table:
    found = []
    for number, line in enumerate(filter(str.strip, json_objects.lines_of(str(file))), start=1):
        record = load_json(line)
        if not isinstance(record, dict):
            raise InputError(
                f"{file}, object {number} is not a JSON object; write one object per line, or one array of objects."
            )
        found.append(record)
    names = list(found[0]) if found else []
    return Table([[record.get(name) for name in names] for record in found], names, "object")


def _delimited(file: Path, usual: str) -> Table:
    """Split at the first separator that gives all rows the same number of fields, at least three; else at `usual`.

    A first line `sep=;`, for Excel, names the separator.
    """
    said = said_separator(str(file))
    for separator in (said,) if said else (usual, *SEPARATORS.values()):
        rows = _separated(file, separator, usual)
        if rows and len(rows[0]) >= len(FORM) and len({len(row) for row in rows}) == 1:
            break
    else:
        rows = _separated(file, said or usual, usual)
        if rows is None:
            raise InputError(f"{file}: a quotation mark is not closed or is in the wrong place; fix the quoting.")
    return Table(_unquoted(file, rows) if separator == usual == "\t" else rows, unit="row")


def _separated(file: Path, separator: str, usual: str) -> list[list[str]] | None:
    """The rows that are not empty; None if a quotation mark is in the wrong place for this separator."""
    with open_text(str(file)) as lines:
        try:
            return [row for row in rows_of(lines, separator, usual) if row]
        except csv.Error:
            return None


def _is_header(row: Sequence[str]) -> bool:
    names = [name.strip().lower() for name in row]
    return any(name in SCORES for name in names) and not any(isinstance(number_or_text(name), float) for name in names)


def _by_name(file: Path, names: Sequence[str]) -> tuple[int, int, int] | None:
    """The column numbers of score, first and second sentence; None if the names do not tell.

    Raises:
        InputError: the names are those of natural language inference, whose labels do not grade similarity.
    """
    lower = [name.strip().lower() for name in names]
    if {"premise", "hypothesis"} < set(lower) and set(lower) & {"label", "labels"}:
        raise InputError(
            f"{file} has {', '.join(names)}: labels of premise and hypothesis are classes (0 is entailment), not "
            "scores; give a column called score that is high for similar sentences, and no label."
        )
    found = [[place for place, name in enumerate(lower) if name in usual] for usual in (SCORES, *SIDES)]
    if len(found[0]) == 1 and len(names) == len(FORM) and not all(found[1:]):
        found[1:] = [[place] for place in range(len(FORM)) if place != found[0][0]]
    if any(len(places) != 1 for places in found):
        return None
    score, one, other = (places[0] for places in found)
    return score, one, other


def _numbers(rows: Sequence[Sequence[Any]], column: int) -> int:
    """Number of rows that have a number in this column."""
    values = (row[column] for row in rows if len(row) > column)
    return sum(isinstance(number_or_text(value) if isinstance(value, str) else value, int | float) for value in values)
