"""Where prepared text is kept, under which names, and who may write it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from diffcse_scale.foundation.paths import given_path
from diffcse_scale.recipe import DataRecipe

ENVIRONMENT_VARIABLE = "DIFFCSE_CACHE"


def chosen_folder(data: DataRecipe | None = None) -> Path:
    """`data.cache_dir`, else $DIFFCSE_CACHE, else ~/.cache/diffcse-scale."""
    chosen = (data and data.cache_dir) or os.environ.get(ENVIRONMENT_VARIABLE) or "~/.cache/diffcse-scale"
    return given_path(chosen)


def cache_folder(data: DataRecipe | None = None) -> Path:
    """The same; created if absent.

    Everything in it can be made again: it may be deleted whenever no run is using it.
    """
    folder = chosen_folder(data)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


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
    """Holds `path`.lock: of several ranks or programs one prepares `path`, the others wait for it."""
    with FileLock(path.with_name(path.name + ".lock")):
        yield


def workers(data: DataRecipe) -> int:
    """`data.workers`, else the cores that this process may use."""
    return data.workers or len(os.sched_getaffinity(0))


def num_proc(workers: int, rows: int, rows_per_worker: int = 5_000) -> int | None:
    """Processes worth starting for `rows` rows, as `datasets` wants it said: None is this process alone."""
    useful = min(workers, rows // rows_per_worker)
    return useful if useful > 1 else None
