"""Encoding once, and on several devices."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

import diffcse_scale.model_folder.load
from diffcse_scale.evaluation.command import evaluate_models
from diffcse_scale.evaluation.sentence_encoder import Once, on_devices, parse_devices
from diffcse_scale.export import export_sentence_transformer
from diffcse_scale.foundation.errors import InputError
from tests.support.tiny_models import WORDS, tiny_bert, tiny_tokenizer


def test_a_sentence_is_encoded_once_whoever_asks() -> None:
    asked: list[list[str]] = []

    def lengths(sentences: list[str]) -> np.ndarray:
        asked.append(sentences)
        return np.array([[len(sentence)] for sentence in sentences])

    encode = Once(lengths)
    np.testing.assert_array_equal(encode(["aa", "b", "aa"]), [[2], [1], [2]])
    np.testing.assert_array_equal(encode(["ccc", "b"]), [[3], [1]])
    np.testing.assert_array_equal(encode(["b", "aa"]), [[1], [2]])
    assert asked == [["aa", "b"], ["ccc"]]


@pytest.mark.parametrize("shape", [(2,), (3, 4), (2, 1, 4)], ids=str)
def test_an_encoder_gives_a_row_for_each_sentence(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"encode gave an array of shape {re.escape(str(shape))} for 2 sentences"):
        Once(lambda sentences: np.zeros(shape))(["a", "b", "a"])


def test_devices_are_named_with_commas_between_and_must_be_there() -> None:
    assert parse_devices(None) == []
    assert parse_devices("cpu, cpu") == ["cpu", "cpu"]
    for absent in ("cuda:63", "toaster"):
        with pytest.raises(InputError, match=f"--devices: '{absent}' cannot be used here"):
            parse_devices(f"cpu,{absent}")


def test_devices_are_counted_and_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that only starts others holds nothing on their devices."""
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert parse_devices("cuda:0,cuda:1,cuda,cpu") == ["cuda:0", "cuda:1", "cuda", "cpu"]
    for absent in ("cuda:2", "cuda:x", "mps"):
        with pytest.raises(InputError, match=f"'{absent}' cannot be used here; there are cpu, cuda:0 to 1"):
            parse_devices(absent)


def test_a_model_for_several_devices_is_loaded_on_none_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export_sentence_transformer(tiny_bert(), tiny_tokenizer(), "mean", 16, tmp_path / "model")
    (tmp_path / "pairs.tsv").write_text("1\ta dog\tthe cat\n2\ta cat\ta cat\n")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    asked: list[str | None] = []

    def loaded(folder: Path, pooling: str | None, device: str | None) -> None:
        asked.append(device)
        raise InputError("enough")

    monkeypatch.setattr(diffcse_scale.model_folder.load, "load_model", loaded)
    for devices in ("cuda:0,cuda:1", "cuda:1", None):
        with pytest.raises(InputError, match="enough"):
            evaluate_models([tmp_path / "model"], tmp_path / "pairs.tsv", devices=devices)
    assert asked == ["cpu", "cuda:1", None]


@pytest.mark.slow
def test_two_processes_give_the_vectors_of_one(tmp_path: Path) -> None:
    export_sentence_transformer(tiny_bert(), tiny_tokenizer(), "mean", 16, tmp_path / "model")
    model = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    sentences = [f"{first} {second}" for first in WORDS for second in WORDS][:50]
    with on_devices(model, [], batch_size=8) as arguments:
        expected = model.encode(sentences, **arguments)
    with on_devices(model, ["cpu", "cpu"], batch_size=8) as arguments:
        processes = arguments["pool"]["processes"]
        assert len(processes) == 2
        np.testing.assert_allclose(model.encode(sentences, **arguments), expected, rtol=0, atol=1e-6)
    assert not any(process.is_alive() for process in processes if not process._closed)
