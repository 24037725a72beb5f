"""What other programs make of an encoded folder: the rows of `diffcse_scale.encoding.load`, in its order."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffcse_scale.encoding import EncodeOptions, encode, load, search
from tests.support.files import write_files

Options = Callable[..., EncodeOptions]


@pytest.fixture
def folder(options: Options, text_file: Path, tmp_path: Path) -> Path:
    """Several shards, and an index where faiss is installed."""
    chosen = options(text_file, output=str(tmp_path / "embeddings"), window=40)
    encode(chosen, progress=False)
    if find_spec("faiss"):
        search.make_search(load(chosen.output), "hnsw", Path(chosen.output))
    return Path(chosen.output)


def with_pandas(folder: Path) -> tuple[Any, Any]:
    frame = pytest.importorskip("pandas").read_parquet(folder)
    return frame["row"], np.stack(frame["embedding"])


def with_polars(folder: Path) -> tuple[Any, Any]:
    frame = pytest.importorskip("polars").read_parquet(folder / "*.parquet")
    return frame["row"].to_numpy(), frame["embedding"].to_numpy()


def with_datasets(folder: Path) -> tuple[Any, Any]:
    rows = pytest.importorskip("datasets").load_dataset(str(folder), split="train").with_format("numpy")
    return rows["row"][:], rows["embedding"][:]


def with_duckdb(folder: Path) -> tuple[Any, Any]:
    found = (
        pytest.importorskip("duckdb").sql(f"SELECT row, embedding FROM '{folder}/*.parquet' ORDER BY row").fetchall()
    )
    return [row for row, _ in found], np.array([embedding for _, embedding in found], np.float32)


@pytest.mark.parametrize("reader", [with_pandas, with_polars, with_datasets, with_duckdb])
def test_the_folder_opens_with(reader: Callable[[Path], tuple[Any, Any]], folder: Path) -> None:
    rows, embeddings = reader(folder)
    np.testing.assert_array_equal(rows, np.arange(103))
    np.testing.assert_array_equal(embeddings, np.asarray(load(folder)))


def test_the_programs_of_the_page_run_on_a_folder_with_kept_columns(
    options: Options, sentences: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for library in ("datasets", "duckdb", "pandas", "polars"):
        pytest.importorskip(library)
    rows = [{"id": 7 * row, "title": "Paris" if row == 31 else "", "text": text} for row, text in enumerate(sentences)]
    lines = tmp_path / "cities.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    encode(options(lines, output=str(tmp_path / "embeddings"), window=40, keep_columns="id,title"), progress=False)
    page = (Path(__file__).parents[2] / "docs" / "encode.md").read_text(encoding="utf-8")
    section = page.split("## In other programs")[1].split("\n## ")[0]
    program = "\n".join(line[4:] for line in section.splitlines() if line.startswith("    "))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(program, names)
    expected = np.asarray(load(tmp_path / "embeddings"))
    np.testing.assert_array_equal(names["by_id"][7 * 50], expected[50])
    np.testing.assert_array_equal(names["frame"]["embedding"].to_numpy(), expected)
    assert names["frame"]["id"].to_list() == names["rows"]["id"][:] == [7 * row for row in range(103)]
    ((found, embedding),) = names["found"]
    assert found == 7 * 31
    np.testing.assert_array_equal(np.array(embedding, np.float32), expected[31])
    np.testing.assert_array_equal(names["matrix"], expected)


def test_faiss_takes_the_matrix_that_pyarrow_reads(folder: Path) -> None:
    faiss = pytest.importorskip("faiss")
    parquet = pytest.importorskip("pyarrow.parquet")
    column = parquet.read_table(folder, columns=["embedding"])["embedding"].combine_chunks()
    matrix = column.flatten().to_numpy().reshape(len(column), -1)
    index = faiss.IndexFlatIP(matrix.shape[1])
    index.add(matrix)
    products, nearest = index.search(matrix[:5], 1)
    np.testing.assert_allclose(products[:, 0], (matrix[:5] @ matrix.T).max(axis=1), rtol=1e-5)
    assert nearest.shape == (5, 1)


def test_a_folder_that_an_earlier_version_began_is_finished_under_its_names(options: Options, text_file: Path) -> None:
    chosen = options(text_file, window=40)
    encode(chosen, progress=False)
    folder, expected = Path(chosen.output), np.asarray(load(chosen.output)).copy()
    for name in ("_manifest.json", "_shards.jsonl"):
        (folder / name).rename(folder / name[1:])
    np.testing.assert_array_equal(np.asarray(load(folder)), expected)
    (folder / "embeddings-00001.parquet").unlink()
    encode(chosen, progress=False)
    np.testing.assert_array_equal(np.asarray(load(folder)), expected)
    assert not list(folder.glob("_*"))


def test_a_manifest_of_somebody_else_is_left_alone(options: Options, text_file: Path, tmp_path: Path) -> None:
    write_files(tmp_path / "site", {"manifest.json": '{"name": "My application"}'})
    encode(options(text_file, output=str(tmp_path / "site"), overwrite=True), progress=False)
    assert (tmp_path / "site" / "manifest.json").read_text() == '{"name": "My application"}'
    assert len(load(tmp_path / "site")) == 103
