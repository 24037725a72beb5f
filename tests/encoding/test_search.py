"""Search agrees with brute force; queries come from the command line or a pipe."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from diffcse_scale.encoding import EncodeOptions, encode, folder, load, search
from diffcse_scale.encoding.prompt import answer
from diffcse_scale.encoding.rows import open_rows
from diffcse_scale.foundation.errors import InputError
from tests.support.files import set_about

Options = Callable[..., EncodeOptions]
QUERIES = ["a fast dog", "the horse sleeps over green grass", "cat"]


def cosines(queries: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """float64, all pairs."""
    left, right = (matrix.astype(np.float64) for matrix in (queries, vectors))
    norms = np.linalg.norm(left, axis=1)[:, None] * np.linalg.norm(right, axis=1)
    return left @ right.T / norms


@pytest.fixture
def queries(model: SentenceTransformer) -> np.ndarray:
    return model.encode(QUERIES)


@pytest.mark.parametrize("form", ["parquet", "npy"])
@pytest.mark.parametrize("block", [5, 16_384])
def test_exact_search_is_brute_force(
    options: Options, text_file: Path, queries: np.ndarray, monkeypatch: pytest.MonkeyPatch, form: str, block: int
) -> None:
    monkeypatch.setattr(search, "BLOCK", block)
    encode(options(text_file, format=form), progress=False)
    embeddings = load(options(text_file).output)
    truth = cosines(queries, np.asarray(embeddings))
    found, rows = search.exact(embeddings)(queries, 10)
    order = np.argsort(-truth, axis=1, kind="stable")[:, :10]
    np.testing.assert_allclose(found, np.take_along_axis(truth, order, 1), atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(truth, rows, 1), found, atol=1e-6)
    everything, rows = search.exact(embeddings)(queries, 1000)
    assert everything.shape == (3, 103)
    assert sorted(rows[0]) == list(range(103))


@pytest.mark.parametrize("size", [1e-44, 1e-30, 1e20, 3e38])
def test_cosines_do_not_depend_on_the_size_of_vectors(size: float) -> None:
    """The norm of 1e20 overflows in float32, and the square of 1e-30 vanishes."""
    vectors = np.random.default_rng(0).uniform(-1, 1, (5, 8)).astype(np.float32)
    sized = (vectors * size).astype(np.float32)
    truth = sized.astype(np.float64)
    truth /= np.linalg.norm(truth, axis=1, keepdims=True)
    np.testing.assert_allclose(search.unit(sized), truth, rtol=1e-6)
    assert not search.unit(np.zeros((1, 8), np.float32)).any()


def test_of_equal_cosines_the_first_row_comes_first(options: Options, text_file: Path, sentences: list[str]) -> None:
    # on some processors a sentence's last bits depend on its place in the batch; float16 drops them
    encode(options(text_file, dtype="float16"), progress=False)
    embeddings = load(options(text_file).output)
    query = np.asarray(embeddings)[7:8]
    np.testing.assert_array_equal(query[0], np.asarray(embeddings)[102])
    assert search.exact(embeddings)(query, 2)[1].tolist() == [[7, 102]]
    assert search.exact(embeddings)(query, 1)[1].tolist() == [[7]]


def test_int8_search_differs_by_no_more_than_its_steps(
    options: Options, text_file: Path, queries: np.ndarray, tmp_path: Path
) -> None:
    plain = options(text_file, output=str(tmp_path / "plain"))
    # one window, so that the ranges hold for all rows
    encode(plain, progress=False)
    encode(options(text_file, dtype="int8", window=200), progress=False)
    truth = cosines(queries, np.asarray(load(plain.output)))
    found, rows = search.exact(load(options(text_file).output))(queries, 103)
    np.testing.assert_allclose(found, np.take_along_axis(truth, rows, 1), atol=0.01)


def test_binary_search_is_the_cosine_with_the_signs(
    options: Options, text_file: Path, queries: np.ndarray, tmp_path: Path
) -> None:
    plain = options(text_file, output=str(tmp_path / "plain"))
    encode(plain, progress=False)
    encode(options(text_file, dtype="binary"), progress=False)
    truth = cosines(queries, np.where(np.asarray(load(plain.output)) > 0, 1.0, -1.0))
    found, rows = search.exact(load(options(text_file).output))(queries, 103)
    np.testing.assert_allclose(found, np.take_along_axis(truth, rows, 1), atol=1e-6)
    np.testing.assert_allclose(found, -np.sort(-truth, axis=1), atol=1e-6)


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_a_faiss_index_finds_what_exact_search_finds_and_is_kept(
    options: Options, text_file: Path, queries: np.ndarray, kind: str
) -> None:
    pytest.importorskip("faiss", reason="the extra search")
    encode(options(text_file), progress=False)
    folder = Path(options(text_file).output)
    embeddings = load(folder)
    expected, _ = search.exact(embeddings)(queries, 3)
    found, _ = search.approximate(embeddings, kind, folder)(queries, 3)
    # among 103 rows hnsw finds them all; ivf looks into a part of two clusters
    assert np.abs(found[:, 0] - expected[:, 0]).max() < (1e-5 if kind == "hnsw" else 0.2)
    (kept,) = folder.glob(f"_{kind}-*.faiss")
    written = kept.stat().st_mtime_ns
    again, _ = search.approximate(embeddings, kind, folder)(queries, 3)
    np.testing.assert_array_equal(again, found)
    assert kept.stat().st_mtime_ns == written


def test_an_index_of_an_earlier_version_is_read_under_its_name(options: Options, text_file: Path) -> None:
    encode(options(text_file), progress=False)
    folder = Path(options(text_file).output)
    new = search.index_file(load(folder), "hnsw", folder)
    earlier = folder / new.name.removeprefix("_")
    assert earlier != new
    earlier.touch()
    assert search.index_file(load(folder), "hnsw", folder) == earlier
    new.touch()
    assert search.index_file(load(folder), "hnsw", folder) == new


def test_an_unknown_index_and_an_absent_faiss_are_one_sentence(
    options: Options, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode(options(text_file), progress=False)
    folder = Path(options(text_file).output)
    with pytest.raises(InputError, match="no index 'annoy'; there are exact, hnsw, ivf"):
        search.make_search(load(folder), "annoy", folder)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(InputError, match=r"pip install 'diffcse-scale\[search\]'"):
        search.make_search(load(folder), "hnsw", folder)


def test_answers_show_cosine_row_and_sentence(
    options: Options, text_file: Path, sentences: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    encode(options(text_file), progress=False)
    answer(options(text_file).output, [sentences[50]], top=2)
    query, best, _ = capsys.readouterr().out.splitlines()
    assert query == sentences[50]
    assert best.split(maxsplit=2) == ["1.0000", "50", sentences[50]]


@pytest.mark.parametrize("fault", ["changed", "gone", "cache"])
def test_without_its_sentences_a_search_says_once_why(
    options: Options,
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    fault: str,
) -> None:
    chosen = options(text_file)
    encode(chosen, progress=False)
    why = {
        "changed": f"has changed since {chosen.output}",
        "gone": f"{text_file}: no such file",
        "cache": "cannot be written",
    }
    if fault == "changed":
        text_file.write_text(text_file.read_text().upper())
    elif fault == "gone":
        text_file.unlink()
    else:
        (tmp_path / "file").touch()
        monkeypatch.setenv("DIFFCSE_CACHE", str(tmp_path / "file"))
    answer(chosen.output, ["a dog", "the cat"], top=2)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [len(row) for row in rows] == [2, 2, 2, 0, 2, 2, 2]  # each query, its two rows without text
    (told,) = [record.message for record in caplog.records if "without their sentences" in record.message]
    assert why[fault] in told and "--keep-text" in told


def test_the_input_is_opened_once_for_all_queries(
    options: Options, text_file: Path, sentences: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening hashes its files, which takes long if they are large. A later change of a file shows nothing wrong."""
    encode(options(text_file), progress=False)
    opened: list[object] = []
    monkeypatch.setattr(folder, "open_rows", lambda *given: opened.append(given) or open_rows(*given))
    embeddings = load(options(text_file).output)
    assert not opened, "whoever asks for no sentence needs no input"
    assert embeddings.texts([3, 99]) == [sentences[3], sentences[99]]
    text_file.write_text("other\n")
    assert embeddings.texts([5]) == [sentences[5]]
    assert len(opened) == 1


def test_queries_are_read_from_a_pipe_line_by_line(
    options: Options,
    text_file: Path,
    sentences: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    encode(options(text_file), progress=False)
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{sentences[3]}\n\n{sentences[99]}\n"))
    answer(options(text_file).output, [], top=1)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[1::2]] == ["3", "99"]


def test_a_search_with_another_model_is_refused(
    options: Options, text_file: Path, model_dir: Path, tmp_path: Path
) -> None:
    encode(options(text_file), progress=False)
    other = tmp_path / "other"
    shutil.copytree(model_dir, other)
    (other / "tokenizer_config.json").write_text("{}")
    with pytest.raises(InputError, match="is not the model that these embeddings were made with"):
        answer(options(text_file).output, ["a dog"], model=str(other))


def test_a_model_that_has_moved_is_asked_for(
    options: Options, text_file: Path, model_dir: Path, tmp_path: Path
) -> None:
    here = tmp_path / "here"
    shutil.copytree(model_dir, here)
    encode(options(text_file, model=str(here)), progress=False)
    there = here.rename(tmp_path / "there")
    with pytest.raises(
        InputError, match="here, the model that these embeddings were made with, is gone; give it with --"
    ):
        answer(options(text_file).output, ["a dog"])
    answer(options(text_file).output, ["a dog"], model=str(there))


def test_another_similarity_of_the_model_is_told_by_search_alone(
    options: Options, text_file: Path, model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = shutil.copytree(model_dir, tmp_path / "other")
    set_about(other, similarity_fn_name="dot")
    encode(options(text_file, model=str(other)), progress=False)
    assert "its own similarity" not in caplog.text
    answer(options(text_file).output, ["a dog", "the cat"])
    assert caplog.text.count(f"{other}: its own similarity is dot (similarity_fn_name), but cosines are") == 1


def test_a_folder_without_embeddings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no embeddings; make them with `diffcse-scale encode`"):
        load(tmp_path)


def test_a_person_is_told_what_a_cosine_says_and_a_pipe_is_not(
    options: Options, text_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = options(text_file)
    encode(made, progress=False)
    shown = []
    for person in (True, False):
        monkeypatch.setattr(sys.stdout, "isatty", lambda person=person: person)
        answer(made.output, [QUERIES[0]], top=1)
        shown.append(" ".join(capsys.readouterr().out.split()))
    assert "Compare cosines only with each other" in shown[0]
    assert "Compare cosines" not in shown[1] and shown[1].startswith(QUERIES[0])
