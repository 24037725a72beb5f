"""Shard files hold what was written, in about as many bytes, and are whole or absent."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from diffcse_scale.encoding import shard_files as shards
from diffcse_scale.encoding.stored import restore, store


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8, np.uint8])
@pytest.mark.parametrize("form", ["parquet", "npy"])
def test_a_shard_holds_its_matrix_in_about_as_many_bytes(tmp_path: Path, dtype: type, form: str) -> None:
    values = np.random.default_rng(0).normal(100, 60, size=(3000, 48)).clip(0, 127)
    matrix = values.astype(dtype)
    file = tmp_path / f"shard.{form}"
    about = shards.write_shard(file, 7, matrix, None)
    found = shards.read_shard(file)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, matrix)
    assert about == {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    assert file.stat().st_size < 1.05 * matrix.nbytes + 8 * len(matrix)  # Parquet has no 8-bit numbers of its own
    if form == "parquet":
        table = pyarrow.parquet.read_table(file)
        assert table["row"].to_pylist() == list(range(7, 3007))
        assert table.schema.field("embedding").type.list_size == 48


def test_a_failed_write_leaves_the_old_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "shard.npy"
    shards.write_shard(file, 0, np.ones((2, 3)), None)

    def fail(*_: object) -> None:
        raise OSError("broken")

    monkeypatch.setattr(shards.os, "fsync", fail)
    with pytest.raises(OSError, match="broken"):
        shards.write_shard(file, 0, np.zeros((2, 3)), None)
    assert shards.read_shard(file).sum() == 6


def test_restored_int8_is_within_half_a_step_and_signs_are_one() -> None:
    embeddings = np.random.default_rng(0).normal(size=(50, 11)).astype(np.float32)
    ranges = np.stack([embeddings.min(0), embeddings.max(0)])
    steps = (ranges[1] - ranges[0]) / 255
    found = restore(store(embeddings, "int8", ranges), "int8", 11, ranges)
    assert (np.abs(found - embeddings) <= 0.51 * steps).all()
    signs = restore(store(embeddings, "binary"), "binary", 11)  # 11 is no multiple of 8
    np.testing.assert_array_equal(signs, np.where(embeddings > 0, 1, -1))


def test_processes_of_one_number_on_two_hosts_write_to_different_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh: list[str] = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda source, place: (fresh.append(Path(source).name), replace(source, place)))
    for _ in range(2):
        shards.write_shard(tmp_path / "embeddings-00000.npy", 0, np.zeros((2, 3), np.float32), None)
    assert len(set(fresh)) == 2 and all(name.endswith(".partial") for name in fresh)
