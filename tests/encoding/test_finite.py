"""Embeddings that are not finite are never written, and never ranked.

One network, three times: with attention values beyond float16's range (the same function in float32), with a word that
makes any sentence NaN, and with vectors that only float32 can store.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffcse_scale.encoding import EncodeOptions, encode, load, search
from diffcse_scale.encoding.folder_manifest import read_manifest
from diffcse_scale.encoding.prompt import answer
from diffcse_scale.encoding.shard_files import write_shard
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.finite import NotFinite, rows_not_finite
from tests.support.tiny_models import tiny_tokenizer

Options = Callable[..., EncodeOptions]


def changed(model_dir: Path, folder: Path, change: Callable[[dict[str, Tensor]], None]) -> str:
    shutil.copytree(model_dir, folder)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


@pytest.fixture
def large(model_dir: Path, tmp_path: Path) -> str:
    def change(weights: dict[str, Tensor]) -> None:
        for part in ("weight", "bias"):
            weights[f"encoder.layer.1.attention.self.value.{part}"] *= 1e6
        weights["encoder.layer.1.attention.output.dense.weight"] /= 1e6

    return changed(model_dir, tmp_path / "large", change)


@pytest.fixture
def no_grass(model_dir: Path, tmp_path: Path) -> str:
    place = tiny_tokenizer().convert_tokens_to_ids("grass")

    def change(weights: dict[str, Tensor]) -> None:
        weights["embeddings.word_embeddings.weight"][place] = 1e30

    return changed(model_dir, tmp_path / "no-grass", change)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "binary"])
def test_a_model_beyond_float16_is_refused_in_it_and_encoded_in_float32(
    options: Options, text_file: Path, large: str, dtype: str, tmp_path: Path
) -> None:
    with pytest.raises(NotFinite, match=r"Rows 0, 1, 2 and 13 more .* float16.* not finite.*bfloat16 or float32"):
        encode(options(text_file, model=large, dtype=dtype, precision="float16"), progress=False)
    assert not list((tmp_path / "out").glob("embeddings*"))
    encode(options(text_file, model=large, dtype=dtype), progress=False)  # what came to nothing is in nobody's way
    assert len(load(tmp_path / "out")) == 103


def test_shards_before_the_row_are_kept(options: Options, no_grass: str, tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("a dog\n" * 20 + "green grass\n" + "a cat\n" * 20)
    with pytest.raises(NotFinite, match=r"Row 20 .*computed in float32, .*choose another model"):
        encode(options(file, model=no_grass), progress=False)
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None and list(manifest.shards) == [0]
    assert manifest.damaged() == []


def test_what_float16_cannot_store_is_refused(
    options: Options, text_file: Path, model_dir: Path, tmp_path: Path
) -> None:
    last = "encoder.layer.2.output.LayerNorm.weight"
    huge = changed(model_dir, tmp_path / "huge", lambda weights: weights[last].fill_(1e6))
    with pytest.raises(NotFinite, match=r"Rows 0, 1, 2 .*stored as float16, .*--dtype float32"):
        encode(options(text_file, model=huge, dtype="float16"), progress=False)
    encode(options(text_file, model=huge), progress=False)
    assert np.abs(np.asarray(load(tmp_path / "out"))).max() > np.finfo(np.float16).max


def test_a_query_without_a_finite_embedding_is_refused(options: Options, no_grass: str, tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("a dog\na cat\n")
    encode(options(file, model=no_grass), progress=False)
    with pytest.raises(NotFinite, match="Row 1 of the queries has"):
        answer(tmp_path / "out", ["a dog", "the grass"])


def test_rows_that_an_earlier_version_wrote_are_not_ranked(options: Options, text_file: Path, tmp_path: Path) -> None:
    encode(options(text_file, window=200), progress=False)
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None
    rows = np.asarray(load(tmp_path / "out")).copy()
    rows[41, 3] = np.nan
    manifest.record({**manifest.shards[0], **write_shard(manifest.file(0), 0, rows, None)})
    found = search.exact(load(tmp_path / "out"))
    with pytest.raises(InputError, match="Row 41 of the embeddings has numbers that are not finite"):
        found(rows[:1], 3)


def test_any_kind_of_number_in_any_place_is_found_and_large_ones_are_none() -> None:
    for dtype in (np.float16, np.float32, np.float64):
        matrix = np.full((300, 40), np.finfo(dtype).max, dtype)
        assert rows_not_finite(matrix).tolist() == []
        for row, bad in ((0, np.nan), (17, np.inf), (299, -np.inf)):
            matrix[row, row % 40] = bad
        assert rows_not_finite(matrix).tolist() == [0, 17, 299]
    assert rows_not_finite(np.full((3, 4), 255, np.uint8)).tolist() == []
    opposite = np.array([[np.inf, -np.inf], [1, 2]], np.float32)
    assert rows_not_finite(opposite).tolist() == [0]
