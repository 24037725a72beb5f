"""Whitened exports: by the definition of whitening, for all that reads the folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from diffcse_scale.encoding import EncodeOptions, encode, load
from diffcse_scale.encoding.prompt import answer
from diffcse_scale.export import whitening as module
from diffcse_scale.export.command import ExportOptions, export_model
from diffcse_scale.export.whitening import whitening
from diffcse_scale.foundation.errors import InputError
from tests.support.encoding_material import sentence


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIFFCSE_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "text.txt"
    file.write_text("".join(f"{line}\n" for line in dict.fromkeys(map(sentence, range(400)))), encoding="utf-8")
    return file


def vectors_of(folder: Path, text: Path) -> np.ndarray:
    sentences = text.read_text(encoding="utf-8").splitlines()
    return SentenceTransformer(str(folder), device="cpu").encode(sentences).astype(np.float64)


def numbers_of_texts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many texts are encoded, each time."""
    found: list[int] = []
    original = SentenceTransformer.encode

    def encode(model: SentenceTransformer, texts: list[str], **options: Any) -> Any:
        found.append(len(texts))
        return original(model, texts, **options)

    monkeypatch.setattr(SentenceTransformer, "encode", encode)
    return found


@pytest.mark.parametrize("projection", [False, True])
def test_the_vectors_of_the_text_have_mean_0_and_the_identity_as_covariance(
    run: Path, tmp_path: Path, text: Path, projection: bool
) -> None:
    export_model(run, tmp_path / "plain", ExportOptions(projection=projection))
    export_model(run, tmp_path / "white", ExportOptions(projection=projection, whiten=[str(text)]))

    plain, white = (vectors_of(tmp_path / name, text) for name in ("plain", "white"))
    assert white.shape[1] == plain.shape[1] // 2
    np.testing.assert_allclose(white.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(np.cov(white, rowvar=False), np.eye(white.shape[1]), atol=1e-3)
    # their products are those of the first left singular vectors, whatever the signs of these
    left = np.linalg.svd(plain - plain.mean(0), full_matrices=False)[0][:, : white.shape[1]]
    np.testing.assert_allclose(white @ white.T, left @ left.T * (len(plain) - 1), atol=1e-2)


def test_encode_and_search_whiten_too(
    run: Path, tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_model(run, tmp_path / "white", ExportOptions(whiten=[str(text)]))
    output = str(tmp_path / "embeddings")
    encode(EncodeOptions(model=str(tmp_path / "white"), input=[str(text)], output=output, devices="cpu"), False)
    np.testing.assert_allclose(np.asarray(load(output)), vectors_of(tmp_path / "white", text), atol=1e-3)

    capsys.readouterr()
    query = sentence(5)
    answer(output, [query], top=1)
    cosine, _, found = capsys.readouterr().out.splitlines()[1].split(maxsplit=2)
    assert (cosine, found) == ("1.0000", query)


def test_the_card_says_so_and_keeps_back_results_of_other_vectors(run: Path, tmp_path: Path, text: Path) -> None:
    export_model(run, tmp_path / "plain", ExportOptions())
    export_model(run, tmp_path / "white", ExportOptions(whiten=[str(text)]))

    plain, white = ((tmp_path / name / "README.md").read_text(encoding="utf-8") for name in ("plain", "white"))
    assert "whitened" not in plain and "cosines\n  may be high for all pairs" in plain
    assert "then whitened with the mean and the covariance" in white and "may be high for all pairs" not in white
    width = vectors_of(tmp_path / "white", text).shape[1]
    assert f"| vector | {width} numbers" in white and "the projection" not in white
    assert "`diffcse-scale evaluate`, suite" in plain and "`diffcse-scale evaluate`, suite" not in white


def test_vectors_that_are_wider_than_the_usual_sample_allows_get_a_larger_one(
    run: Path, tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SAMPLE", 10)
    encoded = numbers_of_texts(monkeypatch)
    export_model(run, tmp_path / "white", ExportOptions(whiten=[str(text)]))
    assert max(encoded) == 4 * 24
    assert np.isfinite(vectors_of(tmp_path / "white", text)).all()


def test_too_little_text_is_refused_before_it_is_encoded_and_nothing_is_written(
    run: Path, tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = numbers_of_texts(monkeypatch)
    text.write_text("one sentence\nand another\n", encoding="utf-8")
    with pytest.raises(
        InputError, match=r"--whiten has 2 distinct sentences; embeddings of width .* need .* give more"
    ):
        export_model(run, tmp_path / "white", ExportOptions(whiten=[str(text)]))
    assert not (tmp_path / "white").exists() and max(encoded) == 1, "the width of a vector"
    with pytest.raises(InputError, match="vary in too few directions"):
        whitening(np.outer(np.arange(200.0), np.ones(4)), 2)
