"""metrics.jsonl: one row per log line and per evaluation, written and read without holding all rows in memory."""

from __future__ import annotations

import math
import os
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray

from diffcse_scale.foundation.durable import replacing, sync_folder
from diffcse_scale.foundation.errors import disk_errors_at
from diffcse_scale.foundation.objects import parse_json
from diffcse_scale.foundation.strict_json import to_json

LARGEST = 1e100  # larger than any of our numbers, and small enough for a chart


class MetricsFile:
    """`metrics.jsonl`: one JSON object per line, each with its `step`.

    The file is kept open. A later incarnation of the run may replace it. An older one that does not know this yet then
    writes into the old file, and its rows are lost.

    Args:
        owned: whether this process still owns the run; if not, nothing is written.
    """

    def __init__(self, path: Path, owned: Callable[[], bool] = lambda: True) -> None:
        self.path, self._owned = path, owned
        self._file: TextIO | None = None

    def write(self, row: dict[str, Any]) -> None:
        """Append one row; numbers that are not finite become null."""
        if not self._owned():
            return
        with disk_errors_at(self.path):
            if self._file is None:
                self._file = self.path.open("a", encoding="utf-8")
            self._file.write(to_json(row) + "\n")
            self._file.flush()

    def sync(self) -> None:
        """Wait until all written rows and the run folder's names are on the disk; called before a checkpoint."""
        if self._file is not None:
            with disk_errors_at(self.path):
                os.fsync(self._file.fileno())
            sync_folder(self.path.parent)

    def rows(self) -> Iterator[dict[str, Any]]:
        """All rows, oldest first, one in memory at a time. A line that a killed process has truncated is left out."""
        if not self.path.is_file():
            return
        with disk_errors_at(self.path), self.path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                row = _row(line)
                if row is not None:
                    yield row

    def series(self) -> dict[str, Series]:
        """All numbers by name, in the order in which the names first occur; 16 bytes per number."""
        found: dict[str, tuple[array[int], array[float]]] = {}
        for row in self.rows():
            for name, value in row.items():
                if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                    continue  # text of a hook
                if name not in found:
                    found[name] = array("q"), array("d")
                steps, values = found[name]
                steps.append(row["step"])
                values.append(math.nan if value is None or abs(value) > LARGEST else value)
        return {name: Series(np.frombuffer(s, np.int64), np.frombuffer(v)) for name, (s, v) in found.items()}

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Keep only the wanted rows; a resumed run writes the others again."""
        if not self._owned():
            return
        if self._file is not None:
            self._file.close()
            self._file = None
        with replacing(self.path) as file:
            file.writelines(to_json(row) + "\n" for row in self.rows() if wanted(row))


def _row(line: str) -> dict[str, Any] | None:
    """Parse a line; None if it is not a row."""
    try:
        row = parse_json(line)
    except ValueError:
        return None
    good = isinstance(row, dict) and isinstance(row.get("step"), int) and row["step"] >= 0
    return row if good else None


class Series(NamedTuple):
    """One number of metrics.jsonl: the steps of the rows that have it, int64 [n], and its values, float64 [n].

    A value is NaN where the row has null: the number was not finite, or there was nothing to count.
    """

    steps: NDArray[np.int64]
    values: NDArray[np.float64]

    @property
    def known(self) -> Series:
        """The series without NaN."""
        there = ~np.isnan(self.values)
        return Series(self.steps[there], self.values[there])


NOTHING = Series(np.empty(0, np.int64), np.empty(0))
