"""Where sentences come from: files of several formats, a Hub dataset, the embedded grammar; as raw rows."""

from __future__ import annotations

import functools
import glob
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet

from diffcse_scale.errors import InputError
from diffcse_scale.recipe import EMBEDDED
from diffcse_scale.text import delimited
from diffcse_scale.text.cache import fingerprint, num_proc

FORMATS = {
    ".txt": "text",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
SEPARATORS = {"csv": ",", "tsv": "\t"}
COMPRESSIONS = (".gz", ".xz", ".zst", ".bz2")
HUB = "hub"
# name, name:split or name:config:split
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?(:[\w.+-]+){0,2}")
USUAL_COLUMNS = ("text", "sentence")
EMBEDDED_SENTENCES = 20_000
TEXT = datasets.Value("string")


@dataclass(frozen=True)
class Source:
    """Files of one format, or one Hub dataset, or `size` sentences of the embedded grammar."""

    format: str
    names: tuple[str, ...]
    size: int = 0
    seed: int = 0

    def __str__(self) -> str:
        more = f" and {len(self.names) - 3} more" if len(self.names) > 3 else ""
        return ", ".join(self.names[:3]) + more

    def identity(self) -> list[Any]:
        """What changes when the content does. A Hub dataset is taken to stay as it is."""
        if self.format == HUB:
            return [HUB, *self.names]
        if self.format == EMBEDDED:  # the sentences, because the grammar may change
            return [EMBEDDED, fingerprint(_embedded(self.size, self.seed))]
        states = [(name, Path(name).stat()) for name in self.names]
        return [self.format, *([name, state.st_size, state.st_mtime_ns] for name, state in states)]

    def read(self, columns: list[str] | None, cache: Path, workers: int) -> tuple[datasets.Dataset, tuple[str, ...]]:
        """All rows in the order of the files, and the names of the columns that hold sentences.

        The rows of a JSON-lines source are its unparsed lines, in one column `text`. Bytes that are not UTF-8
        are read as U+FFFD.

        Raises:
            InputError: unreadable or malformed file, no such column, no text column.
        """
        if self.format == EMBEDDED:
            return datasets.Dataset.from_dict({"text": _embedded(self.size, self.seed)}), ("text",)
        if self.format == HUB:
            rows = self._from_hub()
            types = {name: str(getattr(feature, "dtype", feature)) for name, feature in rows.features.items()}
        else:
            types = self._column_types()
        names = choose_columns(self.names[0], types, columns)
        if self.format == HUB:
            return rows.select_columns(list(names)), names
        return self._from_files(names, cache, workers), names

    def place(self, row: int, columns: tuple[str, ...], cache: Path) -> str:
        """`file, line n` of row `row` (from 0). Reads several files again one by one: for error messages."""
        for name in self.names[:-1]:
            rows_here = len(Source(self.format, (name,))._from_files(columns, cache, 1))
            if row < rows_here:
                break
            row -= rows_here
        else:
            name = self.names[-1]
        if self.format in SEPARATORS:
            return f"{name}, line {delimited.line_number(name, SEPARATORS[self.format], row)}"
        return f"{name}, {'line' if self.format in ('text', 'json') else 'row'} {row + 1}"

    def _from_hub(self) -> datasets.Dataset:
        name, *rest = self.names[0].split(":")
        split = rest[-1] if rest else "train"
        config = rest[0] if len(rest) == 2 else None
        try:
            return datasets.load_dataset(name, config, split=split)
        except Exception as error:  # the Hub's client raises exceptions of several libraries
            raise InputError(
                f"Corpus {self.names[0]!r} is no file here, and as a Hub dataset (name, name:split or "
                f"name:config:split) it cannot be loaded: {_one_line(error)}"
            ) from None

    def _column_types(self) -> dict[str, str]:
        """Column to type, from the first file; what looks like text is 'string'."""
        first = self.names[0]
        try:
            if self.format == "parquet":
                return {field.name: str(field.type) for field in pyarrow.parquet.read_schema(first)}
            if self.format == "json":
                return _json_types(first)
            if self.format in SEPARATORS:
                return delimited.columns(first, SEPARATORS[self.format])
        except (OSError, EOFError, ValueError, AttributeError) as error:
            raise InputError(f"Corpus file {first} is not valid {self.format}: {_one_line(error)}") from None
        return {"text": "string"}

    def _from_files(self, columns: tuple[str, ...], cache: Path, workers: int) -> datasets.Dataset:
        if self.format in SEPARATORS:
            builder, options = "csv", delimited.builder_options(self.names[0], SEPARATORS[self.format])
        elif self.format == "parquet":
            builder, options = "parquet", {"columns": list(columns)}
        else:
            builder, options = "text", {**delimited.DECODING, "features": datasets.Features({"text": TEXT})}
        files = [glob.escape(name) for name in self.names]
        try:
            prepared = datasets.load_dataset_builder(builder, data_files=files, cache_dir=str(cache), **options)
            prepared.download_and_prepare(num_proc=num_proc(workers, len(files), rows_per_worker=1))
        except (OSError, EOFError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise InputError(f"Corpus {self} cannot be read as {self.format}: {_one_line(error)}") from None
        if not prepared.info.splits["train"].num_examples:
            return datasets.Dataset.from_dict({name: [] for name in (*columns, "text")})
        return prepared.as_dataset(split="train")


def find_sources(entries: list[str], size: int | None = None, seed: int = 0) -> list[Source]:
    """Turn paths, globs, Hub names and 'embedded' into sources, in the order given.

    Args:
        entries: `data.files` of a recipe.
        size: number of sentences for 'embedded', EMBEDDED_SENTENCES if None.
        seed: that of 'embedded'.

    Raises:
        InputError: missing file, glob without a match, folder, unknown format.
    """
    sources: list[Source] = []
    for entry in entries:
        if entry == EMBEDDED:
            sources.append(Source(EMBEDDED, (entry,), size or EMBEDDED_SENTENCES, seed))
            continue
        for name in _files(entry):
            kind = _format_of(name) if Path(name).exists() else HUB
            if kind != HUB and sources and sources[-1].format == kind:
                sources[-1] = Source(kind, (*sources[-1].names, name))
            else:
                sources.append(Source(kind, (name,)))
    return sources


def choose_columns(where: str, types: dict[str, str], wanted: list[str] | None) -> tuple[str, ...]:
    """The columns to train on: those wanted; else `text`, `sentence`, or the only one that holds strings.

    Raises:
        InputError: a wanted column is missing or holds no strings; or the choice is not clear.
    """
    strings = [name for name, kind in types.items() if kind in ("string", "large_string", "string_view")]
    there = f"its columns are {', '.join(types) or 'none'}: set data.columns"
    for name in wanted or ():
        if name not in types:
            raise InputError(f"Corpus {where} has no column {name!r}; {there}.")
        if name not in strings:
            raise InputError(f"Corpus {where}: column {name!r} holds {types[name]}, not text; {there}.")
    if wanted:
        return tuple(wanted)
    usual = [name for name in USUAL_COLUMNS if name in strings]
    if usual or len(strings) == 1:
        return tuple((usual or strings)[:1])
    count = f"{len(strings)} columns" if strings else "no column"
    raise InputError(f"Corpus {where} has {count} of text and none called text or sentence; {there}.")


def _files(entry: str) -> list[str]:
    """Absolute paths of the files that a path or glob names; what can only be a Hub name as it is."""
    path = Path(entry).expanduser()
    if path.is_file():
        return [str(path.resolve())]
    if path.is_dir():
        example = entry.rstrip("/") + "/*.txt"
        raise InputError(f"Corpus {entry} is a folder; name its files, for example {example}.")
    if glob.has_magic(entry):
        files = sorted(str(Path(match).resolve()) for match in glob.iglob(str(path), recursive=True))
        files = [name for name in files if Path(name).is_file()]
        if not files:
            raise InputError(f"Corpus {entry}: no file matches.")
        return files
    if not HUB_NAME.fullmatch(entry) or path.suffix.lower() in (*FORMATS, *COMPRESSIONS):
        raise InputError(f"Corpus {entry}: no such file.")
    return [entry]


def _format_of(name: str) -> str:
    """By the ending; a file without one is text."""
    path = Path(name.lower())
    suffix = path.with_suffix("").suffix if path.suffix in COMPRESSIONS else path.suffix
    if suffix and suffix not in FORMATS:
        known = ", ".join(FORMATS)
        raise InputError(f"Corpus file {name}: unknown ending {suffix}; known are {known}, also compressed.")
    return FORMATS[suffix or ".txt"]


def _json_types(name: str) -> dict[str, str]:
    with delimited.open_text(name) as lines:
        record = json.loads(next((line for line in lines if line.strip()), "{}"))
    return {
        key: "string" if value is None or isinstance(value, str) else type(value).__name__
        for key, value in record.items()
    }


@functools.cache
def _embedded(size: int, seed: int) -> list[str]:
    from diffcse_scale.embedded.grammar import training_sentences

    return training_sentences(size, seed)


def _one_line(error: BaseException) -> str:
    cause = error.__cause__ or error
    return " ".join(str(cause).split())[:300] or type(cause).__name__
