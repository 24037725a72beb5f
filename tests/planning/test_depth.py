"""A rehearsal of a few layers tells, to the byte, what one of all of them does."""

from __future__ import annotations

import pytest
import torch
import yaml
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoTokenizer

from diffcse_scale.distributed import imagined_ranks
from diffcse_scale.planning.depth import equal_layers
from diffcse_scale.planning.rehearsal import Rehearsal, _Stage
from diffcse_scale.planning.shape_networks import load_networks
from diffcse_scale.planning.sharding import read_sharding
from diffcse_scale.recipe_file import load_recipe

DEEP = 7


def deep(recipe_file, tmp_path, **changes):
    """The recipe of the other tests on a model with more layers."""
    recipe = yaml.safe_load(recipe_file.read_text())
    folder = recipe["model"]["encoder"]
    config = AutoConfig.from_pretrained(folder)
    config.num_hidden_layers = DEEP
    config.save_pretrained(tmp_path / "deep")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "deep")
    recipe["model"] = {**recipe["model"], "encoder": str(tmp_path / "deep"), **changes}
    file = tmp_path / "deep.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return load_recipe(str(file))


def at_zero_2(recipe):
    return read_sharding({"zero_optimization": {"stage": 2}}, recipe, 2, on_cpu=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "share", "chunk"), [({}, 2, None), ({"gradient_checkpointing": True}, 3, 1)], ids=["plain", "chunks"]
)
def test_a_few_layers_tell_to_the_byte_what_all_do(recipe_file, tmp_path, changes, share, chunk):
    recipe = deep(recipe_file, tmp_path, **changes)
    whole, networks = load_networks(recipe), load_networks(recipe)
    with imagined_ranks(2), FakeTensorMode(allow_non_fake_inputs=True):
        rest = share - chunk if chunk else 0
        truth = _Stage(whole, recipe, at_zero_2(recipe)).rehearse(chunk or share, rest)
    assert equal_layers(networks.model).depth == DEEP  # so that it is not rehearsed whole
    assert Rehearsal(networks, recipe, at_zero_2(recipe), share, chunk).moments(share, chunk) == truth


def layers(*widths):
    model = nn.Module()
    model.layers = nn.ModuleList(nn.Sequential(nn.Linear(width, 4), nn.Dropout(0.1)) for width in widths)
    return model


def test_layers_are_equal_where_all_but_the_first_are():
    with torch.device("meta"):
        equal, other_first, other_last, few = (
            layers(*widths) for widths in ([4] * 8, [3, *[4] * 7], [*[4] * 7, 3], [4] * 6)
        )
    assert equal_layers(equal).names == equal_layers(other_first).names == ["layers"]
    assert equal_layers(other_last) is None and equal_layers(few) is None
    equal.layers[4][1].p = 0.2  # which is no parameter, but is computed otherwise
    assert equal_layers(equal) is None
