"""An export whose vectors are not those of its source gets no name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from diffcse_scale.export import command, export_sentence_transformer
from diffcse_scale.export.command import ExportOptions, export_model
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.model_folder.appended_projection import append_projection
from diffcse_scale.model_folder.copying import copy_files
from diffcse_scale.model_folder.validation import check_export, expected_vectors
from tests.support.tiny_models import tiny_bert, tiny_tokenizer


def change(file: Path, by: float) -> None:
    weights = load_file(file)
    save_file({name: weight + by for name, weight in weights.items()}, file, metadata={"format": "pt"})


WRONG: dict[str, tuple[ExportOptions, str, Callable[..., object]]] = {
    "weights": (
        ExportOptions(),
        "copy_files",
        lambda files, target: (copy_files(files, target), change(target / "model.safetensors", 1e-2)),
    ),
    "length": (ExportOptions(max_length=5), "set_max_length", lambda folder, length: None),
    "projection": (
        ExportOptions(projection=True),
        "append_projection",
        lambda folder, *run: (append_projection(folder, *run), change(folder / "2_Dense" / "model.safetensors", 1e-3)),
    ),
    "no projection": (ExportOptions(projection=True), "append_projection", lambda *arguments: None),
    "normalization": (ExportOptions(normalize=True), "append_module", lambda *arguments: None),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_other_vectors_are_refused_and_nothing_is_left(run: Path, tmp_path: Path, monkeypatch, wrong: str) -> None:
    options, name, does = WRONG[wrong]
    export_model(run, tmp_path / "right", options)
    monkeypatch.setattr(command, name, does)
    with pytest.raises(
        InputError, match=r"does not reproduce the vectors of the model in .* allowed is 1e-05\); nothing was"
    ):
        export_model(run, tmp_path / "out", options)
    assert not list(tmp_path.glob("*out*"))


def test_weights_that_are_damaged_on_their_way_are_refused(run: Path, tmp_path: Path, monkeypatch) -> None:
    def damaging(files: dict[Path, Path], target: Path) -> None:
        copy_files(files, target)
        change(target / "model.safetensors", float("nan"))

    monkeypatch.setattr(command, "copy_files", damaging)
    with pytest.raises(InputError, match="has weights that are not finite numbers"):
        export_model(run, tmp_path / "out", ExportOptions())
    assert not list(tmp_path.glob("*out*"))


def test_the_tolerance_is_a_hundred_thousandth(tmp_path: Path) -> None:
    export_sentence_transformer(tiny_bert(), tiny_tokenizer(), "mean", 16, tmp_path / "model")
    vectors = expected_vectors(tmp_path / "model", None, None, False)
    largest = np.abs(vectors).max()
    check_export(tmp_path / "model", tmp_path / "model", vectors + 0.9e-5 * largest)
    for wrong in (vectors + 1.1e-5 * largest, vectors[:, :-1], np.full_like(vectors, np.nan)):
        with pytest.raises(InputError, match="does not reproduce the vectors"):
            check_export(tmp_path / "model", tmp_path / "model", wrong)


def test_an_export_of_half_precision_is_compared_like_any_other(tmp_path: Path) -> None:
    model = tiny_bert().to(torch.bfloat16)
    export_sentence_transformer(model, tiny_tokenizer(), "mean", 16, tmp_path / "model")
    export_model(tmp_path / "model", tmp_path / "out", ExportOptions(normalize=True))
    assert load_file(tmp_path / "out" / "model.safetensors")["embeddings.LayerNorm.bias"].dtype == torch.bfloat16


@pytest.mark.parametrize("damage", ["a part", "a number", "all"])
def test_a_damaged_projection_is_refused(run: Path, tmp_path: Path, damage: str) -> None:
    file = run / "projection.safetensors"
    weights = load_file(file)
    if damage == "a part":
        del weights["net.1.running_var"]
    weights["net.0.weight"][0, 0] = float("nan" if damage == "a number" else 0)
    save_file(weights, file)
    if damage == "all":
        file.write_bytes(b"nothing")
    message = (
        "not finite numbers: net.0.weight"
        if damage == "a number"
        else r"projection of the run in .* cannot be read: .*; export without it\."
    )
    with pytest.raises(InputError, match=message):
        export_model(run, tmp_path / "out", ExportOptions(projection=True))
    assert not list(tmp_path.glob("*out*"))


def test_a_model_whose_vectors_are_not_finite_is_refused_though_its_weights_are(tmp_path: Path) -> None:
    backbone = tiny_bert()
    with torch.no_grad():
        backbone.embeddings.word_embeddings.weight.fill_(1e30)
    export_sentence_transformer(backbone, tiny_tokenizer(), "mean", 8, tmp_path / "model")
    with pytest.raises(InputError, match=r"Rows 0, 1, 2 and 5 more of the texts .* not finite .*nothing was written"):
        export_model(tmp_path / "model", tmp_path / "out", ExportOptions())
    assert not (tmp_path / "out").exists()
