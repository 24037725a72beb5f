"""Two views of a sentence differ, in every family, with adapters and without, or the run does not start."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from transformers import PreTrainedModel, Qwen3Model

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.model.dropout import set_dropout
from diffcse_scale.model.lora import add_adapters
from diffcse_scale.model.networks import DiffCSENetworks
from diffcse_scale.model.packing import allow_packing
from diffcse_scale.recipe import LoraRecipe, ObjectiveRecipe
from diffcse_scale.recipe_file import load_recipe
from diffcse_scale.training.views import check_views_differ
from tests.support.launch import launch, metrics
from tests.support.tiny_models import (
    BYTES,
    DECODER_FAMILIES,
    FAMILIES,
    tiny_backbone,
    tiny_byte_tokenizer,
    tiny_config,
    tiny_tokenizer,
)

EQUAL = "two views of a sentence are equal"


def check(backbone: PreTrainedModel, *overrides: str) -> None:
    """What a run with this encoder does before its first step; the model stands for the engine around it."""
    pooling = "last" if backbone.config.model_type in DECODER_FAMILIES else "cls"
    model = DiffCSENetworks(backbone, ObjectiveRecipe(rtd_weight=0), pooling, "none")
    check_views_differ(model, load_recipe("quickstart", overrides), tiny_tokenizer())


def backbone_of(family: str, dropout: float) -> PreTrainedModel:
    config = tiny_config(family)
    set_dropout(config, dropout)
    backbone = tiny_backbone(family, **{key: value for key, value in config.to_dict().items() if "dropout" in key})
    allow_packing(backbone)
    return backbone


@pytest.mark.parametrize("packed", ["true", "false"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_starts_where_the_family_drops_and_nowhere_else(family, packed):
    check(backbone_of(family, 0.01), f"batch.packed={packed}")
    with pytest.raises(InputError, match=f"{EQUAL}: embedded has no dropout; set model.dropout=0.1"):
        check(backbone_of(family, 0.0), f"batch.packed={packed}")


def test_pairs_that_a_corpus_has_by_itself_need_no_dropout(tmp_path):
    (tmp_path / "pairs.csv").write_text("anchor,positive\na,b\n")
    check(backbone_of("bert", 0.0), f"data.files={tmp_path / 'pairs.csv'}")
    with pytest.raises(InputError, match=EQUAL):
        check(backbone_of("bert", 0.0), f"data.files={tmp_path / 'pairs.csv'}", "data.columns=1")


@pytest.mark.parametrize("family", ["bert", "modernbert", "qwen3", "llama"])
def test_dropout_of_adapters_does_not_count_for_they_begin_as_nothing(family):
    pytest.importorskip("peft")
    lora = "model.lora={rank: 2, dropout: 0.5}"
    for dropout, base in ((0.1, "float32"), (0.1, "bfloat16"), (0.0, "float32"), (0.0, "bfloat16")):
        backbone = backbone_of(family, dropout)
        add_adapters(backbone, LoraRecipe(rank=2, dropout=0.5, base=base))
        if dropout:
            check(backbone, lora)
            continue
        with pytest.raises(InputError, match=r"model\.lora\.dropout changes nothing .*; set model\.dropout=0\.1"):
            check(backbone, lora)


def test_dropout_that_only_a_configuration_knows_does_not_count():
    backbone = backbone_of("qwen3", 0.0)
    backbone.config.attention_dropout = 0.5  # the layers have read it before
    with pytest.raises(InputError, match=f"{EQUAL}: model.dropout = 0.5 changes nothing in embedded; choose another"):
        check(backbone, "model.dropout=0.5")


@pytest.mark.parametrize(
    "meant",
    ["data.columns=[a, b]", "data.columns=[a, b, c]", "model.dropout=0", "objective.contrastive_weight=0"],
)
def test_equal_views_that_are_meant_or_not_contrasted_are_not_refused(meant):
    check(backbone_of("bert", 0.0), meant)
    with pytest.raises(InputError, match=EQUAL):
        check(backbone_of("bert", 0.0), "data.columns=[a]")


def test_an_encoder_of_numbers_that_are_not_finite_is_another_mistake():
    backbone = backbone_of("bert", 0.1)
    backbone.embeddings.word_embeddings.weight.data.fill_(float("nan"))
    check(backbone)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory) -> str:
    """As Qwen3 is published: no dropout, and no end token of its own."""
    folder = tmp_path_factory.mktemp("decoder")
    torch.manual_seed(0)
    sizes = {"vocab_size": BYTES, "attention_dropout": 0.0, "max_position_embeddings": 64}
    Qwen3Model(tiny_config("qwen3", **sizes)).save_pretrained(folder)
    tiny_byte_tokenizer().save_pretrained(folder)
    return str(folder)


def _lora_example(toy_world: Path, decoder: str, folder: Path, stage: int, *overrides: str):
    """The example of docs/backbones.md with a small decoder, as a recipe of its own; the output folder too."""
    recipe = yaml.safe_load((toy_world / "toy.yaml").read_text())
    recipe["model"] = {
        **{"encoder": decoder, "pooling": "last", "dropout": 0.1},
        "lora": {"rank": 16, "alpha": 32, "dropout": 0.05, "base": "bfloat16"},
    }
    recipe["objective"] = {"rtd_weight": 0}
    recipe["data"]["cache_dir"] = str(folder / "cache")
    recipe["evaluation"] = {"data": None, "max_length": 32}
    (folder / "lora.yaml").write_text(yaml.safe_dump(recipe))
    return launch(
        *("--deepspeed_config", f"ds_configs/zero{stage}.json", "--recipe", str(folder / "lora.yaml")),
        *("--output", str(folder / "run"), "max_steps=24", *overrides),
    )


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_adapters_on_a_decoder_learn(toy_world, decoder, tmp_path, stage):
    pytest.importorskip("peft")
    result = _lora_example(toy_world, decoder, tmp_path, stage)
    assert result.returncode == 0, result.stdout
    rows = metrics(tmp_path / "run")
    assert all(row["gradient_norm"] > 0 and row["positive_cosine"] < 0.99 for row in rows)
    positives = [row["positive_cosine"] for row in rows]
    assert sum(positives[-4:]) > sum(positives[:4])
    assert "nothing to learn" not in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_a_run_of_equal_views_ends_before_the_corpus_is_read(toy_world, decoder, tmp_path, stage):
    pytest.importorskip("peft")
    result = _lora_example(toy_world, decoder, tmp_path, stage, "model.dropout=null")
    assert result.returncode == 2
    assert f"error: The {EQUAL}: {decoder} has no dropout" in result.stdout
    assert "set model.dropout=0.1" in result.stdout
    assert not any((tmp_path / "cache").iterdir())


@pytest.mark.slow
def test_equal_views_that_are_meant_are_told_once(toy_world, tmp_path):
    result = launch(
        *("--recipe", str(toy_world / "toy.yaml"), "--output", str(tmp_path / "run")),
        *("model.dropout=0", "evaluation.data=null"),
        ranks=1,
    )
    assert result.returncode == 0, result.stdout
    assert result.stdout.count("In the last 3 log lines the cosine of positives was 1.000") == 1
