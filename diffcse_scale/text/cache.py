"""Where prepared text is kept, under which names, and who may write it."""

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

from filelock import FileLock

from diffcse_scale.foundation.errors import InputError, disk_is_full, system_reason
from diffcse_scale.foundation.paths import given_path
from diffcse_scale.recipe import DataRecipe

ENVIRONMENT_VARIABLE = "DIFFCSE_CACHE"


def chosen_folder(data: DataRecipe | None = None) -> Path:
    """`data.cache_dir`, else $DIFFCSE_CACHE, else ~/.cache/diffcse-scale.

    Raises:
        InputError: nobody knows where ~ is.
    """
    chosen = (data and data.cache_dir) or os.environ.get(ENVIRONMENT_VARIABLE) or "~/.cache/diffcse-scale"
    try:
        return given_path(chosen)
    except InputError as error:
        raise InputError(
            f"The cache folder {str(error)[:-1]} ({ENVIRONMENT_VARIABLE}, or data.cache_dir of the recipe)."
        ) from None


def cache_folder(data: DataRecipe | None = None) -> Path:
    """The same; created if absent.

    Everything in it can be made again: it may be deleted whenever no run is using it.

    Raises:
        InputError: it cannot be created or written.
    """
    folder = chosen_folder(data)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _try_to_write(folder)
    except FileExistsError:
        raise _unusable(folder, "it is a file") from None
    except OSError as error:
        raise _unusable(folder, system_reason(error)) from None
    return folder


@functools.cache
def _try_to_write(folder: Path) -> None:
    """Once a process: permissions do not tell of a disk that is full or may only be read."""
    with tempfile.TemporaryFile(dir=folder) as probe:
        probe.write(bytes(4096))
        probe.flush()
        os.fsync(probe.fileno())


def _unusable(folder: str | Path, why: str) -> InputError:
    return InputError(
        f"The cache {folder} cannot be written ({why}); set {ENVIRONMENT_VARIABLE}, or data.cache_dir of the recipe, "
        "to a folder that can."
    )


def fingerprint(*parts: Any) -> str:
    """16 hexadecimal digits that are a function of JSON-serialisable `parts`."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class RowsFingerprint:
    """`fingerprint` of a list that is given row by row; as text it is what `fingerprint` gives for the whole list."""

    def __init__(self) -> None:
        self._digest, self._comma = hashlib.sha256(b"[["), ""

    def add(self, row: Any) -> None:
        """The next row."""
        self._digest.update((self._comma + json.dumps(row, sort_keys=True, ensure_ascii=True)).encode())
        self._comma = ", "

    def __str__(self) -> str:
        whole = self._digest.copy()
        whole.update(b"]]")
        return whole.hexdigest()[:16]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds `path`.lock: of several ranks or programs one prepares `path`, the others wait for it.

    Raises:
        InputError: the cache's disk fills up meanwhile.
    """
    try:
        with FileLock(path.with_name(path.name + ".lock")):
            yield
    except Exception as error:  # the libraries that write there have their own
        if not disk_is_full(error):
            raise
        raise _unusable(path.parent, os.strerror(errno.ENOSPC).lower()) from error


def workers(data: DataRecipe) -> int:
    """`data.workers`, else the cores that this process may use."""
    return data.workers or len(os.sched_getaffinity(0))


def num_proc(workers: int, rows: int, rows_per_worker: int = 5_000) -> int | None:
    """Processes worth starting for `rows` rows, as `datasets` wants it said: None is this process alone."""
    useful = min(workers, rows // rows_per_worker)
    return useful if useful > 1 else None
