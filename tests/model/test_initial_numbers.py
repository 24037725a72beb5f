"""What is drawn at random is a function of (seed, name): arms of one seed differ in their objective alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffcse_scale.foundation.randomness import seed_initial_numbers
from diffcse_scale.model.backbone import load_tokenizers
from diffcse_scale.model.build import build_model
from diffcse_scale.recipe_file import load_recipe
from tests.support.arms import ARMS


def drawn(*overrides: str) -> dict[str, Tensor]:
    """The parameters that no pretrained model has, by name; zeros and ones are not drawn."""
    recipe = load_recipe("quickstart", ["model.projection=batchnorm", *overrides])
    torch.rand(len(overrides))  # whatever was drawn before
    model = build_model(recipe, load_tokenizers(recipe.model))
    named = {name: p.detach() for name, p in model.named_parameters() if "backbone" not in name or "lora_A" in name}
    return {name: p for name, p in named.items() if p.unique().numel() > 1}


@pytest.fixture(scope="module")
def arms() -> dict[str, dict[str, Tensor]]:
    return {name: drawn(*overrides) for name, overrides in ARMS.items()}


@pytest.mark.parametrize("first", ARMS)
def test_arms_of_one_seed_have_every_part_in_common_bit_for_bit(arms, first):
    assert {"projection.net.0.weight", "projection.net.3.weight"} <= arms[first].keys()
    for second, others in arms.items():
        for name in arms[first].keys() & others.keys():
            if arms[first][name].shape == others[name].shape:  # `official` has a head of two classes
                assert torch.equal(arms[first][name], others[name]), (second, name)


def test_every_kind_of_part_is_compared(arms):
    assert {"rtd_head.weight", "discriminator.map.weight"} <= arms["another discriminator"].keys()
    assert "rtd_head.weight" in arms["sampled"].keys() & arms["adapters"].keys()
    adapters = [name for name in arms["adapters"] if "lora_A" in name]
    assert adapters and set(adapters) <= arms["adapters, lambda 0"].keys()


@pytest.mark.parametrize("arm", ["another discriminator", "adapters"])
def test_another_seed_gives_every_part_other_numbers(arms, arm):
    other = drawn(*ARMS[arm], "seed=43")
    assert other.keys() == arms[arm].keys()
    assert not any(torch.equal(value, arms[arm][name]) for name, value in other.items())


def test_parts_of_different_names_begin_differently():
    found = set()
    for seed, part in ((1, "projection"), (1, "rtd_head"), (2, "projection"), (1, "projection")):
        seed_initial_numbers(seed, part)
        found.add(float(torch.rand(())))
    assert len(found) == 3
