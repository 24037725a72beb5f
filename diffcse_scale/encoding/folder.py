"""Reads a finished folder of embeddings shard by shard."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from diffcse_scale.encoding.folder_manifest import EARLIER, MANIFEST, Manifest, manifest_file, read_manifest
from diffcse_scale.encoding.rows import Rows, open_rows
from diffcse_scale.encoding.shard_files import Floats, Matrix, damaged, read_columns, read_shard
from diffcse_scale.encoding.stored import restore
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.paths import given_path

log = logging.getLogger(__name__)


class Embeddings:
    """The embeddings of `len()` rows. `numpy.asarray` gives all of them as stored, [rows, stored width].

    Attributes:
        facts: the manifest: model, input, options.
        dimension: dimension of the embeddings, even if eight signs are packed into a byte.
        dtype: float32, float16, int8 or binary.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self.facts: dict[str, Any] = manifest.facts
        self.dimension: int = manifest.shards[0]["dimension"]
        self.dtype: str = manifest.facts["dtype"]

    def __len__(self) -> int:
        return int(self.facts["rows"])

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change if the shards change."""
        return hashlib.sha256(self._manifest.journal.read_bytes()).hexdigest()[:16]

    def verify(self) -> None:
        """Check the SHA-256 of all shards. Reads each of them once.

        Raises:
            InputError: a shard is damaged.
        """
        for number in self._manifest.damaged():
            raise damaged(self._manifest.file(number))

    def stored(self) -> Iterator[Matrix]:
        """The shards in order, as stored. `.npy` shards are memory-mapped."""
        for number in range(self._manifest.count):
            yield read_shard(self._manifest.file(number))

    def floats(self) -> Iterator[tuple[int, Floats]]:
        """The shards in order: number of the first row, and its embeddings restored to float32."""
        for number, matrix in enumerate(self.stored()):
            first = self._manifest.rows_of(number).start
            yield first, restore(matrix, self.dtype, self.dimension, self._manifest.ranges)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Matrix:
        whole: Matrix = np.concatenate(list(self.stored()))
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def texts(self, rows: list[int]) -> list[str] | None:
        """The sentences of some rows, from the shards or from the input.

        None if the input has changed, is gone, or cannot be read; a warning says why, once.
        """
        kept = self._columns(rows, ["text"])
        if kept is not None:
            return [row["text"] for row in kept]
        return None if self._input is None else [self._input.read(row, row + 1)[0][0] for row in rows]

    def kept(self, rows: list[int]) -> list[dict[str, Any]]:
        """The columns that `encode --keep-columns` has stored, by name, for some rows."""
        names = self.facts.get("keep_columns") or []
        return (self._columns(rows, names) if names else None) or [{} for _ in rows]

    def _columns(self, rows: list[int], names: list[str]) -> list[dict[str, Any]] | None:
        """These columns of some rows; None if the shards lack them. One shard is in memory at a time."""
        window = int(self.facts["window"])
        found: dict[int, dict[str, Any]] = {}
        for number in {row // window for row in rows}:
            table = read_columns(self._manifest.file(number), names)
            if table is None:
                return None
            here = [row for row in rows if row // window == number]
            found |= zip(here, table.take([row % window for row in here]).to_pylist(), strict=True)
        return [found[row] for row in rows]

    @cached_property
    def _input(self) -> Rows | None:
        """The input, opened at the first use; None if it is not what was encoded, and a warning says why."""
        why = f"The input has changed since {self._manifest.folder} was made."
        try:
            source = open_rows(self.facts["files"], self.facts["column"], *map(self.facts.get, ("separator", "header")))
            if source.are(self.facts["input"]):
                return source
        except InputError as error:
            why = str(error)
        log.warning(
            "%s So rows are shown without their sentences; `encode --format parquet --keep-text` stores them.", why
        )
        return None


def load(folder: str | Path) -> Embeddings:
    r"""Open the embeddings that `encode` wrote.

    Args:
        folder: a finished output folder of `encode`.

    Returns:
        An `Embeddings`. Its length is the number of rows. `numpy.asarray` reads all rows; `floats` reads one shard at
        a time as float32.

    Raises:
        InputError: the folder does not exist or is not finished, or its manifest is damaged.

    Example:
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from diffcse_scale.embedded import backbone_path
        >>> from diffcse_scale.encoding import EncodeOptions, encode, load
        >>> _ = Path("corpus.txt").write_text("A dog runs.\nIt rains.\n")
        >>> model = str(backbone_path())
        >>> options = EncodeOptions(model=model, input=["corpus.txt"], output="embeddings", devices="cpu")
        >>> line = encode(options, progress=False)
        >>> embeddings = load("embeddings")
        >>> embeddings.verify()  # compares the shards with their SHA-256
        >>> np.asarray(embeddings).shape, embeddings.texts([1])
        ((2, 128), ['It rains.'])
    """
    place = given_path(folder)
    manifest = read_manifest(place)
    if manifest is None:
        for name in (MANIFEST, EARLIER[0]):
            if (place / name).exists():
                raise _damaged(place / name)
        raise InputError(f"{folder} holds no embeddings; make them with `diffcse-scale encode`.")
    if len(manifest.shards) < manifest.count:
        there = f"{len(manifest.shards):,} of {manifest.count:,} shards are there"
        raise InputError(f"{folder} is not finished: {there}; repeat the `encode` command to finish it.")
    ranges = manifest.ranges
    if manifest.facts["dtype"] == "int8" and (ranges is None or ranges.shape[1] != manifest.shards[0]["dimension"]):
        raise _damaged(manifest_file(place))
    return Embeddings(manifest)


def _damaged(manifest: Path) -> InputError:
    return InputError(
        f"{manifest.parent} holds no embeddings: its {manifest.name} is damaged or was written by another program; "
        "make them with `diffcse-scale encode --overwrite`."
    )
