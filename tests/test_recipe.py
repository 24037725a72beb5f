"""Recipes: every shipped one is valid; mistakes are answered with the key, what is allowed, and the nearest match."""

from __future__ import annotations

from typing import get_args

import pytest

from diffcse_scale.errors import InputError
from diffcse_scale.recipe import Recipe, load_recipe, shipped_recipes

NAMES = [
    "quickstart",
    "bert_base_sts",
    "bert_base_transfer",
    "roberta_base_sts",
    "roberta_base_transfer",
    "simcse_bert_base",
    "official_bert_base_sts",
    "bert_large",
    "roberta_large",
    "xlmr_large",
    "modernbert_base",
    "modernbert_large",
    "qwen3_0_6b",
    "qwen3_8b_lora",
]


def test_all_promised_recipes_are_shipped():
    assert set(NAMES) <= set(shipped_recipes())


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_shipped_recipe_is_valid_and_named_after_its_file(name):
    assert load_recipe(name).name == name


def test_official_recipe_has_the_official_settings():
    recipe = load_recipe("official_bert_base_sts")
    objective, optimizer = recipe.objective, recipe.optimizer
    assert (objective.fidelity, objective.masking_ratio, objective.rtd_weight) == ("official", 0.30, 0.005)
    assert (objective.temperature, optimizer.learning_rate, optimizer.schedule) == (0.05, 7e-6, "linear")
    assert (recipe.batch.sentences, recipe.epochs, recipe.data.max_length) == (64, 2, 32)
    assert recipe.model.projection == "batchnorm"


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_a_shipped_recipe_says_where_a_setting_is_not_a_published_one(name):
    objective = load_recipe(name).objective
    text = shipped_recipes()[name]
    if objective.fidelity == "sampled" and objective.rtd_weight > 0 and name != "quickstart":
        assert "ot published" in text
    if "Qwen3" in text or "ModernBERT" in text:
        # no dropout of their own: without a word both views of a sentence would be equal
        assert load_recipe(name).model.dropout


def test_overrides_are_read_as_yaml():
    recipe = load_recipe(
        "quickstart",
        ["optimizer.learning_rate=1e-4", "data.files=[a.txt, b.txt]", "evaluation.data=null", "max_steps=3", "name=x"],
    )
    assert recipe.optimizer.learning_rate == 1e-4
    assert recipe.data.files == ["a.txt", "b.txt"]
    assert recipe.evaluation.data is None
    assert (recipe.max_steps, recipe.name) == (3, "x")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["objective.temprature=0.1"], ["objective.temprature", "did you mean temperature?", "masking_ratio"]),
        (["objectiv.temperature=0.1"], ["objectiv", "did you mean objective?"]),
        (["batch.sentences=many"], ["batch.sentences", "integer", "'many'"]),
        (["objective.temperature=0"], ["objective.temperature", "greater than 0"]),
        (["objective.masking_ratio=1.5"], ["objective.masking_ratio", "1.5"]),
        (["model.pooling=max"], ["model.pooling", "'cls'", "'first_last_mean'"]),
        (["objective.rtd_weight=0", "objective.contrastive_weight=0"], ["both 0"]),
        (["model.generator=null"], ["model.generator is missing"]),
        (["objective.fidelity=official", "batch.length_groups=2"], ["length_groups must be 1"]),
        (["batch.chunk=8", "batch.length_groups=2"], ["length_groups must be 1 with batch.chunk"]),
        (["model.lora={rnk: 2}"], ["model.lora.rnk", "did you mean rank?", "target_modules"]),
        (["model.lora={export: adapter}", "model.attention=bidirectional"], ["must be merged", "model.attention"]),
        (["model.lora={export: adapter}", "model.checkpoint=x"], ["must be merged", "model.checkpoint changes"]),
        (["seed"], ["'seed'", "section.field=value"]),
        (["seed.x=1"], ["seed is a field"]),
    ],
)
def test_a_mistake_is_one_sentence_that_names_it(overrides, words):
    with pytest.raises(InputError) as error:
        load_recipe("quickstart", overrides)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_recipe_names_the_nearest(tmp_path):
    with pytest.raises(InputError, match="did you mean quickstart"):
        load_recipe("quickstrat")
    with pytest.raises(InputError, match="no such file"):
        load_recipe(str(tmp_path / "mine.yaml"))


def test_malformed_yaml_is_named(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("name: [")
    with pytest.raises(InputError, match="not valid YAML"):
        load_recipe(str(file))


def test_yaml_cannot_construct_objects(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("name: !!python/object/apply:os.getcwd []")
    with pytest.raises(InputError, match="not valid YAML"):
        load_recipe(str(file))


def test_differences_name_the_fields_that_differ():
    mine = load_recipe("quickstart")
    other = load_recipe("quickstart", ["seed=7"]).model_dump(mode="json")
    assert mine.differences(other) == ["seed: 42, not 7"]
    assert mine.differences(mine.model_dump(mode="json")) == []


def _undocumented(section, prefix=""):
    for name, field in section.model_fields.items():
        inner = [a for a in (field.annotation, *get_args(field.annotation)) if hasattr(a, "model_fields")]
        if inner:
            yield from _undocumented(inner[0], f"{prefix}{name}.")
        elif field.description is None and prefix and name not in ("learning_rate", "betas", "eps"):
            yield prefix + name


def test_every_field_that_is_not_self_evident_is_documented():
    assert list(_undocumented(Recipe)) == []
