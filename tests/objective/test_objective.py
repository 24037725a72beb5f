"""The objective is a sum of terms, and does not depend on the number of ranks, however these meet."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from diffcse_scale import objective as folder
from diffcse_scale.distributed import Ranks
from diffcse_scale.model.networks import DiffCSENetworks
from diffcse_scale.objective import objective as module
from diffcse_scale.objective.objective import TERMS, Objective, in_words
from diffcse_scale.recipe import ObjectiveRecipe
from diffcse_scale.text.batches import Chunk
from tests.support.ranks_in_threads import ranks_in_threads, together
from tests.support.toys import share, toy_chunk, toy_model

RECIPE = ObjectiveRecipe(rtd_weight=0.5)
NAMES = ["contrastive", "rtd", "positive_cosine", "negative_cosine"]
COUNTS = ["rtd_real", "rtd_replaced", "rtd_right_on_replaced", "rtd_right_on_kept"]


def gradients(objective: Objective, model: DiffCSENetworks, chunk: Chunk, edited: Tensor) -> dict[str, Tensor]:
    """Loss, statistics and gradients of one rank."""
    output = model(objective.step, [chunk], [edited])
    output.loss.backward()
    named = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": output.loss.detach(), **output.statistics, **named}


def alone(objective: ObjectiveRecipe, views: int) -> dict[str, Tensor]:
    return gradients(Objective(objective), toy_model(objective).double(), *toy_chunk(views=views))


def of_ranks(objective: ObjectiveRecipe, views: int, exchange: Any, world: list[Ranks]) -> dict[str, Tensor]:
    """The mean over ranks, as an engine takes it; counts, which are sums, times W."""
    models = [toy_model(objective, ranks=ranks).double() for ranks in world]
    objectives = [Objective(objective, exchange, ranks, sentences=8) for ranks in world]
    shares = [share(*toy_chunk(views=views), rank, len(world)) for rank in range(len(world))]
    found = together(gradients, objectives, models, *zip(*shares, strict=True))
    means = {name: torch.stack([one[name].double() for one in found]).mean(0) for name in found[0]}
    return means | {name: means[name] * len(world) for name in COUNTS}


def largest_deviation(found: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    assert found.keys() == truth.keys()
    whole = torch.stack([value.double().norm() for value in truth.values()]).max()
    return max(
        float((found[name] - true).norm() / (true.norm() if true.norm() > 1e-10 * whole else whole))
        for name, true in truth.items()
    )


@pytest.mark.parametrize("exchange", ["gather", "ring"])
@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize("views", [2, 3])
def test_losses_statistics_and_gradients_are_those_of_one_process(exchange, world_size, views):
    found = of_ranks(RECIPE, views, exchange, ranks_in_threads(world_size))
    assert largest_deviation(found, alone(RECIPE, views)) < 1e-9


def test_ranks_that_do_not_meet_are_noticed():
    world = ranks_in_threads(2)
    with mock.patch.object(type(world[0]), "all_reduce", lambda self, total: None):
        assert largest_deviation(of_ranks(RECIPE, 2, "gather", world), alone(RECIPE, 2)) > 1e-3


def test_the_loss_is_the_weighted_sum_of_the_terms_losses():
    recipe = ObjectiveRecipe(contrastive_weight=2.0, rtd_weight=0.25)
    loss, statistics = toy_model(recipe)(Objective(recipe).step, *([part] for part in toy_chunk()))
    assert list(statistics) == [*NAMES, *COUNTS]
    assert loss.item() == pytest.approx(2.0 * float(statistics["contrastive"]) + 0.25 * float(statistics["rtd"]))


def test_without_a_term_its_numbers_are_zero_and_its_networks_are_not_there():
    recipe = ObjectiveRecipe(rtd_weight=0)
    model = toy_model(recipe)
    loss, statistics = model(Objective(recipe).step, [toy_chunk()[0]])
    assert not hasattr(model, "discriminator")
    assert loss.item() == float(statistics["contrastive"]) > 0
    assert not any(float(statistics[name]) for name in ("rtd", *COUNTS))


def test_the_ablation_without_infonce_still_says_what_it_would_be():
    recipe = ObjectiveRecipe(contrastive_weight=0, rtd_weight=1)
    loss, statistics = toy_model(recipe)(Objective(recipe).step, *([part] for part in toy_chunk()))
    assert loss.item() == float(statistics["rtd"]) and float(statistics["contrastive"]) > 0


NEW_TERM = """
from diffcse_scale.objective.metric import Metric
from diffcse_scale.objective.term import BatchTerm, Part


class Spread(BatchTerm):
    name, title = "spread", "spread of z"
    metrics = (Metric("spread", "Spread"),)

    @staticmethod
    def weight(recipe):
        return 3.0

    def __call__(self, z, chunks):
        return Part(z.square().mean(), {})
"""


def test_words_tell_what_is_not_diffcse():
    """A start table that reads like DiffCSE would hide that no gradient of RTD reaches the encoder."""
    arms = {
        "sampled, another sentence's z": {"condition": "other"},
        "official, z without its gradient": {"condition": "detached", "fidelity": "official"},
        "sampled, z without its gradient for 9 steps, discriminator's rate x 3": {
            "discriminator_warmup": 9,
            "discriminator_rate": 3,
        },
        "sampled, weight adjusted to a share of 0.05": {"rtd_share": 0.05},
    }
    for words, settings in arms.items():
        assert in_words(ObjectiveRecipe(rtd_weight=0.5, **settings)) == f"1 x InfoNCE + 0.5 x RTD ({words})"


def test_a_term_is_one_file(tmp_path, monkeypatch):
    (tmp_path / "spread.py").write_text(NEW_TERM)
    monkeypatch.setattr(folder, "__path__", [*folder.__path__, str(tmp_path)])
    terms = module._terms()
    assert [term.name for term in terms] == [*(term.name for term in TERMS), "spread"]
    monkeypatch.setattr(module, "TERMS", terms)
    recipe = ObjectiveRecipe(rtd_weight=0)
    loss, statistics = toy_model(recipe)(Objective(recipe).step, [toy_chunk()[0]])
    assert loss.item() == pytest.approx(float(statistics["contrastive"]) + 3 * float(statistics["spread"]))
    assert in_words(recipe) == "1 x InfoNCE + 3 x spread of z"
    assert in_words(RECIPE) == "1 x InfoNCE + 0.5 x RTD (sampled) + 3 x spread of z"
