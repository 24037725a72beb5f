"""The sources of sentences, as raw rows: files of several formats, a Hub dataset, the embedded grammar."""

from __future__ import annotations

import functools
import glob
import os
import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets

from diffcse_scale.foundation.errors import InputError, nearest, one_line, quoted
from diffcse_scale.foundation.paths import given_path, refuse_stream
from diffcse_scale.recipe import EMBEDDED, DataRecipe
from diffcse_scale.text import hub_dataset, remote
from diffcse_scale.text.arrow_files import open_arrow, write_arrow
from diffcse_scale.text.cache import cache_folder, fingerprint, num_proc
from diffcse_scale.text.contents import check_content
from diffcse_scale.text.digests import digest
from diffcse_scale.text.formats import (
    COMPRESSIONS,
    ENDINGS,
    FORMATS,
    Delimited,
    Format,
    Parse,
    format_of,
)
from diffcse_scale.text.prepared import prepared
from diffcse_scale.text.table_layout import NOTHING_KNOWN, USUAL_COLUMNS, USUAL_PAIRS, Layout

HUB = "hub"
# name, name:split or name:config:split
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?(:[\w.+-]+){0,2}")
EMBEDDED_SENTENCES = 20_000
GRADES = ("label", "labels", "score", "scores", "similarity")  # columns that grade pairs as similar or not
# names of columns that hold several texts in a list, and of negatives that several columns hold
TEXTS_OF_PAIRS = re.compile(r"(hard_)?(pos|neg|positive|negative)s?(_\w+)?")
NUMBERED_NEGATIVE = re.compile(r"(hard_)?(neg|negative)s?_?\d+")


@dataclass(frozen=True)
class Source:
    """Files of one format, or one Hub dataset, or `size` sentences of the embedded grammar.

    Attributes:
        format: a name of `FORMATS`, `HUB` or `EMBEDDED`.
        layout: the known layout of text tables.
    """

    format: str
    names: tuple[str, ...]
    size: int = 0
    seed: int = 0
    layout: Layout = NOTHING_KNOWN

    def __str__(self) -> str:
        more = f" and {len(self.names) - 3} more" if len(self.names) > 3 else ""
        return ", ".join(map(remote.origin, self.names[:3])) + more

    @property
    def of_files(self) -> Format | None:
        """The format of the files; None for a source without files."""
        kind = FORMATS.get(self.format)
        return kind and kind.laid_out(self.layout)

    @property
    def parse(self) -> Parse | None:
        """The function that finds the columns in a line; None if rows are not lines."""
        return self.of_files.parse if self.of_files else None

    def identity(self, cache: Path) -> list[Any]:
        """A value that changes if and only if the content does. A Hub dataset is assumed not to change.

        Args:
            cache: keeps the digests of files.
        """
        if self.format == HUB:
            return [HUB, *self.names]
        if self.format == EMBEDDED:  # hash the sentences, because the grammar may change
            return [EMBEDDED, fingerprint(_embedded(self.size, self.seed))]
        assert self.of_files is not None
        return [*self.of_files.identity(), *(digest(Path(name), cache) for name in self.names)]

    def earlier_identity(self) -> list[Any]:
        """`identity` as in earlier versions, to continue what they began: a file's path, size and time."""
        if self.format in (HUB, EMBEDDED):
            return self.identity(Path())
        return [self.format, *(remote.identity(name) or _state(name) for name in self.names)]

    def check(self) -> None:
        """Raise InputError if the first bytes of a file do not fit its format."""
        if self.of_files is not None:
            for name in self.names:
                check_content(name, self.of_files)

    def read(
        self, columns: list[str] | None, place: Path, cache: Path, workers: int, one: bool = False
    ) -> tuple[datasets.Dataset, tuple[str, ...]]:
        """All rows in the order of the files, and the names of the columns with sentences.

        If the source has a `parse`, the rows are unparsed lines in one column `text`.

        Args:
            place: where the cache keeps the rows of files.
            one: as in `choose_columns`.

        Raises:
            InputError: unreadable or malformed file, no such column, or no text column.
        """
        names = self.columns(columns, one)
        if self.format == EMBEDDED:
            return datasets.Dataset.from_dict({"text": _embedded(self.size, self.seed)}), names
        if self.of_files is None:
            return self.hub_rows().select_columns(list(names)), names
        return prepared(place, cache, open_arrow, partial(self._write, names, workers)), names

    def columns(self, wanted: list[str] | None, one: bool = False) -> tuple[str, ...]:
        """The names of the columns with sentences. For files they are found from the first rows.

        Raises:
            InputError: as `choose_columns`, or a file is unreadable.
        """
        if self.format == EMBEDDED:
            return ("text",)
        return choose_columns(remote.origin(self.names[0]), self.column_types(), wanted, one)

    def column_types(self) -> dict[str, str]:
        """The type of each column, as in `Format.column_types`; not for the embedded grammar."""
        if self.of_files is None:
            return {name: _kind(feature) for name, feature in self.hub_rows().features.items()}
        return self.of_files.column_types(self.names)

    def place(self, row: int, columns: tuple[str, ...]) -> str:
        """`file, line n` of row `row` (from 0), for error messages. Slow: several files are read again one by one."""
        for name in self.names[:-1]:
            assert self.of_files is not None
            rows_here = sum(len(texts[0]) for texts in self.of_files.tables(name, columns))
            if row < rows_here:
                break
            row -= rows_here
        else:
            name = self.names[-1]
        where = remote.origin(name)
        return f"{where}, {self.of_files.place(name, row) if self.of_files else f'row {row + 1}'}"

    def hub_rows(self) -> datasets.Dataset:
        """All rows and columns of a Hub dataset.

        Raises:
            InputError: the dataset cannot be loaded.
        """
        entry = self.names[0]
        try:
            return hub_dataset.load(entry)
        except Exception as error:  # the Hub's client raises exceptions of several libraries
            raise InputError(
                f"Corpus {entry!r} is not a file here{nearest(Path(entry).name, _beside(entry))}, and as a Hub dataset "
                f"(name, name:split or name:config:split) it cannot be loaded: {one_line(error.__cause__ or error)}"
            ) from None

    def _write(self, columns: tuple[str, ...], workers: int, folder: Path) -> None:
        """Write all rows of the files as Arrow files."""
        assert self.of_files is not None
        try:
            write_arrow(self.of_files, self.names, columns, folder, num_proc(workers, len(self.names), 1))
        except InputError as error:
            raise InputError(*error.args) from None  # drop the traceback of another process
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            # not caused by the files: a full disk, or a process that was killed
            raise InputError(
                f"Corpus {self} cannot be copied to {folder.parent}: {one_line(error.__cause__ or error)}."
            ) from None


def find_sources(data: DataRecipe, seed: int = 0) -> list[Source]:
    """Turn the paths, globs, addresses, Hub names and 'embedded' of `data.files` into sources, in the order given.

    Args:
        seed: the seed for 'embedded', which has `data.limit` or EMBEDDED_SENTENCES sentences.

    Raises:
        InputError: missing file, glob without a match, folder, unknown format, or a layout without a table.
    """
    layout = Layout(data.separator, data.header, tuple(data.columns or ()))
    sources: list[Source] = []
    for entry in data.files:
        if entry == EMBEDDED:
            sources.append(Source(EMBEDDED, (entry,), data.limit or EMBEDDED_SENTENCES, seed))
            continue
        for name in _files(entry, data):
            kind = format_of(name).name if Path(name).exists() else HUB
            if kind != HUB and sources and sources[-1].format == kind:
                sources[-1] = replace(sources[-1], names=(*sources[-1].names, name))
            else:
                sources.append(Source(kind, (name,), layout=layout))
    for key in ("separator", "header"):
        if getattr(data, key) is not None and not any(isinstance(source.of_files, Delimited) for source in sources):
            raise InputError(
                f"data.{key} applies to files named .csv or .tsv, but {', '.join(data.files)} is not one; rename the "
                f"file, or remove data.{key}."
            )
    return sources


def check_names(data: DataRecipe) -> None:
    """Look for misspelt names among the local `data.files`, and check the cache, before anything takes long.

    Remote files are not checked until they are read.

    Raises:
        InputError: as `find_sources`, for files on this machine; as `cache_folder`.
    """
    cache_folder(data)
    local = [entry for entry in data.files if not remote.is_remote(entry)]
    if len(local) == len(data.files):
        find_sources(data)
    elif local:
        find_sources(DataRecipe(files=local))


def choose_columns(where: str, types: dict[str, str], wanted: list[str] | None, one: bool = False) -> tuple[str, ...]:
    """The columns to train on: the wanted ones; else `text` or `sentence`, the only string column, or a usual pair.

    Columns of type 'null' may be asked for. They are considered otherwise only if there is no string column. A number
    that is not a column's name is a position, from 1.

    Args:
        one: exactly one column is read (option `--column`), so pairs are not considered.

    Raises:
        InputError: a wanted column is missing or has no strings, or the choice is ambiguous.
    """
    nothing = [name for name, kind in types.items() if kind == "null"]
    strings = [name for name, kind in types.items() if kind == "string"] or nothing
    listed = [name if name in (*strings, *nothing) else f"{name} ({kind})" for name, kind in types.items()]
    there = f"its columns are {', '.join(listed)}"
    if not types:
        raise InputError(f"Corpus {where} is empty.")
    if not strings:
        raise InputError(f"Corpus {where} has no column of text; {there}.")
    remedy = "give --column" if one else "set data.columns"
    there += f": {remedy}"
    wanted = [_in_place(name, list(types)) for name in wanted or ()]
    for name in wanted:
        if name not in types:
            raise InputError(f"Corpus {where} has no column {quoted(name)}; {there}.")
        if name not in (*strings, *nothing):
            raise InputError(f"Corpus {where}: column {quoted(name)} holds {types[name]}, not text; {there}.")
    if twice := next((name for name in wanted if wanted.count(name) > 1), None):
        raise InputError(
            f"Corpus {where}: column {quoted(twice)} is asked for twice; give it once: the two views of a sentence are "
            "made from one column."
        )
    if wanted:
        return tuple(wanted)
    candidates = [name for name in USUAL_COLUMNS if name in strings] or strings
    pair = () if one or candidates != strings else _usual_pair(strings)
    if chosen := tuple(candidates) if len(candidates) == 1 else pair:
        if not one and chosen[0] not in USUAL_COLUMNS:
            _check_beside(where, types, chosen)
        return chosen
    both = candidates[:2] == list(USUAL_COLUMNS)
    what = "a column called text and one called sentence" if both else f"{len(strings)} columns of text"
    unclear = what if both else f"{what} and none called text or sentence"
    raise InputError(f"Corpus {where} has {unclear}; {there}.")


def _check_beside(where: str, types: dict[str, str], chosen: tuple[str, ...]) -> None:
    """Refuse columns that nobody named if those beside them belong to the same rows, or say that pairs are unlike.

    Raises:
        InputError: grades of pairs, lists of positives or negatives (as FlagEmbedding's), or further negatives.
    """
    these, columns = " and ".join(chosen), ",".join(chosen)
    grades = [name for name in types if name.lower() in GRADES]
    if grades and len(chosen) > 1:
        raise InputError(
            f"Corpus {where} has a column {quoted(grades[0])} beside {these}, which suggests that not all pairs are "
            f"similar; if they are, set data.columns={columns}."
        )
    for name, kind in types.items():
        if "list" in kind.lower() and TEXTS_OF_PAIRS.fullmatch(name.lower()):
            raise InputError(
                f"Corpus {where} has a column {quoted(name)} beside {these}, which holds lists and not text; write a "
                f"row for each text of a list, or set data.columns={columns} to leave it out."
            )
    further = [name for name in types if name not in chosen and NUMBERED_NEGATIVE.fullmatch(name.lower())]
    if further:
        pair = ",".join(chosen[:2])
        raise InputError(
            f"Corpus {where} has {', '.join(further)} beside {these}, but a row has at most one hard negative; set "
            f"data.columns={pair},{further[0]} to use one, or data.columns={pair} to use none."
        )


def _in_place(name: str, names: list[str]) -> str:
    """The name of a column that is given by its name or by its position, from 1."""
    by_place = name not in names and name.isdecimal() and 1 <= int(name) <= len(names)
    return names[int(name) - 1] if by_place else name


def _usual_pair(names: list[str]) -> tuple[str, ...]:
    """Anchor, positive and, if there is one, hard negative; empty if one is missing or has two candidates."""
    found = [[name for name in names if name.lower() in usual] for usual in USUAL_PAIRS]
    if any(len(names) > 1 for names in found) or not all(found[:2]):
        return ()
    return tuple(name for names in found for name in names)


def _files(entry: str, data: DataRecipe) -> list[str]:
    """Absolute paths of the files that an entry names; an entry that can only be a Hub name is returned unchanged.

    Links are not resolved, because their names determine the format: in the Hub's cache their targets have no ending.
    """
    if remote.is_remote(entry):
        return remote.copy_files(entry, cache_folder(data), check=format_of)
    path = given_path(entry)
    if path.is_file():
        return [str(path.absolute())]
    if path.is_dir():
        example = entry.rstrip("/") + "/*.txt"
        raise InputError(f"Corpus {entry} is a folder; name its files, for example {example}.")
    if glob.has_magic(entry):
        _check_links(path)
        matches = sorted(str(Path(match).absolute()) for match in glob.iglob(str(path), recursive=True))
        nowhere = next((name for name in matches if not Path(name).exists()), None)
        if nowhere:
            raise InputError(f"Corpus {entry}: {nowhere} is a link that leads to no file; fix or remove it.")
        for name in matches:
            refuse_stream(Path(name), f"Corpus {entry}: {name}")
        files = [name for name in matches if Path(name).is_file()]
        if not files:
            raise InputError(f"Corpus {entry}: no file matches.")
        return files
    refuse_stream(path, f"Corpus {entry}")
    if path.is_symlink():
        raise InputError(f"Corpus {entry} is a link that leads to no file; fix it.")
    if not HUB_NAME.fullmatch(entry) or path.suffix.lower() in (*ENDINGS, *COMPRESSIONS):
        raise InputError(f"Corpus {entry}: no such file{nearest(path.name, _beside(entry))}.")
    meant = next((name for name in _beside(entry) if name.partition(".")[0] == path.name), None)
    if meant:
        raise InputError(
            f"Corpus {entry}: no such file (did you mean {path.with_name(meant)}?); the Hub's data set of this name is "
            f"{entry}:train."
        )
    return [entry]


def _check_links(pattern: Path) -> None:
    """Refuse a link below `**` that leads back to a folder above it, because `glob` would follow it in circles.

    Raises:
        InputError: names the link.
    """
    if "**" not in pattern.parts:
        return
    start = Path(*pattern.parts[: pattern.parts.index("**")]).absolute()
    for folder, names, _ in os.walk(start, followlinks=True):
        for link in (Path(folder, name) for name in names):
            if link.is_symlink() and os.path.realpath(link) in map(os.path.realpath, link.parents):
                raise InputError(f"Corpus {pattern}: {link} is a link that leads back to a folder above it; remove it.")


def _beside(entry: str) -> list[str]:
    """The names of the files in the folder of a path."""
    try:
        return sorted(file.name for file in given_path(entry).parent.iterdir() if file.is_file())
    except OSError:
        return []


def _kind(feature: Any) -> str:
    """The type of a Hub dataset's column, named as in `Format.column_types`."""
    kind = str(getattr(feature, "dtype", feature))
    return "string" if kind in ("large_string", "string_view") else kind


def _state(name: str) -> list[Any]:
    state = Path(name).stat()
    return [str(Path(name).resolve()), state.st_size, state.st_mtime_ns]


@functools.cache
def _embedded(size: int, seed: int) -> list[str]:
    from diffcse_scale.embedded.grammar import training_sentences

    return training_sentences(size, seed)
