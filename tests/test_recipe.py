"""Recipes: every shipped one is valid; mistakes are answered with the key, what is allowed, and the nearest match."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import get_args

import pytest
import yaml

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.unique_keys import load_yaml
from diffcse_scale.recipe import BEFORE, ObjectiveRecipe, Recipe, unsaid
from diffcse_scale.recipe_file import load_recipe, shipped_recipes

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


# what a recipe names, or what changes no result: all else in a file is a choice
NO_CHOICES = {
    *("name", "seed", "log_every", "checkpoint_every", "data.files", "evaluation.data"),
    *("model.encoder", "model.discriminator", "model.generator"),
    *("model.gradient_checkpointing", "model.lora.base", "batch.chunk"),
}
SOURCES = re.compile("official (README|program)|the paper's words|SimCSE's|not verified")


def _choices(node: yaml.MappingNode, lines: list[str], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Each choice of a recipe file, and the comment behind it."""
    for key, value in node.value:
        path = prefix + key.value
        if isinstance(value, yaml.MappingNode):
            yield from _choices(value, lines, f"{path}.")
        elif path not in NO_CHOICES:
            yield path, lines[value.end_mark.line][value.end_mark.column :]


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_choice_of_a_shipped_recipe_has_its_source_or_is_not_verified(name):
    text = shipped_recipes()[name]
    choices = dict(_choices(yaml.compose(text), text.splitlines()))
    assert {"objective.temperature", "objective.rtd_weight", "optimizer.learning_rate", "epochs"} <= choices.keys()
    source = re.compile("chosen here") if name == "quickstart" else SOURCES
    assert {path: comment for path, comment in choices.items() if not source.search(comment)} == {}


@pytest.mark.parametrize("name", sorted(set(shipped_recipes()) - {"quickstart", "simcse_bert_base"}))
def test_lambda_is_the_published_one_in_the_fidelity_of_the_recipe(name):
    objective = load_recipe(name).objective
    assert objective.rtd_weight == {"official": 0.005, "sampled": 0.0041}[objective.fidelity]
    assert ObjectiveRecipe().rtd_weight == 0.0041


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_a_shipped_recipe_sets_dropout_where_the_family_is_published_without(name):
    if "Qwen3" in shipped_recipes()[name] or "ModernBERT" in shipped_recipes()[name]:
        assert load_recipe(name).model.dropout


FINITE = {
    *("epochs", "objective.temperature", "objective.contrastive_weight", "objective.rtd_weight"),
    *("objective.masking_ratio", "objective.hard_negative_weight", "optimizer.learning_rate", "optimizer.eps"),
    *("optimizer.weight_decay", "optimizer.warmup", "optimizer.clip", "model.dropout", "model.lora.alpha"),
}


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "inf", "nan", "1e999", "9" * 400])
def test_every_number_is_finite(value):
    for field in sorted(FINITE):
        with pytest.raises(InputError, match=rf"{field}: ") as error:
            load_recipe("quickstart", [f"{field}={value}"])
        assert len(str(error.value)) < 300


@pytest.mark.parametrize("name", ["2024-02-30", "'64'", "12:30", "caf\u00e9", "a b", "1e"])
def test_a_name_is_text(name):
    assert load_recipe("quickstart", [f"name={name}"]).name == name.strip("'")


@pytest.mark.parametrize("name", ["''", "' '", "a/b", "../a", "/etc", ".", "..", '"a\\nb"', '"\\x1b[2J"', "x" * 300])
def test_a_name_that_is_no_folders_is_refused(name):
    with pytest.raises(InputError, match="name: must ") as error:
        load_recipe("quickstart", [f"name={name}"])
    assert str(error.value).isprintable()


def test_one_column_need_not_be_a_list():
    assert load_recipe("quickstart", ["data.columns=text"]).data.columns == ["text"]


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
        (["objective.masking_ratio=0"], ["masking_ratio is 0", "rtd_weight to 0"]),
        (["model.generator=null"], ["model.generator is missing"]),
        (["objective.fidelity=official", "batch.length_groups=2"], ["length_groups must be 1"]),
        (["batch.chunk=8", "batch.length_groups=2"], ["length_groups must be 1 with batch.chunk"]),
        (["model.lora={rnk: 2}"], ["model.lora.rnk", "did you mean rank?", "target_modules"]),
        (["model.lora={export: adapter}", "model.attention=bidirectional"], ["must be merged", "model.attention"]),
        (["model.lora={export: adapter}", "model.checkpoint=x"], ["must be merged", "model.checkpoint changes"]),
        (["seed"], ["'seed'", "section.field=value"]),
        (["seed.x=1"], ["seed is a field"]),
        ([".=1"], ["'.=1'", "section.field=value"]),
        (["data.files=[ab]*.csv"], ["no YAML value", """(data.files="'...'" on a command line)"""]),
        (["name=64"], ["name", "given: 64", "put quotes around what is text"]),
        (["seed=" + "9" * 5000], ["4300 digits"]),
        (["seed=" + "9" * 30], ["seed: must be at most 9223372036854775807"]),
        (["optimizer.betas=[1, 2]"], ["optimizer.betas.0: input should be less than 1", "betas.1"]),
        (["epochs=1e300"], ["epochs", "less than or equal to 1000000000"]),
        (["data.files=[" + "[" * 20_000], ["nested too deeply"]),
        (["model.encoder='" + "x" * 5000 + "'", "seed=x"], ["given: 'x'"]),
        (["model={1: 2}"], ["model.1: keys should be strings"]),
        ([f"{'k' * 5000}=1"], ["unknown key kkk"]),
        ([f"k{number}=1" for number in range(50)], ["unknown key k0", "and 45 more"]),
    ],
)
def test_a_mistake_is_one_sentence_that_names_it(overrides, words):
    with pytest.raises(InputError) as error:
        load_recipe("quickstart", overrides)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 1500


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


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"name: caf\xe9", "is not UTF-8 at byte 10"),
        (b"- 1", "must be a mapping of sections, not list"),
        (b"", "must be a mapping of sections, not NoneType"),
        (b"1: 2", "1 is not the name of a section"),
        (b"a: " + b"[" * 20_000, "nested too deeply"),
        (b"a: &a [*a]", "or for themselves"),
        (b"\x00", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_recipe_is_named(tmp_path, content, words):
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    with pytest.raises(InputError, match=rf"mine\.yaml.* {words}") as error:
        load_recipe(str(file))
    assert "\n" not in str(error.value)


def test_differences_name_the_fields_that_differ():
    mine = load_recipe("quickstart")
    other = load_recipe("quickstart", ["seed=7"]).model_dump(mode="json")
    assert mine.differences(other) == ["seed: 42, not 7"]
    assert mine.differences(mine.model_dump(mode="json")) == []


def test_a_field_that_an_older_recipe_does_not_have_differs_only_from_its_default():
    older = load_recipe("quickstart").model_dump(mode="json")
    del older["optimizer"]["eps"], older["model"]["lora"]
    assert load_recipe("quickstart").differences(older) == []
    assert load_recipe("quickstart", ["optimizer.eps=1e-6"]).differences(older) == ["optimizer.eps: 1e-06, not 1e-08"]
    assert "model.lora.rank: 16, not None" in load_recipe("quickstart", ["model.lora={}"]).differences(older)


def test_a_run_of_an_older_recipe_kept_false_negatives_and_contrasted_in_float32():
    older = load_recipe("quickstart").model_dump(mode="json")
    for name in ("false_negatives", "loss_precision"):
        del older["objective"][name]
    assert load_recipe("quickstart").differences(older) == [
        "objective.false_negatives: 'mask', not 'keep'",
        "objective.loss_precision: 'model', not 'float32'",
    ]
    assert load_recipe("official_bert_base_sts").objective.model_dump().items() >= BEFORE.items()
    as_it_began = [f"{key}={value}" for key, value in unsaid(older).items()]
    assert load_recipe("quickstart", as_it_began).differences(older) == []


def test_a_field_that_this_version_does_not_know_is_a_difference():
    newer = load_recipe("quickstart").model_dump(mode="json")
    newer["optimizer"]["sharpness"] = 0.1
    assert load_recipe("quickstart").differences(newer) == ["optimizer.sharpness: None, not 0.1"]


def _undocumented(section, prefix=""):
    for name, field in section.model_fields.items():
        inner = [a for a in (field.annotation, *get_args(field.annotation)) if hasattr(a, "model_fields")]
        if inner:
            yield from _undocumented(inner[0], f"{prefix}{name}.")
        elif field.description is None and prefix and name not in ("learning_rate", "betas", "eps"):
            yield prefix + name


def test_every_field_that_is_not_self_evident_is_documented():
    assert list(_undocumented(Recipe)) == []


def test_a_key_given_twice_is_refused_with_the_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(shipped_recipes()["quickstart"] + "\nseed: 1\nseed: 2\n")
    with pytest.raises(InputError, match=r"mine\.yaml: key 'seed' is given twice, again in line \d+"):
        load_recipe(str(path))


def test_a_key_given_twice_in_an_override_is_refused():
    with pytest.raises(InputError, match=r"'batch=.*: key 'sentences' is given twice\.$"):
        load_recipe("quickstart", ["batch={sentences: 8, sentences: 16}"])


def test_a_yaml_merge_may_be_overridden():
    assert load_yaml("a: &a {x: 1, y: 1}\nb: {<<: *a, y: 2}")["b"] == {"x": 1, "y": 2}
