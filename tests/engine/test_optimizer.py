"""The table of optimizers: what it says of a state is what torch keeps, and what it needs is seen to."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch

from diffcse_scale.engine import optimizer as module
from diffcse_scale.engine.configuration import complete_config
from diffcse_scale.engine.engine import initialize, optimizer_step
from diffcse_scale.engine.launch import device, start_process_group
from diffcse_scale.engine.optimizer import OPTIMIZERS, make_optimizer, moments_of, set_learning_rate, trained_groups
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.objective.objective import Objective
from diffcse_scale.recipe import OptimizerName
from diffcse_scale.recipe_file import load_recipe
from tests.support.ranks import run_ranks
from tests.support.toys import toy_chunk, toy_model


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
    with pytest.raises(InputError, match=r"optimizer\.name adamw needs whole matrices, which ZeRO-2 partitions"):
        complete_config({"zero_optimization": {"stage": 2}}, recipe, 1)


RATED = ["objective.discriminator_rate=10", "optimizer.clip=0", "optimizer.weight_decay=0.1"]


def test_a_discriminator_with_a_rate_of_its_own_has_groups_of_its_own():
    recipe = load_recipe("quickstart", RATED)
    model = toy_model(recipe.objective)
    groups = trained_groups(model)
    assert [group.label for group in groups] == ["decayed", "kept", "decayed, discriminator", "kept, discriminator"]
    apart = {name for group in groups[2:] for name in group.parameters}
    assert apart == {
        name for name, _ in model.named_parameters() if name.split(".")[0] in ("discriminator", "rtd_head")
    }
    assert sum(len(group.parameters) for group in groups) == len(list(model.parameters()))
    optimizer = make_optimizer(model, recipe)
    set_learning_rate(optimizer, 0.5)
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [(0.5, 0.1), (0.5, 0), (5, 0.1), (5, 0)]


def _largest_changes(stages: list[int]) -> list[tuple[float, float]]:
    """Of a weight of the encoder and of one of the discriminator, by the first step: AdamW's is the learning rate."""
    start_process_group()
    return [_changes(stage) for stage in stages]


def _changes(stage: int) -> tuple[float, float]:
    recipe = load_recipe("quickstart", [*RATED, "optimizer.weight_decay=0", "objective.rtd_weight=0.5"])
    config = complete_config({"zero_optimization": {"stage": stage}}, recipe, 1)
    model = toy_model(recipe.objective).to(device())
    parameters = model.encoder.backbone.embeddings.LayerNorm.bias, model.rtd_head.bias
    before = [parameter.detach().clone() for parameter in parameters]
    engine = initialize(model, recipe, config)
    set_learning_rate(engine.optimizer, 1e-3)
    chunk, edited = toy_chunk()
    engine.backward(engine(Objective(recipe.objective).step, [chunk.to(device())], [edited.to(device())]).loss)
    optimizer_step(engine)
    moved = [float((parameter.detach() - old).abs().max()) for parameter, old in zip(parameters, before, strict=True)]
    engine.destroy()
    return moved[0], moved[1]


@pytest.mark.slow
def test_the_rate_reaches_the_weights_at_every_stage(tmp_path):
    (found,) = run_ranks(_largest_changes, 1, tmp_path, [0, 1, 2, 3])
    for encoder, discriminator in found:
        assert (encoder, discriminator) == (pytest.approx(1e-3, rel=0.02), pytest.approx(1e-2, rel=0.02))
