"""A finished folder of embeddings, read shard by shard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from diffcse_scale.encoding.folder_manifest import MANIFEST, Manifest, read_manifest
from diffcse_scale.encoding.rows import open_rows
from diffcse_scale.encoding.shard_files import Floats, Matrix, damaged, read_shard, read_texts
from diffcse_scale.encoding.stored import restore
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.paths import given_path


class Embeddings:
    """The embeddings of `len()` rows; `numpy.asarray` gives all of them as they are stored, [rows, stored width].

    Attributes:
        facts: the manifest: model, input, options.
        dimension: of the embeddings, also where eight of their signs are stored in a byte.
        dtype: float32, float16, int8 or binary.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self.facts: dict[str, Any] = manifest.facts
        self.dimension: int = manifest.shards[0]["dimension"]
        self.dtype: str = manifest.facts["dtype"]

    def __len__(self) -> int:
        return int(self.facts["rows"])

    def verify(self) -> None:
        """Compare all shards with what was written; reads them once.

        Raises:
            InputError: one is damaged.
        """
        for number in self._manifest.damaged():
            raise damaged(self._manifest.file(number))

    def stored(self) -> Iterator[Matrix]:
        """The shards in order, as they are stored; `.npy` ones are memory-mapped."""
        for number in range(self._manifest.count):
            yield read_shard(self._manifest.file(number))

    def floats(self) -> Iterator[tuple[int, Floats]]:
        """The shards in order: number of the first row, and what is known of its embeddings as float32."""
        for number, matrix in enumerate(self.stored()):
            first = self._manifest.rows_of(number).start
            yield first, restore(matrix, self.dtype, self.dimension, self._manifest.ranges)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Matrix:
        whole: Matrix = np.concatenate(list(self.stored()))
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def texts(self, rows: list[int]) -> list[str] | None:
        """The sentences of some rows, from the shards or from the input; None if that has changed or is gone."""
        kept: dict[int, list[str] | None] = {}
        window = int(self.facts["window"])
        for number in {row // window for row in rows}:
            kept[number] = read_texts(self._manifest.file(number))
            if kept[number] is None:
                return self._texts_of_input(rows)
        return [(kept[row // window] or [])[row % window] for row in rows]

    def _texts_of_input(self, rows: list[int]) -> list[str] | None:
        try:
            source = open_rows(self.facts["files"], self.facts["column"], *map(self.facts.get, ("separator", "header")))
        except InputError:
            return None
        if not source.are(self.facts["input"]):
            return None
        return [source.read(row, row + 1)[0][0] for row in rows]


def load(folder: str | Path) -> Embeddings:
    """The embeddings that `encode` wrote.

    Raises:
        InputError: no such folder, its work is not finished, or its manifest is damaged.
    """
    place = given_path(folder)
    manifest = read_manifest(place)
    if manifest is None:
        if (place / MANIFEST).exists():
            raise _damaged_manifest(folder)
        raise InputError(f"{folder} holds no embeddings; `diffcse-scale encode` makes them.")
    if len(manifest.shards) < manifest.count:
        there = f"{len(manifest.shards):,} of {manifest.count:,} shards are there"
        raise InputError(f"{folder} is not finished: {there}; repeat the `encode` command to do the rest.")
    ranges = manifest.ranges
    if manifest.facts["dtype"] == "int8" and (ranges is None or ranges.shape[1] != manifest.shards[0]["dimension"]):
        raise _damaged_manifest(folder)
    return Embeddings(manifest)


def _damaged_manifest(folder: str | Path) -> InputError:
    return InputError(
        f"{folder} holds no embeddings: its {MANIFEST} is damaged, or of another program; `diffcse-scale encode` makes "
        "them, with --overwrite here."
    )
