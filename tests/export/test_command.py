"""`diffcse-scale export`: what is in the new folder, and that nothing else is touched."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from sentence_transformers import SentenceTransformer
from transformers import BertModel
from typer.testing import CliRunner

from diffcse_scale.cli import app
from diffcse_scale.export.command import ExportOptions, export_model
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.model_folder.save import append_module
from tests.support.files import set_about
from tests.support.hand_made_run import SENTENCES
from tests.support.tiny_models import tiny_bert


def vectors(folder: Path) -> np.ndarray:
    return SentenceTransformer(str(folder), device="cpu", local_files_only=True).encode(SENTENCES)


def test_by_default_the_folder_holds_the_encoder_and_nothing_that_only_training_needs(run: Path) -> None:
    export_model(run, run.parent / "out", ExportOptions())

    files = {
        path.relative_to(run.parent / "out").as_posix() for path in (run.parent / "out").rglob("*") if path.is_file()
    }
    assert files == {
        "model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "modules.json",
        "sentence_bert_config.json", "config_sentence_transformers.json", "1_Pooling/config.json", "README.md",
        "curves.png", ".diffcse-scale.json",
    }  # fmt: skip
    with safe_open(run.parent / "out" / "model.safetensors", "pt") as weights:
        assert set(weights.keys()) == set(tiny_bert().state_dict())
    np.testing.assert_array_equal(vectors(run.parent / "out"), vectors(run / "model"))


def test_normalize_gives_vectors_of_length_one_once(run: Path, tmp_path: Path) -> None:
    export_model(run, tmp_path / "out", ExportOptions(normalize=True))
    export_model(tmp_path / "out", tmp_path / "again", ExportOptions(normalize=True))

    expected = vectors(run / "model")
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors(tmp_path / "out"), expected, rtol=0, atol=1e-6)
    assert (tmp_path / "again" / "modules.json").read_text() == (tmp_path / "out" / "modules.json").read_text()


def test_the_projection_comes_before_the_normalization(run: Path, tmp_path: Path) -> None:
    export_model(run, tmp_path / "z", ExportOptions(projection=True))
    export_model(run, tmp_path / "unit_z", ExportOptions(projection=True, normalize=True))

    z = vectors(tmp_path / "z")
    np.testing.assert_allclose(
        vectors(tmp_path / "unit_z"), z / np.linalg.norm(z, axis=1, keepdims=True), rtol=0, atol=1e-6
    )
    assert np.abs(z - vectors(run / "model")).max() > 0.1


def test_max_length_is_where_users_sentences_are_cut(run: Path, tmp_path: Path) -> None:
    export_model(run, tmp_path / "out", ExportOptions(max_length=5))

    assert SentenceTransformer(str(tmp_path / "out"), device="cpu").max_seq_length == 5
    assert "max_length=5" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(InputError, match=r"--max-length = 600 is more than the 512 positions"):
        export_model(run, tmp_path / "long", ExportOptions(max_length=600))


def test_a_folder_that_is_in_no_run_keeps_its_own_card(run: Path, tmp_path: Path) -> None:
    foreign = (run / "model").rename(tmp_path / "foreign")
    (foreign / "README.md").write_text("# Somebody's\n")
    (foreign / "onnx").mkdir()  # of other options, perhaps

    export_model(foreign, tmp_path / "out", ExportOptions(normalize=True))

    assert (tmp_path / "out" / "README.md").read_text() == "# Somebody's\n"
    assert not (tmp_path / "out" / "onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "absent"], "does not exist"),
        (["--model", "plain"], "says nothing of pooling"),
        (["--model", "loose", "--with-projection"], "needs the run"),
        (["--model", "mine", "--output", "mine/model"], "mine/model belongs to the run in .*mine; give another folder"),
        (["--model", "mine", "--output", "mine"], "mine belongs to the run in .*mine; give another folder"),
        (["--model", "mine", "--private"], "--push-to-hub, which is not given"),
        (["--model", "mine", "--push-to-hub", "nobody"], "names no owner"),
        (["--model", "mine", "--push-to-hub", "a/b c"], "is not the name of a model on the Hub"),
    ],
)
def test_a_mistake_is_one_sentence_and_writes_nothing(run, tmp_path, monkeypatch, arguments, message) -> None:
    monkeypatch.chdir(tmp_path)
    BertModel(tiny_bert().config).save_pretrained("plain")
    export_model(run, "loose", ExportOptions())
    before = sorted(tmp_path.rglob("*"))
    if "--output" not in arguments:
        arguments = [*arguments, "--output", "out"]

    result = CliRunner().invoke(app, ["export", *arguments])

    assert isinstance(result.exception, InputError)
    assert re.search(message, str(result.exception))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("added", [{"normalize": True}, {"whiten": ("corpus.txt",)}])
def test_no_module_is_added_before_vectors_are_cut(run: Path, tmp_path: Path, added: dict[str, Any]) -> None:
    """`truncate_dim` acts after all modules, so vectors would neither have length 1 nor be whitened."""
    set_about(run / "model", truncate_dim=5)
    with pytest.raises(
        InputError, match=r"keeps the first 5 numbers of a vector \(truncate_dim in config_sent.*\) after"
    ):
        export_model(run, tmp_path / "out", ExportOptions(**added))
    export_model(run, tmp_path / "out", ExportOptions())
    assert SentenceTransformer(str(tmp_path / "out")).encode("a dog").shape == (5,)


def test_an_export_that_fails_half_way_leaves_the_earlier_one(run: Path, tmp_path: Path, monkeypatch) -> None:
    export_model(run, tmp_path / "out", ExportOptions())
    monkeypatch.setattr("diffcse_scale.export.command.append_module", lambda *_: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        export_model(run, tmp_path / "out", ExportOptions(normalize=True))

    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]
    assert len(json.loads((tmp_path / "out" / "modules.json").read_text())) == 2


def test_appended_modules_are_numbered_on(run: Path) -> None:
    append_module(run / "model", "Normalize", {})
    modules = json.loads((run / "model" / "modules.json").read_text())
    assert [module["path"] for module in modules] == ["", "1_Pooling", "2_Normalize"]
