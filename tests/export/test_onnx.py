"""ONNX files give the vectors of PyTorch, on batches that the exporter has not seen, and quantized nearly the same."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import load as load_proto
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedModel

from diffcse_scale.export import export_sentence_transformer, onnx
from diffcse_scale.export.command import ExportOptions, export_model
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.model.pooling import POOLINGS
from tests.support.hand_made_run import SENTENCES
from tests.support.tiny_models import FAMILIES, tiny_backbone, tiny_bert, tiny_tokenizer

MAX_LENGTH = 24


def saved(model: PreTrainedModel, pooling: str, folder: Path) -> SentenceTransformer:
    export_sentence_transformer(model, tiny_tokenizer(), pooling, MAX_LENGTH, folder)
    return SentenceTransformer(str(folder), device="cpu", local_files_only=True)


def pooled(folder: Path, pooling: str, file: str, sentences: list[str]) -> np.ndarray:
    """Sentence vectors by onnxruntime and NumPy alone, the whole list in one batch."""
    session = onnxruntime.InferenceSession(folder / "onnx" / file)
    tokens = tiny_tokenizer()(sentences, padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="np")
    (vectors,) = session.run(["last_hidden_state"], {entry.name: tokens[entry.name] for entry in session.get_inputs()})
    mask = tokens["attention_mask"]
    if pooling == "cls":
        return vectors[:, 0]
    if pooling == "last":
        return vectors[np.arange(len(sentences)), mask.sum(1) - 1]
    return (vectors * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)


def check(model: PreTrainedModel, pooling: str, folder: Path) -> onnx.OnnxComparison:
    """Export and compare, in batches of one and of all, with sentence-transformers."""
    sentence_transformer = saved(model, pooling, folder)
    comparison = onnx.export_onnx(sentence_transformer, folder, int8=True)
    assert comparison.difference <= 1e-5
    for batch in (*([sentence] for sentence in SENTENCES), SENTENCES, SENTENCES * 5):
        expected = sentence_transformer.encode(batch)
        np.testing.assert_allclose(pooled(folder, pooling, "model.onnx", batch), expected, rtol=0, atol=1e-5)
        assert pooled(folder, pooling, "model_qint8.onnx", batch).shape == expected.shape
    assert comparison.int8_cosine is not None and comparison.int8_cosine[1] > 0.9
    return comparison


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT whose `last_hidden_state` is an average of two layers: the least direct of all poolings."""
    folder = tmp_path_factory.mktemp("onnx") / "bert"
    check(tiny_bert(), "first_last_mean", folder)
    return folder


def test_the_vectors_are_those_of_pytorch(exported: Path) -> None:
    vectors = pooled(exported, "mean", "model.onnx", SENTENCES)
    wrong = pooled(exported, "cls", "model.onnx", SENTENCES)
    assert np.abs(vectors - wrong).max() > 1e-2  # the fixture has compared them; a wrong pooling would have shown


def test_the_folder_has_the_names_that_sentence_transformers_and_optimum_look_for(exported: Path) -> None:
    assert sorted(path.name for path in (exported / "onnx").iterdir()) == ["model.onnx", "model_qint8.onnx"]
    session = onnxruntime.InferenceSession(exported / "onnx" / "model.onnx")
    assert {entry.name for entry in session.get_inputs()} >= {"input_ids", "attention_mask"}
    assert all(entry.shape == ["batch", "length"] for entry in session.get_inputs())
    (output,) = session.get_outputs()
    assert (output.name, output.shape) == ("last_hidden_state", ["batch", "length", 24])


def test_nothing_but_the_backbone_is_in_the_files(exported: Path) -> None:
    names = [tensor.name for tensor in load_proto(exported / "onnx" / "model.onnx").graph.initializer]
    assert any("encoder.layer.0" in name for name in names)
    assert not any("pooler" in name for name in names)
    # 8 bits instead of 32 for the matrices, which in a tiny model are the smaller part of the file
    sizes = {path.name: path.stat().st_size for path in (exported / "onnx").iterdir()}
    assert sizes["model_qint8.onnx"] < sizes["model.onnx"]


def test_other_vectors_than_pytorchs_are_a_mistake_and_leave_nothing(exported, run, tmp_path, monkeypatch) -> None:
    def write_another_models(model, example, file) -> None:
        os.link(exported / "onnx" / "model.onnx", file)

    monkeypatch.setattr(onnx, "_write", write_another_models)
    with pytest.raises(InputError, match="does not reproduce PyTorch's vectors"):
        export_model(run, tmp_path / "out", ExportOptions(onnx=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]


def test_a_family_that_cannot_be_exported_is_named(run, tmp_path, monkeypatch) -> None:
    def refuse(*_, **__) -> None:
        raise torch.onnx.errors.OnnxExporterError("no such operator.\nmore")

    monkeypatch.setattr(torch.onnx, "export", refuse)
    with pytest.raises(InputError, match="of type bert cannot be exported to ONNX: no such operator; export"):
        export_model(run, tmp_path / "out", ExportOptions(int8=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]


def test_a_missing_library_is_named_before_anything_is_written(run, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(onnx, "find_spec", lambda name: None if name == "onnxscript" else True)
    with pytest.raises(InputError, match=r"ONNX needs onnxscript: pip install 'diffcse-scale\[onnx\]'"):
        export_model(run, tmp_path / "out", ExportOptions(onnx=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "pooling"), [("roberta", "mean"), ("modernbert", "cls"), ("deberta-v2", "mean"), ("qwen3", "last")]
)
def test_families(family: str, pooling: str, tmp_path: Path) -> None:
    assert family in FAMILIES and pooling in POOLINGS
    check(tiny_backbone(family), pooling, tmp_path / "out")


@pytest.mark.slow
def test_weights_too_large_for_one_file_lie_beside_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(onnx, "LARGEST_FILE", 0)
    check(tiny_bert(), "mean", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out" / "onnx").iterdir()} >= {"model.onnx", "model.onnx_data"}
