"""RTD's and InfoNCE's gradients on the encoder's own parameters, against a backward pass of each by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from diffcse_scale.distributed import PROCESS_GROUP, Ranks
from diffcse_scale.model.networks import DiffCSENetworks, split_rows
from diffcse_scale.objective.gradients_in_parameters import METRICS, NAMES, gradients_in_parameters
from diffcse_scale.objective.objective import Objective
from diffcse_scale.recipe import ObjectiveRecipe
from diffcse_scale.runs.metric_table import of_steps
from diffcse_scale.text.batches import Chunk
from tests.support.ranks_in_threads import ranks_in_threads, together
from tests.support.toys import share, toy_chunk, toy_model

TOLERANCE = 1e-9  # relative, float64; largest seen 2e-14
Share = tuple[list[Chunk], list[Tensor]]


def two_chunks() -> Share:
    """Of five and three sentences, which draw dropout of their own."""
    made = [toy_chunk(sentences, seed=sentences) for sentences in (5, 3)]
    return [replace(chunk, seed=number) for number, (chunk, _) in enumerate(made)], [edited for _, edited in made]


def measured(objective: Objective, model: DiffCSENetworks, given: Share) -> dict[str, float]:
    """After the backward pass of one step."""
    model(objective.step, *given).loss.backward()
    found = gradients_in_parameters(model, given[0], objective.gradients, objective.ranks)
    return {name: float(value) for name, value in found.items()}


def truth(recipe: ObjectiveRecipe, model: DiffCSENetworks, given: Share) -> dict[str, float]:
    """Each term's gradient by torch.autograd, from a graph of its own."""
    objective, (chunks, edited) = Objective(recipe), given
    parameters = list(model.encoder.backbone.parameters())
    gradients = []
    for term in ("contrastive", "rtd"):
        z = model.project(torch.cat([model.encode(chunk) for chunk in chunks]))
        if term == "contrastive":
            loss = objective.total(objective.batch_terms(model, z, chunks))
        else:
            prepared, rows = objective.prepare(model, chunks), split_rows(objective.given(z, 2), chunks)
            of_chunks = [objective.chunk_terms(model, *one, prepared) for one in zip(chunks, edited, rows, strict=True)]
            loss = sum(objective.total(part) for part in of_chunks)
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        gradients.append(torch.cat([g.flatten() for g in found if g is not None]))
    contrastive, rtd = gradients
    return dict(zip(NAMES, map(float, (contrastive @ contrastive, rtd @ rtd, contrastive @ rtd)), strict=True))


@pytest.mark.parametrize("projection", ["batchnorm", "mlp", "none"])
@pytest.mark.parametrize("condition", ["own", "other"])
def test_lengths_and_product_are_those_of_a_backward_pass_of_each_term(condition: Any, projection: str) -> None:
    recipe = ObjectiveRecipe(rtd_weight=0.5, condition=condition)
    models = [toy_model(recipe, projection, dropout=0.1).double() for _ in range(2)]
    found = measured(Objective(recipe), models[0], two_chunks())
    assert found == pytest.approx(truth(recipe, models[1], two_chunks()), rel=TOLERANCE)
    share, cosine = (metric.ratio.of(found) for metric in METRICS)
    assert 0.001 < share < 100 and 0.001 < abs(cosine) < 0.999  # which a term alone would not give


def test_neither_gradients_nor_running_statistics_are_touched() -> None:
    recipe = ObjectiveRecipe(rtd_weight=0.5)
    models, objective = [toy_model(recipe, dropout=0.1) for _ in range(2)], Objective(recipe)
    measured(objective, models[0], two_chunks())
    models[1](Objective(recipe).step, *two_chunks()).loss.backward()
    for mine, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert (mine.grad is None and other.grad is None) or torch.equal(mine.grad, other.grad)
    for mine, other in zip(models[0].buffers(), models[1].buffers(), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_measure_the_gradient_of_the_global_batch(world_size: int) -> None:
    recipe = ObjectiveRecipe(rtd_weight=0.5)

    def of(ranks: Ranks, model: DiffCSENetworks, given: tuple[Chunk, Tensor]) -> dict[str, float]:
        return measured(Objective(recipe, ranks=ranks, sentences=8), model, ([given[0]], [given[1]]))

    alone = [metric.ratio.of(of(PROCESS_GROUP, toy_model(recipe).double(), toy_chunk())) for metric in METRICS]
    world = ranks_in_threads(world_size)
    models = [toy_model(recipe, ranks=ranks).double() for ranks in world]
    found = together(of, world, models, [share(*toy_chunk(), rank, world_size) for rank in range(world_size)])
    assert all(one == found[0] for one in found)
    assert [metric.ratio.of(found[0]) for metric in METRICS] == pytest.approx(alone, rel=TOLERANCE)


@pytest.mark.parametrize("options", [{"rtd_weight": 0}, {"condition": "detached"}])
def test_where_the_terms_do_not_meet_nothing_is_measured(options: dict[str, Any]) -> None:
    recipe = ObjectiveRecipe(**{"rtd_weight": 0.5, **options})
    assert measured(Objective(recipe), toy_model(recipe), two_chunks()) == {}


def test_a_row_has_them_where_they_were_measured() -> None:
    assert set(METRICS).isdisjoint(of_steps({"contrastive", "rtd"}))
    assert set(METRICS) <= set(of_steps({"contrastive", "rtd", *NAMES}))


@pytest.mark.parametrize("options", [{"rtd_weight": 0}, {"condition": "detached"}, {"contrastive_weight": 0}])
def test_a_recipe_whose_terms_do_not_meet_cannot_ask(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="parameter_share_every needs both terms in z"):
        ObjectiveRecipe(parameter_share_every=1, **options)
