"""Two views of a sentence differ, in every family, or the run does not start."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModel, BloomConfig, MambaConfig

from diffcse_scale.errors import InputError
from diffcse_scale.model.dropout import check_views_differ, has_dropout, set_dropout
from diffcse_scale.recipe import load_recipe
from tests.tiny_models import FAMILIES, tiny_config


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("probability", [0.0, 0.3])
def test_an_encoder_has_dropout_where_its_outputs_vary(family, probability):
    config = tiny_config(family)
    set_dropout(config, probability)
    torch.manual_seed(0)
    backbone = AutoModel.from_config(config).train()
    ids = torch.arange(5, 17)[None]
    first, second = (backbone(input_ids=ids).last_hidden_state for _ in range(2))
    assert has_dropout(backbone) == (not torch.equal(first, second)) == (probability > 0)


def test_views_that_would_be_equal_are_refused():
    config = tiny_config("qwen3", attention_dropout=0.0)
    encoder, recipe = AutoModel.from_config(config), load_recipe("quickstart")
    with pytest.raises(InputError, match="two views of a sentence would be equal: embedded has no dropout"):
        check_views_differ(encoder, recipe, columns=1)
    check_views_differ(encoder, recipe, columns=2)
    check_views_differ(encoder, load_recipe("quickstart", ["model.dropout=0"]), columns=1)  # asked for by name
    check_views_differ(encoder, load_recipe("quickstart", ["objective.contrastive_weight=0"]), columns=1)
    check_views_differ(AutoModel.from_config(tiny_config("qwen3")), recipe, columns=1)


def test_a_configuration_without_dropout_cannot_be_given_one():
    with pytest.raises(InputError, match="the configuration of mamba has no dropout"):
        set_dropout(MambaConfig(), 0.1)
    config = BloomConfig()
    set_dropout(config, 0.25)
    assert (config.hidden_dropout, config.attention_dropout) == (0.25, 0.25)
