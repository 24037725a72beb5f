"""Networks are loaded on the device where the engine keeps them, so that ranks hold no copies in the node's memory."""

from __future__ import annotations

import pytest
import torch

from diffcse_scale.engine.configuration import complete_config
from diffcse_scale.engine.engine import loading_device
from diffcse_scale.model.backbone import load_tokenizers
from diffcse_scale.model.build import build_model
from diffcse_scale.model.generator import load_generator
from diffcse_scale.recipe_file import load_recipe

CPU, DEVICE = torch.device("cpu"), torch.device("meta")  # any other device does


@pytest.mark.parametrize(
    ("config", "overrides", "expected"),
    [
        ({"zero_optimization": {"stage": 2}, "torch_autocast": {"enabled": True, "dtype": "bfloat16"}}, [], DEVICE),
        ({"zero_optimization": {"stage": 0}}, [], DEVICE),
        ({}, [], DEVICE),
        ({"zero_optimization": {"stage": 3}}, [], CPU),
        ({"zero_optimization": {"stage": 1}, "bf16": {"enabled": True}}, [], CPU),
        ({"bf16": {"enabled": False}}, [], DEVICE),
        ({"bf16": {"enabled": True}}, ["model.lora.rank=4", "model.lora.base=nf4"], DEVICE),
    ],
)
def test_a_device_takes_what_the_engine_neither_casts_nor_partitions(config, overrides, expected):
    recipe = load_recipe("quickstart", overrides)
    assert loading_device(complete_config(config, recipe, 1), recipe, DEVICE) == expected


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["model.discriminator=embedded"],
        ["model.lora.rank=4"],
        ["model.lora.rank=4", "model.lora.base=bfloat16", "model.gradient_checkpointing=true"],
    ],
)
def test_pretrained_networks_are_on_the_device_and_new_parts_begin_as_on_the_cpu(overrides):
    """Numbers drawn on a GPU would be others than those on the CPU, and arms of a study would differ by machine."""
    recipe = load_recipe("quickstart", ["model.projection=batchnorm", *overrides])
    tokenizers = load_tokenizers(recipe.model)
    on_host = dict(build_model(recipe, tokenizers).named_parameters())
    loaded = dict(build_model(recipe, tokenizers, DEVICE).named_parameters())
    assert loaded.keys() == on_host.keys()
    pretrained = {name for name in loaded if "backbone" in name and "lora_" not in name}
    assert len(pretrained) > 20
    assert {loaded[name].device for name in pretrained} == {DEVICE}
    assert all(loaded[name].dtype == on_host[name].dtype for name in pretrained)
    new = [name for name in loaded.keys() - pretrained if loaded[name].device == CPU]
    assert {"rtd_head.weight", "projection.net.0.weight"} <= set(new)
    assert all(torch.equal(loaded[name], on_host[name]) for name in new)


def test_a_generator_is_loaded_on_its_device_and_not_moved_there(monkeypatch):
    recipe = load_recipe("quickstart")
    tokenizers = load_tokenizers(recipe.model)
    monkeypatch.setattr(torch.nn.Module, "to", None)
    generator = load_generator(recipe, tokenizers, DEVICE)
    assert generator is not None and {p.device for p in generator.model.parameters()} == {DEVICE}
