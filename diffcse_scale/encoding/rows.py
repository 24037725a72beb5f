"""The input of `encode`: the rows of all files, numbered consecutively, including empty rows."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import datasets

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.strict_json import to_json
from diffcse_scale.recipe import DataRecipe
from diffcse_scale.text.cache import cache_folder, workers
from diffcse_scale.text.corpus import MOST_UNDECODABLE, Flaw, corpus_fingerprint
from diffcse_scale.text.formats import LINE, Parse
from diffcse_scale.text.kept_columns import KeptColumns, open_kept
from diffcse_scale.text.remote import origin
from diffcse_scale.text.sources import find_sources
from diffcse_scale.text.undecodable import ERRORS, shown, undecodable

FIRST = 1_000  # rows
ADVICE = {
    "malformed": "write one JSON object with text per line, or one array of such objects",
    "undecodable": "convert them to UTF-8, for example with `iconv -f WINDOWS-1252 -t UTF-8`",
}  # for the flaws of rows that cannot be encoded as they are


@dataclass(frozen=True)
class Part:
    """The rows of files of one format.

    Attributes:
        rows: the rows, memory-mapped.
        column: name of the column of sentences.
        parse: if rows are lines, the function that extracts the column from a line.
    """

    rows: datasets.Dataset
    column: str
    parse: Parse | None


class Rows:
    """Sentences by row number. Picklable, because the files are memory-mapped and not read.

    No row of the input is dropped, so row numbers are the same as in the files.

    Attributes:
        names: absolute paths or addresses of the files, with which `open_rows` finds the same rows from any folder.
        identity: JSON-serialisable; changes if the content of a file changes.
        kept: the columns that are stored unchanged, if any.
    """

    def __init__(
        self, parts: list[Part], names: list[str], identity: list[Any], earlier: list[Any], kept: KeptColumns | None
    ) -> None:
        self._parts = parts
        self._ends = list(accumulate(len(part.rows) for part in parts))
        self.names, self.identity, self._earlier, self.kept = names, identity, earlier, kept

    def __len__(self) -> int:
        return self._ends[-1]

    def are(self, identity: list[Any]) -> bool:
        """Whether a manifest's `identity` is that of these rows, in the current form or an earlier version's."""
        return identity in (self.identity, self._earlier)

    def read(self, start: int, stop: int) -> tuple[list[str], Counter[str]]:
        """Sentences of rows `start` to `stop` - 1, and the numbers of empty, undecodable and malformed ones.

        Bytes that are not UTF-8 become U+FFFD. A missing value or a malformed line becomes "".
        """
        texts: list[str] = []
        flaws: Counter[str] = Counter()
        while start < stop:
            index = bisect_right(self._ends, start)
            part, first = self._parts[index], self._ends[index - 1] if index else 0
            end = min(stop, self._ends[index])
            for value in part.rows[start - first : end - first][LINE if part.parse else part.column]:
                text, flaw = _parsed(value or "", part.column, part.parse) if part.parse else _plain(value)
                texts.append(text)
                flaws.update([flaw.name.lower()] if flaw else ())
            start = end
        return texts, flaws


def check_rows_are_usable(rows: Rows) -> None:
    """Look at the first rows, before a model is loaded.

    Raises:
        InputError: more than MOST_UNDECODABLE of them are not UTF-8 or malformed, so that `read` would lose them.
    """
    texts, flaws = rows.read(0, min(len(rows), FIRST))
    for flaw, advice in ADVICE.items():
        if (count := flaws[flaw]) > MOST_UNDECODABLE * len(texts):
            raise InputError(
                f"{', '.join(rows.names[:3])}: {count:,} of the first {len(texts):,} rows are {flaw}; {advice}."
            )


def open_rows(
    entries: list[str],
    column: str | None = None,
    separator: str | None = None,
    header: bool | None = None,
    keep: list[str] | None = None,
) -> Rows:
    """Open the rows of `entries` in the given order. The first time they are copied to the cache as Arrow files.

    Args:
        entries, separator, header: as in the `data` section of a recipe (`entries` is `data.files`).
        column: column of the sentences; None takes `text`, `sentence` or the only column of text.
        keep: columns to store unchanged.

    Raises:
        InputError: a file is missing, unknown or malformed, or a column does not exist.
    """
    data = DataRecipe(files=entries, columns=[column] if column else None, separator=separator, header=header)
    sources = find_sources(data)
    cache = cache_folder(data)
    folder = cache / f"rows-{corpus_fingerprint(data)}"
    parts = []
    for source in sources:
        source.check()
    kept = open_kept(sources, keep, folder, cache) if keep else None  # reports a wrong name before copying
    for index, source in enumerate(sources):
        rows, (name,) = source.read(data.columns, folder / f"rows-{index}", cache, workers(data), one=True)
        parts.append(Part(rows, name, source.parse))
    names = [origin(name) for source in sources for name in source.names]
    identity, earlier = zip(*((one.identity(cache), one.earlier_identity()) for one in sources), strict=True)
    return Rows(parts, names, list(identity), json.loads(to_json(earlier)), kept)


def _plain(value: str | None) -> tuple[str, Flaw]:
    text = value or ""
    if not text.strip():
        return text, Flaw.EMPTY
    return shown(text), Flaw.UNDECODABLE if undecodable(text) else Flaw.NONE


def _parsed(line: str, column: str, parse: Parse) -> tuple[str, Flaw]:
    try:
        (value,) = parse(line, [column])
    except ValueError:
        return "", Flaw.MALFORMED
    # JSON can contain escaped lone surrogates, which no tokenizer accepts
    return _plain((value or "").encode("utf-16", "surrogatepass").decode("utf-16", ERRORS))
