"""The layout of text tables: the separator of the fields, and whether the first row is a header.

The recipe's settings are used as given. The rest is detected from the first rows of a file if they leave no doubt.
Otherwise the user is asked, because a wrong guess would train on `7;Hello` or lose a sentence without anyone noticing.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from diffcse_scale.foundation.errors import InputError, either
from diffcse_scale.recipe import SEPARATORS
from diffcse_scale.text.compressed import open_bytes
from diffcse_scale.text.remote import origin
from diffcse_scale.text.undecodable import ERRORS

if TYPE_CHECKING:
    from _csv import Reader as CSVReader

USUAL_COLUMNS = ("text", "sentence")
# usual column names of pairs, and of triples with a hard negative
USUAL_PAIRS = (
    ("anchor", "query", "sentence1", "sent0"),
    ("positive", "pos", "sentence2", "sent1"),
    ("negative", "neg", "hard_negative", "hard_neg"),
)
SAMPLE = 1_000  # rows of each file that are examined
LONGEST_SHOWN = 80  # characters of a row in a message
TITLE = re.compile(r"\w[\w .:()/-]{0,63}")
SAYS_SEPARATOR = re.compile(r'("?)sep=([^\w"\r\n])\1\s*')  # a first line for Excel, which does not show it
NO_TITLE = {"na", "n/a", "nan", "none", "null", "missing", "unknown"}  # these stand for a missing number


@dataclass(frozen=True)
class Layout:
    """What is known about the layout of tables. None means that it must be detected from the file.

    Attributes:
        separator: the character between fields.
        header: whether the first row names the columns; without a header they are called 1, 2, 3 and so on.
        columns: the wanted columns; a row with these names is recognised as a header.
    """

    separator: str | None = None
    header: bool | None = None
    columns: tuple[str, ...] = ()


NOTHING_KNOWN = Layout()


def open_text(name: str, newline: str | None = "") -> Any:
    """Open a text file that may be compressed (.gz, .xz, .zst, .bz2). With `newline` None all line ends become LF.

    A byte order mark is dropped. Bytes that are not UTF-8 become `MARK`, so that cleaning finds them.
    """
    return io.TextIOWrapper(open_bytes(name), encoding="utf-8-sig", errors=ERRORS, newline=newline)


def rows_of(lines: Iterator[str], separator: str, usual: str) -> CSVReader:
    """A csv reader of the lines of a file, after the line `sep=;` that is for Excel, if the file begins with it."""
    first = next(lines, "")
    rows = csv.reader(chain([first], lines), **_dialect(separator, usual))
    if SAYS_SEPARATOR.fullmatch(first):
        next(rows)  # and not only a line, so that the reader's line numbers are those of the file
    return rows


def _dialect(separator: str, usual: str) -> dict[str, Any]:
    """The csv module's options for fields between `separator`, in a file whose ending suggests `usual`."""
    # text/tab-separated-values (IANA) has no quoting, so a sentence there may begin with a quotation mark
    if separator == usual == "\t":
        return {"delimiter": separator, "quoting": csv.QUOTE_NONE}
    return {"delimiter": separator, "strict": True}


def layout_of(name: str, usual: str, asked: Layout) -> Layout:
    """The layout `asked`, completed from the first rows.

    Args:
        name: name of the file.
        usual: the separator that its ending suggests.

    Raises:
        InputError: the rows leave a doubt; names the recipe key that settles it.
    """
    separator = asked.separator or said_separator(name) or _separator(name, usual, asked)
    rows = _first_rows(name, separator, usual) or [[]]
    if separator == usual == "\t" and quoted_as_csv(name, rows):
        raise InputError(
            f"Corpus file {origin(name)}: its fields are quoted as in CSV, but in a .tsv file quotation marks are "
            "text; give it the ending .csv (tabs may stay)."
        )
    if blank := _quoted_after_blank(rows):
        raise InputError(
            f"Corpus file {origin(name)}: in its column {blank} a blank stands before each quotation mark, so that the "
            "marks would be text; remove these blanks."
        )
    first, *rest = rows
    header = asked.header
    if header is None:
        named = not first or _names_columns(first, asked)
        if (by_name := _by_name(asked)) and not named:
            raise InputError(
                f"Corpus file {origin(name)} has no column {by_name[0]!r}, only {_shown(first, separator)}; name "
                "one of these, or set data.header=false if that is text (as an option: --no-header)."
            )
        header = named or _stands_over_numbers(first, rest)
        if not header:
            raise InputError(
                f"Corpus file {origin(name)}: its first row, {_shown(first, separator)!r}, may be a header or text; "
                "name its columns in data.columns, or set data.header=false (as options: --column, --no-header)."
            )
    return replace(asked, separator=separator, header=header)


def said_separator(name: str) -> str | None:
    """The separator that the first line of a file names for Excel, as `sep=;`; None if there is no such line."""
    with open_text(name) as lines:
        found = SAYS_SEPARATOR.fullmatch(next(lines, ""))
    return found and found[2]


def number_or_text(field: str) -> str | float | None:
    """A field as truth value, number or text; None if it is empty."""
    if field in ("True", "False", "true", "false"):
        return field[0] in "Tt"
    try:
        return float(field) if field else None
    except ValueError:
        return field


def _separator(name: str, usual: str, asked: Layout) -> str:
    """`usual`, unless the rows leave a doubt, or form a table only with another separator."""
    rows = {usual: _first_rows(name, usual, usual)}
    if _is_header(rows[usual], asked):
        return usual
    others = [separator for separator in SEPARATORS.values() if separator != usual]
    rows.update((separator, _first_rows(name, separator, usual)) for separator in others)
    fitting = [separator for separator in rows if _is_table(rows[separator])]
    titled = [separator for separator in others if _is_header(rows[separator], asked)]
    possible = titled or fitting or [usual]
    if len(possible) == 1 and (possible[0] in fitting or not titled):
        return possible[0]
    words = {separator: word for word, separator in SEPARATORS.items()}
    reason = "each makes a table of its rows" if len(possible) > 1 else "not every row has as many of them"
    doubt = either([words[separator] for separator in possible])
    raise InputError(
        f"Corpus file {origin(name)}: its fields may be separated by {doubt}, but {reason}; set data.separator (as an "
        "option: --separator)."
    )


def _first_rows(name: str, separator: str, usual: str, most_lines: int | None = None) -> list[list[str]] | None:
    """The first rows that are not empty; None if with this separator a quotation mark is in the wrong place."""
    with open_text(name) as lines:
        try:
            rows = rows_of(islice(lines, most_lines), separator, usual)
            return [row for row in islice(rows, SAMPLE + 1) if row]
        except csv.Error:
            return None


def quoted_as_csv(name: str, rows: list[list[str]]) -> bool:
    """Whether a .tsv file is quoted like a .csv file, as pandas does where text has quotation marks or line ends.

    A sentence may be in quotation marks of its own. So all titles must be, or marks inside must be doubled, or rows
    must have equally many fields only if quoted line ends belong to the text.

    Args:
        rows: the first rows, read without quoting.
    """
    if len(rows[0]) > 1 and all(map(_in_quotes, rows[0])):
        return True
    inside = (field[1:-1] for row in rows for field in row if _in_quotes(field))
    if any('""' in text and '"' not in text.replace('""', "") for text in inside):
        return True
    if len({len(row) for row in rows}) == 1:
        return False
    return _is_table(_first_rows(name, "\t", ",", most_lines=10 * SAMPLE))


def _quoted_after_blank(rows: list[list[str]]) -> int | None:
    """The number (from 1) of a column whose fields, except a title, are all quoted after a blank, as in `1, "a b"`."""
    below = [row for row in rows[1:] if row]
    for column in range(min(map(len, below), default=0)):
        if all(field[:1] == " " and _in_quotes(field.strip()) for field in (row[column] for row in below)):
            return column + 1
    return None


def _in_quotes(field: str) -> bool:
    return len(field) > 1 and field[0] == field[-1] == '"'


def _shown(first: Sequence[str], separator: str) -> str:
    text = " ".join(f"{separator} ".join(first).split())
    return text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + "..."


def _is_table(rows: list[list[str]] | None) -> bool:
    return rows is not None and len(rows) > 0 and len(rows[0]) > 1 and len({len(row) for row in rows}) == 1


def _is_header(rows: list[list[str]] | None, asked: Layout) -> bool:
    return rows is not None and len(rows) > 0 and len(rows[0]) > 1 and _names_columns(rows[0], asked)


def _names_columns(first: Sequence[str], asked: Layout) -> bool:
    names = {field.strip().lower() for field in first}
    if any(column.lower() in names for column in asked.columns):
        return True
    anchors, positives, _ = (names.intersection(usual) for usual in USUAL_PAIRS)
    return not _by_name(asked) and bool(names.intersection(USUAL_COLUMNS) or (anchors and positives))


def _by_name(asked: Layout) -> list[str]:
    """The wanted columns that are not numbers."""
    return [column for column in asked.columns if not column.isdecimal()]


def _stands_over_numbers(first: Sequence[str], rest: Sequence[Sequence[str]]) -> bool:
    """Whether all fields of `first` could be titles, and one of them is above a column of numbers."""
    if not rest or not all(TITLE.fullmatch(field) and isinstance(number_or_text(field), str) for field in first):
        return False
    for column, title in enumerate(first):
        below = [number_or_text(row[column]) if column < len(row) else None for row in rest]
        if title.lower() not in NO_TITLE and all(isinstance(value, float | bool) for value in below):
            return True
    return False
