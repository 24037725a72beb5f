"""The benchmark's own scoring of an exported run against ours, from a local copy of the data."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from diffcse_scale.evaluation import read_pairs
from diffcse_scale.evaluation.command import evaluate_models
from diffcse_scale.evaluation.scores import NOT_FINITE
from diffcse_scale.export import export_sentence_transformer
from tests.support.tiny_models import tiny_bert, tiny_tokenizer

pytest.importorskip("mteb", reason="the extra eval")


def local_copy(folder: Path, pairs: list[tuple[float, str, str]]) -> None:
    """STS-B test in the form of the Hub's data set."""
    folder.mkdir(parents=True)
    rows = [json.dumps({"score": score, "sentence1": a, "sentence2": b}) for score, a, b in pairs]
    (folder / "test.jsonl").write_text("\n".join(rows))


@pytest.mark.slow
def test_an_exported_run_is_scored_by_mteb_as_by_us(tmp_path: Path) -> None:
    pairs = [(4.0, "a dog runs", "a cat runs"), (1.0, "a dog runs", "a horse sleeps"), (3.0, "dog eats", "grass eats")]
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text("name: tiny\n")
    export_sentence_transformer(tiny_bert(), tiny_tokenizer(), "mean", 16, run / "model")
    local_copy(tmp_path / "data" / "mteb" / "STSBenchmark", pairs)
    own = tmp_path / "own.tsv"
    own.write_text("".join(f"{score}\t{a}\t{b}\n" for score, a, b in pairs))

    mteb = evaluate_models([run], tmp_path / "data", ["mteb:STSBenchmark"])[0]["mteb"]["STSBenchmark"]
    ours = evaluate_models([run], own)[0]["sts"]["own"]

    assert mteb.value == pytest.approx(ours.value, abs=1e-4)
    assert (mteb.measure, mteb.count, mteb.interval) == ("cosine_spearman x 100", 3, None)
    (kept,) = (run / "evaluation").glob("mteb-*.json")
    (task,) = json.loads(kept.read_text())["tasks"]
    assert task["value"] == mteb.value


@pytest.mark.slow
def test_embeddings_that_are_not_finite_have_no_score(tmp_path: Path) -> None:
    backbone, tokenizer = tiny_bert(), tiny_tokenizer()
    with torch.no_grad():
        backbone.embeddings.word_embeddings.weight[tokenizer.convert_tokens_to_ids("grass")] = 1e30
    export_sentence_transformer(backbone, tokenizer, "mean", 16, tmp_path / "model")
    local_copy(tmp_path / "data" / "mteb" / "STSBenchmark", [(4.0, "a dog", "a cat"), (1.0, "dog eats", "the grass")])
    found = evaluate_models([tmp_path / "model"], tmp_path / "data", ["mteb:STSBenchmark"])[0]["mteb"]["STSBenchmark"]
    assert math.isnan(found.value) and found.remark == NOT_FINITE


@pytest.mark.realdata
@pytest.mark.slow
def test_mteb_gives_the_same_correlation_on_sts_b(data_folder: Path, models_folder: Path, tmp_path: Path) -> None:
    """On 1,379 pairs, to 0.01: mteb computes cosines in float32."""
    local_copy(tmp_path / "mteb" / "STSBenchmark", read_pairs(data_folder / "sts/STSB/test.tsv"))
    model = models_folder / "wiki-mini"
    mteb = evaluate_models([model], tmp_path, ["mteb:STSBenchmark"], pooling="mean")[0]["mteb"]["STSBenchmark"]
    ours = evaluate_models([model], data_folder, ["sts:STS-B test"], pooling="mean")[0]["sts"]["STS-B test"]
    assert mteb.count == ours.count == 1379
    assert mteb.value == pytest.approx(ours.value, abs=0.01)
