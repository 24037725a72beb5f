"""What a model to begin from has beside its network is told where training leaves it out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

from diffcse_scale.export import export_sentence_transformer
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.model.backbone import load_backbone, load_tokenizer, load_tokenizers
from diffcse_scale.model.build import build_model
from diffcse_scale.model.pooling import POOLINGS
from diffcse_scale.model.starting_point import left_out
from diffcse_scale.recipe import Recipe
from diffcse_scale.recipe_file import load_recipe
from tests.support.old_layout import to_old_layout
from tests.support.tiny_models import WORDS, tiny_bert, tiny_tokenizer


def recipe_from(folder: Path, *overrides: str) -> Recipe:
    plain = ["data.files=x.txt", f"model.encoder={folder}", "evaluation.max_length=16"]
    return load_recipe("simcse_bert_base", [*plain, *overrides])


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    tiny_bert().save_pretrained(tmp_path / "backbone")
    tiny_tokenizer().save_pretrained(tmp_path / "backbone")
    return tmp_path / "backbone"


def written(backbone: Path, *modules: Any, length: int = 16, **of_model: Any) -> Path:
    """A folder as sentence-transformers writes it; its first module reads `length` tokens."""
    folder = backbone.parent / "start"
    transformer = Transformer(str(backbone), max_seq_length=length)
    SentenceTransformer(modules=[transformer, *modules], **of_model).save(str(folder), create_model_card=False)
    return folder


def test_everything_beside_the_network_is_told(backbone: Path, caplog: pytest.LogCaptureFixture) -> None:
    prompts = {"query": "query: ", "passage": "passage: "}
    folder = written(
        backbone, Pooling(24, "mean"), Dense(24, 8), Normalize(), length=12,
        prompts=prompts, default_prompt_name="query", similarity_fn_name="dot", truncate_dim=5,
    )  # fmt: skip
    settings = folder / "sentence_bert_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "do_lower_case": True}))
    assert left_out(recipe_from(folder)) == [
        "its mean pooling (model.pooling is cls)",
        "its module Dense",
        "its module Normalize",
        "its prompts passage, query (by default query)",
        "its similarity dot (the trained one is cosine)",
        "its cut to the first 5 numbers of a vector (truncate_dim)",
        "its lower-casing (do_lower_case; the tokenizer's own, if it has one, stays)",
        "its length of 12 tokens (evaluation.max_length is 16)",
    ]
    recipe = recipe_from(folder)
    build_model(recipe, load_tokenizers(recipe.model))
    assert f"Model {folder} has more than a network and a tokenizer; training does not use its mean pool" in caplog.text


@pytest.mark.parametrize("name", POOLINGS)
def test_of_an_export_with_the_recipes_pooling_and_length_nothing_is_left_out(name: str, tmp_path: Path) -> None:
    export_sentence_transformer(tiny_bert(), tiny_tokenizer(), name, 16, tmp_path / "out")
    assert left_out(recipe_from(tmp_path / "out", f"model.pooling={name}")) == []
    other = "cls" if name != "cls" else "mean"
    assert left_out(recipe_from(tmp_path / "out", f"model.pooling={other}")) != []


def test_of_a_plain_folder_nothing_is_left_out(backbone: Path) -> None:
    assert left_out(recipe_from(backbone)) == left_out(load_recipe("quickstart")) == []


@pytest.mark.parametrize(
    ("config", "modes"),
    [({"pooling_mode_cls_token": False, "pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True}, "mean"),
     ({"pooling_mode_weightedmean_tokens": True}, "weightedmean"), ({"pooling_mode_lasttoken": True}, "lasttoken"),
     ({"pooling_mode": ["cls", "mean"]}, "cls and mean"), ({}, "mean")],
)  # fmt: skip
def test_the_pooling_of_old_and_new_files_is_what_their_library_reads(backbone, config, modes) -> None:
    folder = written(backbone, Pooling(24, "mean"))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 24, **config}))
    (told,) = left_out(recipe_from(folder))
    read = Pooling.load(str(folder), subfolder="1_Pooling").pooling_mode
    assert set(told.removeprefix("its ").partition(" pooling")[0].split(" and ")) == {*np.atleast_1d(read)}
    assert modes in told


def test_an_old_layout_has_its_network_one_folder_down(backbone: Path) -> None:
    folder = written(backbone, Pooling(24, "mean"))
    to_old_layout(folder)
    assert load_backbone(str(folder)).num_parameters() == load_backbone(str(backbone)).num_parameters()
    assert load_tokenizer(str(folder))(" ".join(WORDS))["input_ids"] == tiny_tokenizer()(" ".join(WORDS))["input_ids"]
    assert left_out(recipe_from(folder)) == ["its mean pooling (model.pooling is cls)"]


def test_a_tokenizers_own_truncation_is_no_number_of_positions(backbone: Path) -> None:
    recipe = recipe_from(written(backbone, Pooling(24, "cls"), length=12), "data.max_length=16")
    tokenizers = load_tokenizers(recipe.model)
    assert tokenizers.encoder.model_max_length == 12
    build_model(recipe, tokenizers)


def test_adapters_are_no_network_to_begin_from(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(
        InputError, match=r"holds adapters \(adapter_config\.json\), not a complete network; give their base"
    ):
        load_backbone(str(tmp_path))
