"""Writes the rows of corpus files as Arrow files in the cache, and opens them memory-mapped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow

from diffcse_scale.text.formats import FORMATS, LINE, Format, reading

TEXT = datasets.Value("string")


@dataclass
class RowsConfig(datasets.BuilderConfig):
    """The files, their format, and the wanted columns."""

    files: tuple[str, ...] = ()
    columns: tuple[str, ...] = (LINE,)
    format: Format = FORMATS["text"]


class Rows(datasets.ArrowBasedBuilder):
    """A `datasets` builder that writes Arrow files, with one process for each share of the files."""

    BUILDER_CONFIG_CLASS = RowsConfig

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=datasets.Features(dict.fromkeys(self.config.columns, TEXT)))

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        return [datasets.SplitGenerator(name="train", gen_kwargs={"files": list(self.config.files)})]

    def _generate_tables(self, files: list[str]) -> Iterator[tuple[str, pyarrow.Table]]:
        schema = self.info.features.arrow_schema
        for shard, name in enumerate(files):
            with reading(name, self.config.format.name):
                for index, columns in enumerate(self.config.format.tables(name, self.config.columns)):
                    yield f"{shard}-{index}", pyarrow.table(columns, schema=schema)


def write_arrow(
    kind: Format, files: Sequence[str], columns: Sequence[str], folder: Path, processes: int | None = None
) -> None:
    """Write all rows of the files as a folder of Arrow files.

    They have these columns, or only `LINE` for a format whose rows are lines.

    Args:
        folder: used by no other process, because no lock is taken; some file systems have no locks.
    """
    kept = (LINE,) if kind.parse else tuple(columns)
    locks = datasets.builder.FileLock
    datasets.builder.FileLock = lambda *_: nullcontext()
    try:
        builder = Rows(cache_dir=str(folder), files=tuple(files), columns=kept, format=kind)
        builder.download_and_prepare(num_proc=processes)
    finally:
        datasets.builder.FileLock = locks


def open_arrow(folder: Path) -> datasets.Dataset:
    """The rows of all Arrow files in a folder, in the order of their names; memory-mapped."""
    parts = [datasets.Dataset.from_file(str(file)) for file in sorted(folder.rglob("*.arrow"))]
    return datasets.concatenate_datasets(parts) if parts else datasets.Dataset.from_dict({})
