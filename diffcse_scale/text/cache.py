"""The cache of prepared text: its folder, and the names in it."""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffcse_scale.foundation.errors import InputError, disk_is_full, system_reason
from diffcse_scale.foundation.paths import given_path
from diffcse_scale.recipe import DataRecipe

ENVIRONMENT_VARIABLE = "DIFFCSE_CACHE"


def chosen_folder(data: DataRecipe | None = None) -> Path:
    """`data.cache_dir`, else $DIFFCSE_CACHE, else ~/.cache/diffcse-scale.

    Raises:
        InputError: the home folder ~ is unknown.
    """
    chosen = (data and data.cache_dir) or os.environ.get(ENVIRONMENT_VARIABLE) or "~/.cache/diffcse-scale"
    try:
        return given_path(chosen)
    except InputError as error:
        raise InputError(
            f"The cache folder {str(error)[:-1]} ({ENVIRONMENT_VARIABLE}, or data.cache_dir of the recipe)."
        ) from None


def cache_folder(data: DataRecipe | None = None) -> Path:
    """The folder that `chosen_folder` names; created if absent.

    Everything in it can be made again, so it may be deleted whenever no run is using it. Existing entries are used even
    if the folder is read-only.

    Raises:
        InputError: it cannot be created, or it is empty and cannot be written.
    """
    folder = chosen_folder(data)
    with writing(folder):
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
        if not any(folder.iterdir()):
            try_to_write(folder)
    return folder


@functools.cache
def try_to_write(folder: Path) -> None:
    """Write a probe, once per process: permissions do not show that a disk is full or read-only."""
    with tempfile.TemporaryFile(dir=folder) as probe:
        probe.write(bytes(4096))
        probe.flush()
        os.fsync(probe.fileno())


@contextmanager
def writing(cache: Path) -> Iterator[None]:
    """Inside, the cache is written to; failures become an `InputError`.

    Raises:
        InputError: the cache cannot be written, its disk fills up, or it is removed meanwhile.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the libraries that write there raise their own exceptions
        if (reason := _reason(error, cache)) is None:
            raise
        raise InputError(
            f"The cache {cache} cannot be written ({reason}); set {ENVIRONMENT_VARIABLE}, or data.cache_dir of the "
            "recipe, to a folder that can."
        ) from error


def _reason(error: BaseException | None, cache: Path) -> str | None:
    """Why the cache cannot be written, according to an error; None if the error has another cause."""
    while error is not None:
        if disk_is_full(error):
            code = error.errno if isinstance(error, OSError) else None
            return os.strerror(code or errno.ENOSPC).lower()
        if isinstance(error, OSError) and error.filename is not None:
            where = Path(os.fsdecode(error.filename)).absolute()
            if isinstance(error, FileExistsError) and where == cache.absolute():
                return "it is a file"
            if where.is_relative_to(cache.absolute()) or cache.absolute().is_relative_to(where):
                gone = isinstance(error, FileNotFoundError)
                return f"{where} was removed" if gone and cache.parent.exists() else system_reason(error)
        error = error.__cause__ or error.__context__
    return None


def fingerprint(*parts: Any) -> str:
    """A hash of JSON-serialisable `parts`: 16 hexadecimal digits."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class RowsFingerprint:
    """The `fingerprint` of a list that is given row by row; `str` gives the value."""

    def __init__(self) -> None:
        self._digest, self._comma = hashlib.sha256(b"[["), ""

    def add(self, row: Any) -> None:
        """Add the next row."""
        self._digest.update((self._comma + json.dumps(row, sort_keys=True, ensure_ascii=True)).encode())
        self._comma = ", "

    def __str__(self) -> str:
        whole = self._digest.copy()
        whole.update(b"]]")
        return whole.hexdigest()[:16]


def workers(data: DataRecipe) -> int:
    """`data.workers`, else the number of cores that this process may use."""
    return data.workers or len(os.sched_getaffinity(0))


def num_proc(workers: int, rows: int, rows_per_worker: int = 5_000) -> int | None:
    """The number of processes worth starting for `rows` rows; as in `datasets`, None is only this process."""
    useful = min(workers, rows // rows_per_worker)
    return useful if useful > 1 else None
