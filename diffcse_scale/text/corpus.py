"""From files to clean, distinct sentences: a memory-mapped `datasets.Dataset` of any size."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.recipe import DataRecipe
from diffcse_scale.text.arrow_files import TEXT, open_arrow
from diffcse_scale.text.cache import cache_folder, fingerprint, num_proc, workers
from diffcse_scale.text.duplicates import first_occurrences, row_hash
from diffcse_scale.text.formats import LINE, Parse
from diffcse_scale.text.prepared import prepared
from diffcse_scale.text.sources import Source, find_sources
from diffcse_scale.text.undecodable import undecodable
from diffcse_scale.text.unknown import percent

log = logging.getLogger(__name__)

# part of every cached name; increase it when cleaning changes
CLEANING = 3
# A corpus with a larger share of rows that are not UTF-8 is refused: what is left would not be what it is about.
MOST_UNDECODABLE = 0.5
FIRST, LONGEST_SHOWN = 3, 80  # rows that are shown, and characters of each


class Flaw(IntEnum):
    """Why a row is left out of the corpus."""

    NONE = 0
    EMPTY = 1
    UNDECODABLE = 2
    MALFORMED = 3


@dataclass(frozen=True)
class CorpusReport:
    """Rows read = empty + undecodable + duplicate + unused (beyond `data.limit`) + kept.

    `columns` are the column names of a row's sentences in the first file; empty in reports of earlier versions.
    """

    read: int
    empty: int
    undecodable: int
    duplicate: int
    unused: int
    kept: int
    columns: Sequence[str] = field(default=(), compare=False)

    @property
    def pairs(self) -> str:
        """The role of each column, as text; empty if there is only one column."""
        roles = ("sentence", "positive", "hard negative")[: len(self.columns)]
        what = [f"{column} is the {role}" for column, role in zip(self.columns, roles, strict=True)]
        return ", ".join(what) if len(what) > 1 else ""

    @property
    def level(self) -> int:
        """The log level: a warning if anything was dropped."""
        return logging.WARNING if self.empty or self.undecodable or self.duplicate else logging.DEBUG

    def __str__(self) -> str:
        """One line with what was dropped and why."""
        dropped = [("empty", self.empty), ("undecodable", self.undecodable), ("identical", self.duplicate)]
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in dropped if count)
        beyond = f", {self.unused:,} beyond data.limit" if self.unused else ""
        return f"{self.read:,} rows read, {self.kept:,} kept; dropped: {reasons or 'none'}{beyond}"


def load_corpus(data: DataRecipe, *, seed: int = 0) -> datasets.Dataset:
    """The cleaned sentences that `data` names, in the order of the files. Logs one line about what was dropped.

    Returns:
        Dataset with the string column `text_0` (sentences). It also has `text_1` (pairs) and `text_2` (hard negatives)
        if `data.columns` names two or three columns, or if the columns have the usual names. Surrounding white
        space is stripped. Rows that are empty or undecodable in one of the columns, and repetitions of an earlier row,
        are left out.

    Raises:
        InputError: missing or malformed file, no text column, no sentence left, or more than MOST_UNDECODABLE of the
            rows undecodable; with `data.strict` the first empty or undecodable row, with its file and line.
    """
    corpus, report = read_corpus(data, seed=seed)
    log.log(report.level, "Corpus %s: %s.", ", ".join(data.files), report)
    return corpus


def read_corpus(data: DataRecipe, *, seed: int = 0) -> tuple[datasets.Dataset, CorpusReport]:
    """`load_corpus` with its report and without the log line. `seed` is for the embedded grammar."""
    sources = find_sources(data, seed)
    folder = cache_folder(data) / f"corpus-{corpus_fingerprint(data, seed=seed)}"
    for source in sources:
        source.check()
    parts = [_cleaned(source, data, folder, index) for index, source in enumerate(sources)]
    whole = [(source, *part) for source, part in zip(sources, parts, strict=True) if len(part[0])]
    if not whole:
        raise InputError(f"Corpus {', '.join(data.files)} is empty.")
    parts, names = [rows for _, rows, _ in whole], whole[0][2]
    for source, _, others in whole:
        if len(others) != len(names):
            raise InputError(
                f"Corpus {source} has {' and '.join(others)}, and {whole[0][0]} has {' and '.join(names)}; train on "
                "files of sentences, of pairs or of triples, not of several kinds."
            )
    rows = datasets.concatenate_datasets(parts)
    flaws, keep = _column(rows, "flaw"), first_occurrences(_column(rows, "hash"))
    keep &= flaws == Flaw.NONE
    empty, undecodable = (int((flaws == flaw).sum()) for flaw in (Flaw.EMPTY, Flaw.UNDECODABLE))
    if undecodable > MOST_UNDECODABLE * len(rows):
        raise InputError(
            f"Corpus {', '.join(data.files)}: {percent(undecodable / len(rows))} of its rows are not UTF-8; convert "
            "it, for example with `iconv -f WINDOWS-1252 -t UTF-8`."
        )
    distinct = np.flatnonzero(keep)
    kept = distinct[: data.limit]
    report = CorpusReport(
        read=len(rows),
        empty=empty,
        undecodable=undecodable,
        duplicate=len(rows) - empty - undecodable - len(distinct),
        unused=len(distinct) - len(kept),
        kept=len(kept),
        columns=names,
    )
    if not report.kept:
        raise InputError(f"Corpus {', '.join(data.files)} has no usable sentence: {report}.")
    corpus = rows if len(kept) == len(rows) else rows.select(kept)
    return corpus.remove_columns(["flaw", "hash"]), report


def first_rows(corpus: datasets.Dataset) -> list[str]:
    """The first rows as they were read, one line each, so that a person can check that they are sentences."""
    rows = [
        "   |   ".join(" ".join(text.split()) for text in row.values())
        for row in corpus.select(range(min(len(corpus), FIRST)))
    ]
    return [shortened(row) for row in rows]


def shortened(row: str) -> str:
    """As much of a row as fits on a line of a terminal."""
    return row if len(row) <= LONGEST_SHOWN else row[:LONGEST_SHOWN] + "..."


def corpus_fingerprint(data: DataRecipe, *, seed: int = 0) -> str:
    """A fingerprint that changes when the content of a file, the columns or the cleaning change."""
    sources = find_sources(data, seed)
    return fingerprint(CLEANING, data.columns, [source.identity(cache_folder(data)) for source in sources])


def _cleaned(source: Source, data: DataRecipe, folder: Path, index: int) -> tuple[datasets.Dataset, tuple[str, ...]]:
    """All rows of source number `index`, stripped, with their `flaw` and `hash`, and the names of their columns.

    Raises:
        InputError: a malformed row; with `data.strict` an empty or undecodable one.
    """
    cache = cache_folder(data)

    def make(fresh: Path) -> None:
        raw, columns = source.read(data.columns, folder / f"rows-{index}", cache, workers(data))
        fresh.mkdir()
        if len(raw):
            _clean(raw, columns, source.parse, data, fresh)

    rows, names = prepared(folder / f"cleaned-{index}", cache, open_arrow, make), source.columns(data.columns)
    flaws = _column(rows, "flaw") if len(rows) else np.zeros(0)
    refused = flaws != Flaw.NONE if data.strict else flaws == Flaw.MALFORMED
    if refused.any():
        first = int(refused.argmax())
        flaw, where = Flaw(int(flaws[first])), source.place(first, names)
        if source.of_files and flaw == Flaw.MALFORMED:
            raise InputError(f"Corpus file {where}: {source.of_files.malformed.format(' and '.join(names))}.")
        raise InputError(f"Corpus file {where}: {flaw.name.lower()}; fix it, or set data.strict=false to skip it.")
    return rows, names


def _clean(raw: datasets.Dataset, names: Sequence[str], parse: Parse | None, data: DataRecipe, folder: Path) -> None:
    """Clean the rows of a source and write them to `folder`."""
    raw.map(
        _clean_batch,
        batched=True,
        batch_size=rows_at_once(raw),
        fn_kwargs={"names": names, "parse": parse},
        remove_columns=raw.column_names,
        features=datasets.Features(
            {f"text_{index}": TEXT for index in range(len(names))}
            | {"flaw": datasets.Value("int8"), "hash": datasets.Value("int64")}
        ),
        num_proc=num_proc(workers(data), len(raw)),
        cache_file_name=str(folder / "clean.arrow"),
        new_fingerprint=fingerprint(CLEANING, str(folder)),
        desc="cleaning",
    )


def rows_at_once(rows: datasets.Dataset) -> int:
    """The number of rows to process at once: 16 MiB on average, because a row may be a book, and at most 1,000."""
    return max(1, min(1_000, 2**24 * len(rows) // max(1, rows.data.nbytes)))


def _clean_batch(batch: dict[str, list[Any]], names: Sequence[str], parse: Parse | None) -> dict[str, list[Any]]:
    if parse:
        rows = [_parsed(line, names, parse) for line in batch[LINE]]
    else:
        rows = [_strip(values) for values in zip(*(batch[name] for name in names), strict=True)]
    return {f"text_{column}": [texts[column] for texts, _ in rows] for column in range(len(names))} | {
        "flaw": [int(flaw) for _, flaw in rows],
        "hash": [row_hash("\0".join(texts).encode()) for texts, _ in rows],
    }


def _parsed(line: str, names: Sequence[str], parse: Parse) -> tuple[list[str], Flaw]:
    """The texts of a line; a missing one counts as empty."""
    if undecodable(line):
        return [""] * len(names), Flaw.UNDECODABLE
    try:
        return _strip(parse(line, names))
    except ValueError:
        return [""] * len(names), Flaw.MALFORMED


def _strip(values: Sequence[str | None]) -> tuple[list[str], Flaw]:
    """The texts of a row without surrounding white space, and its flaw; with a flaw the texts are empty."""
    texts = [(value or "").strip() for value in values]
    flaw = Flaw.NONE if all(texts) else Flaw.EMPTY
    if any(map(undecodable, texts)):
        flaw = Flaw.UNDECODABLE
    return ([""] * len(texts) if flaw else texts), flaw


def _column(rows: datasets.Dataset, name: str) -> np.ndarray:
    """A numeric column of a dataset as it was written, without any selection."""
    return rows.data.column(name).to_numpy()
