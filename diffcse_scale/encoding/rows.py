"""The input of `encode`: all files together as numbered rows, including empty ones."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import datasets

from diffcse_scale.foundation.strict_json import to_json
from diffcse_scale.recipe import DataRecipe
from diffcse_scale.text.cache import cache_folder, workers
from diffcse_scale.text.corpus import Flaw, corpus_fingerprint
from diffcse_scale.text.formats import LINE, Parse
from diffcse_scale.text.kept_columns import KeptColumns, open_kept
from diffcse_scale.text.remote import origin
from diffcse_scale.text.sources import find_sources
from diffcse_scale.text.undecodable import ERRORS, shown, undecodable


@dataclass(frozen=True)
class Part:
    """The rows of files of one format.

    Attributes:
        rows: memory-mapped.
        column: the one that holds the sentences.
        parse: where the rows are lines: what finds the column in one.
    """

    rows: datasets.Dataset
    column: str
    parse: Parse | None


class Rows:
    """Sentences by row number; picklable, because the files are memory-mapped and not read.

    Every row of the input is a row here: none is dropped, so that numbers stay what they are in the files.

    Attributes:
        names: of the files, absolute paths or addresses: `open_rows` finds the same rows by them from anywhere.
        identity: JSON-serialisable; changes when the content of a file does.
        kept: the columns that are carried along, if any are.
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
        """Whether these rows are those of which a manifest has written down this identity, or an earlier form of it."""
        return identity in (self.identity, self._earlier)

    def read(self, start: int, stop: int) -> tuple[list[str], Counter[str]]:
        """Sentences of rows `start` to `stop` - 1, and how many of them are empty, undecodable or malformed.

        Bytes that are no UTF-8 are U+FFFD; a missing value or a malformed line is "".
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


def open_rows(
    entries: list[str],
    column: str | None = None,
    separator: str | None = None,
    header: bool | None = None,
    keep: list[str] | None = None,
) -> Rows:
    """The rows of `entries` in the order given; the first time they are copied to the cache, as Arrow files.

    Args:
        entries: as `data.files` of a recipe, as `separator` and `header` are.
        column: of the sentences; None for `text`, `sentence` or the only column of text.
        keep: columns that are carried along as they are.

    Raises:
        InputError: missing, unknown or malformed file; no such column.
    """
    data = DataRecipe(files=entries, columns=[column] if column else None, separator=separator, header=header)
    sources = find_sources(data)
    cache = cache_folder(data)
    folder = cache / f"rows-{corpus_fingerprint(data)}"
    parts = []
    for source in sources:
        source.check()
    kept = open_kept(sources, keep, folder, cache) if keep else None  # a name that is wrong is told before the copying
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
    # JSON can escape half characters (lone surrogates), which no tokenizer takes
    return _plain((value or "").encode("utf-16", "surrogatepass").decode("utf-16", ERRORS))
