"""The record of an encoded folder: its settings and its finished shards.

    _manifest.json      model, input, options and, for int8, the ranges; written before the first shard
    _shards.jsonl       a line for each finished shard, appended when the shard is on disk; sorted at the end
    embeddings-*        the shards

Readers of Parquet folders ignore names that begin with "_". Earlier versions wrote the first two files without it; a
folder that they began is read and finished under those names.

The content does not depend on when or how often the work was interrupted.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, get_args

import numpy as np

from diffcse_scale.encoding.encode_options import EncodeOptions
from diffcse_scale.encoding.shard_files import PARTIAL, Floats, shard_name
from diffcse_scale.foundation.durable import make_folder, unfinished, write_durably
from diffcse_scale.foundation.errors import InputError, disk_errors_at, error_of_disk, first_line, remedy, system_reason
from diffcse_scale.foundation.file_digest import sha256_of
from diffcse_scale.foundation.locks import locked
from diffcse_scale.foundation.ownership import WRITTEN_BY, json_of, refuse_run_folder
from diffcse_scale.foundation.strict_json import to_json

log = logging.getLogger(__name__)

COMMAND = "diffcse-scale encode"
MANIFEST, JOURNAL, LOCK = "_manifest.json", "_shards.jsonl", ".lock"
EARLIER = MANIFEST[1:], JOURNAL[1:]  # earlier versions' names of the first two
# shards, and the indexes of `search`
OURS = ("embeddings-[0-9]*.parquet", "embeddings-[0-9]*.npy", "_hnsw-*", "_ivf-*", "hnsw-*", "ivf-*")
FORMAT = 1
WHERE = "model_folder"
PLACES = (WHERE, "files")  # paths may change, because only the content of model and input matters


READERS = 8  # threads that hash shards
# the fields of the manifest and their types
FACTS: dict[str, Any] = {
    **dict.fromkeys(("format_version", "rows", "window"), int),
    **dict.fromkeys(("model", "dtype", "format", WHERE), str),
    **dict.fromkeys(("input", "files"), list),
    **dict.fromkeys(("column", "pooling"), str | None),
    "max_length": int | None,
    "ranges": list | None,
}
SHARD = {**dict.fromkeys(("shard", "rows", "dimension", "bytes"), int), "sha256": str, "flaws": dict}


class Manifest:
    """The record of an encoded folder.

    Attributes:
        facts: the content of `_manifest.json`.
        journal: `_shards.jsonl`.
        shards: facts of the finished shards, by number: rows, dimension, flaws, counts of tokens and characters, bytes,
            sha256.
    """

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        self.folder, self.facts = folder, facts
        self._file = manifest_file(folder)
        self.journal = folder / (JOURNAL if self._file.name == MANIFEST else EARLIER[1])
        self.shards = {shard["shard"]: shard for shard in self._finished()}

    @property
    def count(self) -> int:
        """Number of shards in the complete folder."""
        return -(-int(self.facts["rows"]) // int(self.facts["window"]))

    @property
    def pending(self) -> list[int]:
        """Numbers of the missing shards."""
        return [number for number in range(self.count) if number not in self.shards]

    @property
    def ranges(self) -> Floats | None:
        """The ranges of int8, [2, dimension]; None for other dtypes, or if they are not known yet."""
        found = self.facts["ranges"]
        return None if found is None else np.array(found, np.float32)

    def file(self, number: int) -> Path:
        """Path of a shard."""
        return self.folder / shard_name(number, self.facts["format"])

    def rows_of(self, number: int) -> range:
        """The rows of a shard."""
        window = int(self.facts["window"])
        return range(number * window, min((number + 1) * window, int(self.facts["rows"])))

    def set_ranges(self, ranges: Floats) -> None:
        """Store the ranges that int8 is scaled to."""
        self.facts["ranges"] = ranges.tolist()
        self._write()

    def move(self, places: dict[str, Any]) -> None:
        """Store the current paths of model and input if they have changed."""
        if {**self.facts, **places} != self.facts:
            self.facts.update(places)
            self._write()

    def record(self, shard: dict[str, Any]) -> None:
        """Add a shard that is on disk.

        Raises:
            InputError: a process on another host, which shares no locks with this one, has begun other work here.
        """
        if about := _difference(json.loads(self._file.read_text(encoding="utf-8")), self.facts):
            raise InputError(
                f"Another process has begun {self.folder} again, with {about}; choose another --output for one of them."
            )
        self.shards[shard["shard"]] = shard
        with disk_errors_at(self.journal), self.journal.open("a", encoding="utf-8") as journal:
            journal.write(to_json(shard, sort_keys=True) + "\n")
            journal.flush()
            os.fsync(journal.fileno())

    def damaged(self) -> list[int]:
        """Numbers of the shards whose bytes have changed since they were written. Reads all shards."""
        files = [self.file(number) for number in self.shards]
        with ThreadPoolExecutor(READERS) as readers:  # hashing releases the interpreter lock
            found = list(readers.map(_digest, files))
        return [
            number for (number, shard), now in zip(self.shards.items(), found, strict=True) if now != shard["sha256"]
        ]

    def tidy(self) -> None:
        """Sort the journal, and remove temporary files of killed processes."""
        lines = [to_json(shard, sort_keys=True) + "\n" for _, shard in sorted(self.shards.items())]
        write_durably("".join(lines), self.journal)
        for path in self.folder.iterdir():
            if _is_half_written(path.name):
                path.unlink()

    def _write(self) -> None:
        write_durably(to_json(self.facts, indent=1) + "\n", self._file)

    def _finished(self) -> Iterator[dict[str, Any]]:
        """The shards that are in the journal and exist. Truncated lines are ignored."""
        there = self.journal.is_file()
        for line in self.journal.read_text(encoding="utf-8", errors="replace").splitlines() if there else ():
            try:
                shard = json.loads(line)
                if self._is_shard(shard) and self.file(shard["shard"]).stat().st_size == shard["bytes"]:
                    yield shard
            except (ValueError, RecursionError, FileNotFoundError):
                continue

    def _is_shard(self, shard: Any) -> bool:
        if not isinstance(shard, dict) or not all(isinstance(shard.get(name), kind) for name, kind in SHARD.items()):
            return False
        return 0 <= shard["shard"] < self.count and all(isinstance(count, int) for count in shard["flaws"].values())


@contextmanager
def begun(
    folder: Path, facts: dict[str, Any], overwrite: bool = False, sources: Collection[str | Path] = ()
) -> Iterator[Manifest]:
    """Yield the manifest of a folder for the work that `facts` describe, new or from an earlier start of the same work.

    A lock ensures that only one process has it.

    Args:
        facts: JSON-serialisable, without `ranges`.
        overwrite: replace files with our names in a folder that holds something else, instead of refusing it.
        sources: files and folders that are read.

    Raises:
        InputError: the folder holds something else or cannot be written, or another process is working in it.
    """
    _check(folder, overwrite, sources)
    taken = f"Another process is writing to {folder}; wait for it or choose another --output."
    try:
        make_folder(folder)
        with locked(folder / LOCK, taken):
            known = read_manifest(folder)
            if overwrite and (known is None or _difference(known.facts, facts)):
                _clear(folder)
                known = None
            if known is None or not known.shards:  # without finished shards there is nothing to lose
                known = Manifest(folder, {WRITTEN_BY: COMMAND, **facts, "ranges": None})
                known._write()
            if about := _difference(known.facts, facts):
                raise InputError(
                    f"{folder} was begun with {about}; repeat that command, choose another --output, or give "
                    "--overwrite to start over."
                )
            known.move({name: facts[name] for name in PLACES})
            for number in known.damaged():
                log.warning("Written again, because its bytes had changed: %s.", known.file(number))
                del known.shards[number]
            known.tidy()
            yield known
    except Exception as error:
        found = error if isinstance(error, OSError) else error_of_disk(error)
        if found is None:
            raise
        raise InputError(
            f"{found.filename or folder} cannot be read or written ({system_reason(found)}); finished work is kept: "
            f"{remedy(found)}, then repeat the command."
        ) from error


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest in a folder; None if there is none of ours."""
    file = manifest_file(folder)
    return Manifest(folder, json.loads(file.read_text(encoding="utf-8"))) if _is_ours(file) else None


def manifest_file(folder: Path) -> Path:
    """Path of a folder's manifest, existing or not. A manifest of an earlier version keeps its name."""
    new, earlier = folder / MANIFEST, folder / EARLIER[0]
    return earlier if not new.exists() and _is_ours(earlier) else new


def _is_ours(manifest: Path) -> bool:
    if not json_of(COMMAND, "format_version", "model", "input", "files", "rows", "window", "dtype")(manifest):
        return False
    return _is_sound(json.loads(manifest.read_text(encoding="utf-8")))


def _is_sound(facts: dict[str, Any]) -> bool:
    """Whether the facts have the types that we write. A file may be truncated or edited."""
    if not all(name in facts and isinstance(facts[name], kind) for name, kind in FACTS.items()):
        return False
    if facts["dtype"] not in get_args(EncodeOptions.model_fields["dtype"].annotation):
        return False
    kept = facts.get("keep_columns")  # earlier versions had none
    if kept is not None and not (isinstance(kept, list) and all(isinstance(name, str) for name in kept)):
        return False
    ranges = facts["ranges"] if facts["ranges"] is not None else [[], []]
    if len(ranges) != 2 or not all(isinstance(row, list) for row in ranges) or len(ranges[0]) != len(ranges[1]):
        return False
    finite = all(isinstance(value, int | float) and abs(value) < math.inf for row in ranges for value in row)
    return (
        finite and facts["rows"] > 0 and facts["window"] > 0 and all(isinstance(name, str) for name in facts["files"])
    )


def _digest(file: Path) -> str:
    try:
        return sha256_of(file)
    except FileNotFoundError as error:
        return first_line(error)


def _check(folder: Path, overwrite: bool, sources: Collection[str | Path]) -> None:
    """Refuse a folder that holds anything but embeddings, or that contains the input."""
    refuse_run_folder(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is not a folder; choose another --output.")
    place, read = folder.resolve(), {Path(source).resolve() for source in sources}
    inside = [source for source in read if source == place or (source.parent == place and _is_our_file(source))]
    if inside or any(source in place.parents for source in read):
        raise InputError(f"{folder} contains the input or is part of it; choose another --output.")
    if not folder.exists() or (not overwrite and _is_ours(manifest_file(folder))):
        return
    found = sorted(path for path in folder.iterdir() if path.name != LOCK and not _is_half_written(path.name))
    if found and not overwrite:
        name = MANIFEST if folder / MANIFEST in found else found[0].name
        raise InputError(
            f"{folder} holds other files ({name}); choose another --output, or --overwrite to replace those whose "
            "names this command uses."
        )
    if blocked := [path for path in found if _is_our_file(path) and path.is_dir()]:
        raise InputError(f"{blocked[0]} is a folder, but a file must be written there; choose another --output.")


def _is_our_file(path: Path) -> bool:
    if path.name in EARLIER:
        return _is_ours(path.with_name(EARLIER[0]))
    names = (MANIFEST, JOURNAL, *OURS)
    return _is_half_written(path.name) or any(fnmatchcase(path.name, pattern) for pattern in names)


def _is_half_written(name: str) -> bool:
    """Whether a file is a temporary one that a killed process left."""
    return unfinished(name) in (MANIFEST, JOURNAL, *EARLIER) or fnmatchcase(name, f".embeddings-*{PARTIAL}")


def _clear(folder: Path) -> None:
    """Remove our files, and log which others stay."""
    found = [path for path in folder.iterdir() if path.name != LOCK]
    ours = [path for path in found if _is_our_file(path)]
    for path in ours:
        path.unlink()
    if stays := sorted(path.name for path in found if path not in ours):
        log.warning("Kept unchanged in %s: %s.", folder, ", ".join(stays))


def _difference(known: dict[str, Any], facts: dict[str, Any]) -> str:
    """The first difference between the work that was begun and `facts`; empty if they agree."""
    before = json.loads(to_json(known))
    for name, value in json.loads(to_json(facts)).items():
        if name not in PLACES and before.get(name) != value:
            return f"{name} {before.get(name)}, not {value}" if name not in ("model", "input") else f"another {name}"
    return ""
