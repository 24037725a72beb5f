"""A tiny model folder, sentences of every length, and a cache of the test's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sentence_transformers import SentenceTransformer

from diffcse_scale.encoding import EncodeOptions
from diffcse_scale.export import export_sentence_transformer
from tests.support.devices import ON_GPU
from tests.support.encoding_material import sentence
from tests.support.tiny_models import tiny_bert, tiny_tokenizer


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFCSE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of width 24, mean pooling, at most 20 tokens."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    export_sentence_transformer(tiny_bert(), tiny_tokenizer(), "mean", 20, folder)
    return folder


@pytest.fixture(scope="session")
def model(model_dir: Path) -> SentenceTransformer:
    return SentenceTransformer(str(model_dir))


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    """103 sentences: no multiple of any window; the last is a repetition."""
    return [*(sentence(index) for index in range(102)), sentence(7)]


@pytest.fixture
def text_file(tmp_path: Path, sentences: list[str]) -> Path:
    file = tmp_path / "sentences.txt"
    file.write_text("".join(f"{text}\n" for text in sentences), encoding="utf-8")
    return file


@pytest.fixture
def options(tmp_path: Path, model_dir: Path) -> Callable[..., EncodeOptions]:
    """options(file, ..., name=value) with windows of 16 rows and batches of 64 tokens."""

    def make(*files: Path | str, **changes: Any) -> EncodeOptions:
        values: dict[str, Any] = {"model": str(model_dir), "output": str(tmp_path / "out")}
        values["input"] = [str(file) for file in files]
        values |= {"devices": "cuda:0", "precision": "float32"} if ON_GPU else {"devices": "cpu"}
        return EncodeOptions.model_validate({**values, "window": 16, "batch_tokens": 64, **changes})

    return make
