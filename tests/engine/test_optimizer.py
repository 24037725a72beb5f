"""The table of optimizers: what it says of a state is what torch keeps, and what it needs is seen to."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch

from diffcse_scale.engine import optimizer as module
from diffcse_scale.engine.configuration import complete_config
from diffcse_scale.engine.optimizer import OPTIMIZERS, make_optimizer, moments_of
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.recipe import OptimizerName
from diffcse_scale.recipe_file import load_recipe


def test_the_recipe_offers_the_optimizers_of_the_table():
    assert get_args(OptimizerName) == tuple(OPTIMIZERS)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_is_as_the_table_says(name):
    model = torch.nn.Linear(5, 7)
    optimizer = make_optimizer(model, load_recipe("quickstart", [f"optimizer.name={name}"]))
    model(torch.ones(3, 5)).sum().backward()
    optimizer.step()

    assert moments_of(optimizer) == OPTIMIZERS[name].moments
    for parameter in model.parameters():
        state = dict(optimizer.state[parameter])
        state.pop("step")
        assert state.keys() == set(OPTIMIZERS[name].moments)
        assert sum(moment.nbytes for moment in state.values()) == OPTIMIZERS[name].moment_bytes * parameter.numel()
        assert all(moment.shape == parameter.shape for moment in state.values())


def test_adamw_has_the_recipes_settings():
    settings = ["optimizer.betas=[0.8, 0.95]", "optimizer.eps=1e-6"]
    optimizer = make_optimizer(torch.nn.Linear(2, 2), load_recipe("quickstart", settings))
    assert type(optimizer) is torch.optim.AdamW
    assert (optimizer.defaults["betas"], optimizer.defaults["eps"]) == ((0.8, 0.95), 1e-6)


def test_an_optimizer_that_needs_whole_matrices_is_refused_where_zero_cuts_them(monkeypatch):
    monkeypatch.setitem(module.OPTIMIZERS, "adamw", replace(OPTIMIZERS["adamw"], whole_matrices=True))
    recipe = load_recipe("quickstart")
    complete_config({"zero_optimization": {"stage": 0}}, recipe, 1)
    with pytest.raises(InputError, match=r"optimizer\.name adamw needs whole matrices, which ZeRO-2 cuts"):
        complete_config({"zero_optimization": {"stage": 2}}, recipe, 1)
