"""Where sentences come from: files of several formats, a Hub dataset, the embedded grammar; as raw rows."""

from __future__ import annotations

import functools
import glob
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from diffcse_scale.foundation.errors import InputError, shown
from diffcse_scale.recipe import EMBEDDED
from diffcse_scale.text import remote
from diffcse_scale.text.cache import cache_folder, fingerprint, num_proc
from diffcse_scale.text.contents import check_content
from diffcse_scale.text.formats import COMPRESSIONS, ENDINGS, FORMATS, LINE, Format, Parse, format_of

HUB = "hub"
# name, name:split or name:config:split
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?(:[\w.+-]+){0,2}")
USUAL_COLUMNS = ("text", "sentence")
EMBEDDED_SENTENCES = 20_000


@dataclass(frozen=True)
class Source:
    """Files of one format of `FORMATS`, or one Hub dataset, or `size` sentences of the embedded grammar."""

    format: str
    names: tuple[str, ...]
    size: int = 0
    seed: int = 0

    def __str__(self) -> str:
        more = f" and {len(self.names) - 3} more" if len(self.names) > 3 else ""
        return ", ".join(map(remote.origin, self.names[:3])) + more

    @property
    def of_files(self) -> Format | None:
        """The format; None of what is in no file."""
        return FORMATS.get(self.format)

    @property
    def parse(self) -> Parse | None:
        """What finds the columns in a row, where rows are lines."""
        return self.of_files.parse if self.of_files else None

    def identity(self) -> list[Any]:
        """What changes when the content does. A Hub dataset is taken to stay as it is."""
        if self.format == HUB:
            return [HUB, *self.names]
        if self.format == EMBEDDED:  # the sentences, because the grammar may change
            return [EMBEDDED, fingerprint(_embedded(self.size, self.seed))]
        return [self.format, *(remote.identity(name) or _state(name) for name in self.names)]

    def check(self) -> None:
        """Raises InputError where the first bytes of a file are not those of its format."""
        if self.of_files is not None:
            for name in self.names:
                check_content(name, self.of_files)

    def read(self, columns: list[str] | None, cache: Path, workers: int) -> tuple[datasets.Dataset, tuple[str, ...]]:
        """All rows in the order of the files, and the names of the columns that hold sentences.

        Where there is a `parse` the rows are unparsed lines, in one column `text`.

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
        names = choose_columns(remote.origin(self.names[0]), types, columns)
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
        where = remote.origin(name)
        return f"{where}, {self.of_files.place(name, row) if self.of_files else f'row {row + 1}'}"

    def _from_hub(self) -> datasets.Dataset:
        name, *rest = self.names[0].split(":")
        split = rest[-1] if rest else "train"
        config = rest[0] if len(rest) == 2 else None
        try:
            return datasets.load_dataset(name, config, split=split)
        except Exception as error:  # the Hub's client raises exceptions of several libraries
            raise InputError(
                f"Corpus {shown(self.names[0])} is no file here, and as a Hub dataset (name, name:split or "
                f"name:config:split) it cannot be loaded: {_one_line(error)}"
            ) from None

    def _column_types(self) -> dict[str, str]:
        try:
            return FORMATS[self.format].column_types(self.names)
        except InputError:
            raise
        except Exception as error:  # the decompressors raise exceptions of several libraries
            raise InputError(f"Corpus {self} is not valid {self.format}: {_one_line(error)}") from None

    def _from_files(self, columns: tuple[str, ...], cache: Path, workers: int) -> datasets.Dataset:
        processes = num_proc(workers, len(self.names), rows_per_worker=1)
        try:
            prepared = FORMATS[self.format].builder(self.names, columns, cache)
            prepared.download_and_prepare(num_proc=processes)
        except (OSError, EOFError, ValueError, datasets.exceptions.DatasetsError) as error:
            if processes:  # what another process raises comes without its cause
                return self._from_files(columns, cache, 1)
            if isinstance(error.__cause__, InputError):
                raise error.__cause__ from None
            raise InputError(f"Corpus {self} cannot be read as {self.format}: {_one_line(error)}") from None
        if not prepared.info.splits["train"].num_examples:
            return datasets.Dataset.from_dict({name: [] for name in (*columns, LINE)})
        return prepared.as_dataset(split="train")


def find_sources(entries: list[str], size: int | None = None, seed: int = 0, cache: Path | None = None) -> list[Source]:
    """Turn paths, globs, addresses, Hub names and 'embedded' into sources, in the order given.

    Args:
        entries: `data.files` of a recipe.
        size: number of sentences for 'embedded', EMBEDDED_SENTENCES if None.
        seed: that of 'embedded'.
        cache: where remote files are copied to; the default cache if None.

    Raises:
        InputError: missing file, glob without a match, folder, unknown format.
    """
    sources: list[Source] = []
    for entry in entries:
        if entry == EMBEDDED:
            sources.append(Source(EMBEDDED, (entry,), size or EMBEDDED_SENTENCES, seed))
            continue
        for name in _files(entry, cache):
            kind = format_of(name).name if Path(name).exists() else HUB
            if kind != HUB and sources and sources[-1].format == kind:
                sources[-1] = Source(kind, (*sources[-1].names, name))
            else:
                sources.append(Source(kind, (name,)))
    return sources


def check_names(entries: list[str]) -> None:
    """Look for misspelt names among `data.files`, before anything takes long; remote ones are met when they are read.

    Raises:
        InputError: as `find_sources`, for what lies on this machine.
    """
    find_sources([entry for entry in entries if not remote.is_remote(entry)])


def choose_columns(where: str, types: dict[str, str], wanted: list[str] | None) -> tuple[str, ...]:
    """The columns to train on: those wanted; else the one called `text` or `sentence`, or the only one of strings.

    Columns of type 'null' may be asked for, and count where there is no other.

    Raises:
        InputError: a wanted column is missing or holds no strings; or the choice is not clear.
    """
    strings = [name for name, kind in types.items() if kind in ("string", "large_string", "string_view")]
    nothing = [name for name, kind in types.items() if kind == "null"]
    strings = strings or nothing
    there = f"its columns are {', '.join(types) or 'none'}: set data.columns"
    for name in wanted or ():
        if name not in types:
            raise InputError(f"Corpus {where} has no column {shown(name)}; {there}.")
        if name not in (*strings, *nothing):
            raise InputError(f"Corpus {where}: column {shown(name)} holds {types[name]}, not text; {there}.")
    if wanted:
        return tuple(wanted)
    candidates = [name for name in USUAL_COLUMNS if name in strings] or strings
    if len(candidates) == 1:
        return tuple(candidates)
    if candidates[:2] == list(USUAL_COLUMNS):
        raise InputError(f"Corpus {where} has a column called text and one called sentence; {there}.")
    count = f"{len(strings)} columns" if strings else "no column"
    raise InputError(f"Corpus {where} has {count} of text and none called text or sentence; {there}.")


def _files(entry: str, cache: Path | None) -> list[str]:
    """Absolute paths of the files that a path or glob names; what can only be a Hub name as it is.

    Links keep their names, which say the format: in the Hub's cache what they point to has no ending.
    """
    if remote.is_remote(entry):
        return remote.copy_files(entry, cache or cache_folder(), check=format_of)
    path = Path(entry).expanduser()
    if path.is_file():
        return [str(path.absolute())]
    if path.is_dir():
        example = entry.rstrip("/") + "/*.txt"
        raise InputError(f"Corpus {entry} is a folder; name its files, for example {example}.")
    if glob.has_magic(entry):
        files = sorted(str(Path(match).absolute()) for match in glob.iglob(str(path), recursive=True))
        files = [name for name in files if Path(name).is_file()]
        if not files:
            raise InputError(f"Corpus {entry}: no file matches.")
        return files
    if not HUB_NAME.fullmatch(entry) or path.suffix.lower() in (*ENDINGS, *COMPRESSIONS):
        raise InputError(f"Corpus {entry}: no such file.")
    return [entry]


def _state(name: str) -> list[Any]:
    state = Path(name).stat()
    return [str(Path(name).resolve()), state.st_size, state.st_mtime_ns]


@functools.cache
def _embedded(size: int, seed: int) -> list[str]:
    from diffcse_scale.embedded.grammar import training_sentences

    return training_sentences(size, seed)


def _one_line(error: BaseException) -> str:
    cause = error.__cause__ or error
    return " ".join(str(cause).split())[:300] or type(cause).__name__
