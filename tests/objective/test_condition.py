"""Which z the discriminator is given, and whether it matters: the arms of a study, and a task that z alone solves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from diffcse_scale.model.networks import DiffCSENetworks
from diffcse_scale.objective.gradients_in_z import METRICS
from diffcse_scale.objective.objective import Objective
from diffcse_scale.recipe import ObjectiveRecipe
from diffcse_scale.text.batches import Chunk
from tests.support.toys import VOCABULARY, toy_backbone, toy_chunk, toy_model


def gradients(recipe: ObjectiveRecipe, step: int = 0) -> dict[str, Tensor]:
    """Of one step on a toy batch, by the names of the parameters."""
    model, objective = toy_model(recipe).double(), Objective(recipe)
    objective.begin(step)
    chunk, edited = toy_chunk()
    model(objective.step, [chunk], [edited]).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def of_encoder(found: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: gradient for name, gradient in found.items() if name.startswith(("encoder.", "projection."))}


ALONE = of_encoder(gradients(ObjectiveRecipe(rtd_weight=0)))


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.allclose(one[name], other[name], rtol=1e-12, atol=1e-12) for name in one)


def test_detached_z_leaves_the_encoder_to_infonce_and_trains_the_discriminator() -> None:
    own, detached = (gradients(ObjectiveRecipe(rtd_weight=0.5, condition=c)) for c in ("own", "detached"))
    assert equal(of_encoder(detached), ALONE) and not equal(of_encoder(own), ALONE)
    assert all(torch.equal(detached[name], own[name]) for name in own.keys() - ALONE.keys())  # the same z goes in


def test_in_the_warmup_z_is_detached_and_after_it_no_more() -> None:
    recipe = ObjectiveRecipe(rtd_weight=0.5, discriminator_warmup=3)
    assert equal(of_encoder(gradients(recipe, step=2)), ALONE)
    assert equal(gradients(recipe, step=3), gradients(ObjectiveRecipe(rtd_weight=0.5)))


@pytest.mark.parametrize("cuts", [1, 2])
def test_another_sentences_z_is_that_of_the_one_before(cuts: int) -> None:
    """Views stay views, the first sentence has the last one's, and pieces of a share are not closed rings."""
    recipe = ObjectiveRecipe(rtd_weight=0.5, condition="other")
    chunk, edited = toy_chunk(sentences=6)
    model, given = toy_model(recipe), []
    model.discriminator.register_forward_pre_hook(lambda _, inputs: given.append(inputs[2]))
    names = ("input_ids", "attention_mask", "corrupted_ids", "row_ids")
    whole = {name: getattr(chunk, name).chunk(cuts) for name in names}
    chunks = [replace(chunk, **{name: whole[name][i] for name in names}) for i in range(cuts)]
    model(Objective(recipe).step, chunks, list(edited.chunk(cuts)))
    z = model.project(torch.cat([model.encode(chunk) for chunk in chunks])).unflatten(0, (6, 2))
    torch.testing.assert_close(torch.cat(given).unflatten(0, (6, 2)), z[[5, 0, 1, 2, 3, 4]], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_both_gradients_in_z_are_measured_in_one_backward_pass(dtype: torch.dtype) -> None:
    """Against two backward passes of their own; 1e-6 of the value in float32."""
    recipe = ObjectiveRecipe(rtd_weight=0.5)
    model, objective = toy_model(recipe).to(dtype), Objective(recipe)
    chunk, edited = toy_chunk()
    model(objective.step, [chunk], [edited]).loss.backward()
    found = objective.gradients.take()
    z = model.project(model.encode(chunk)).detach().requires_grad_()
    (contrastive,) = torch.autograd.grad(objective.total(objective.batch_terms(model, z, [chunk])), z)
    prepared = objective.prepare(model, [chunk])
    (rtd,) = torch.autograd.grad(objective.total(objective.chunk_terms(model, chunk, edited, z, prepared)), z)
    truth = {"contrastive": contrastive.square().sum(), "rtd": rtd.square().sum(), "product": (contrastive * rtd).sum()}
    assert {name.removeprefix("z_gradient_") for name in found} == truth.keys()
    for name, value in truth.items():
        assert float(found[f"z_gradient_{name}"]) == pytest.approx(float(value), rel=1e-5)
    assert objective.gradients.take() == {}  # each is told once


@pytest.mark.parametrize("options", [{"rtd_weight": 0}, {"condition": "detached"}, {"contrastive_weight": 0}])
def test_where_the_terms_do_not_meet_nothing_is_measured(options: dict[str, Any]) -> None:
    recipe = ObjectiveRecipe(**{"rtd_weight": 0.5, **options})
    objective = Objective(recipe)
    chunk, edited = toy_chunk()
    toy_model(recipe)(objective.step, [chunk], [edited]).loss.backward()
    found = {name: float(value) for name, value in objective.gradients.take().items()}
    assert all(metric.ratio.of(found) is None for metric in METRICS)


def test_lambda_follows_the_share_that_was_asked_for() -> None:
    """Of a gradient that is proportional to lambda, as it is while the networks stand still."""
    recipe = ObjectiveRecipe(rtd_weight=0.001, rtd_share=0.05)
    objective, shares = Objective(recipe), []
    for _ in range(12):
        shares.append(objective.weights["rtd"] * 3.0)
        objective.follow(shares[-1])
    assert shares == sorted(shares)  # it does not overshoot
    assert shares[-1] == pytest.approx(0.05, rel=0.01)
    objective.follow(None)
    assert objective.weights["rtd"] * 3.0 == pytest.approx(0.05, rel=0.01)
    before = objective.weights["rtd"]
    objective.begin(20)
    objective.follow(0.01)
    assert objective.used["rtd"] == before < objective.weights["rtd"]  # a log line has the lambda of its step
    fixed = Objective(ObjectiveRecipe(rtd_weight=0.001))
    fixed.follow(0.5)
    assert fixed.weights["rtd"] == 0.001


EDITED, LEFT = 5, 6  # the words by which a sentence says whether it is going to be edited


def planted_batch(step: int, sentences: int = 24, length: int = 8) -> tuple[Chunk, Tensor]:
    """Random words, of which half of the sentences have half replaced by other random words.

    Nothing in the edited sentence tells a replaced word from a kept one. The original's second token says whether its
    row is one of those; the edit has a third word in its place. So only z can know, and only if the encoder learns it.
    """
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(8, VOCABULARY, (sentences, 1, length), generator=generator).repeat(1, 2, 1)
    replace_row = torch.rand(sentences, generator=generator) < 0.5
    ids[:, :, 0], ids[:, :, 1] = 2, torch.where(replace_row, EDITED, LEFT)[:, None]
    other = torch.randint(8, VOCABULARY, ids.shape, generator=generator)
    replaced = (torch.rand(ids.shape, generator=generator) < 0.5) & replace_row[:, None, None]
    replaced[:, :, :2] = False
    edited = torch.where(replaced, other, ids)
    original = ids.clone()
    original[:, :, 1] = edited[:, :, 1] = 7
    mask = torch.ones_like(ids)
    # the discriminator judges tokens of its own, in which the telling word is another
    empty = torch.empty(0, dtype=torch.long)
    rows = torch.zeros(sentences, 2, dtype=torch.long)
    return Chunk(ids, mask, original, empty, rows, discriminator_ids=original, discriminator_mask=mask), edited


def auroc_of_planted_task(condition: str, fault: str = "") -> float:
    """After 80 steps of RTD alone, from an encoder whose z is zero for every sentence."""
    recipe = ObjectiveRecipe(rtd_weight=1.0, contrastive_weight=0.0, condition=condition)
    model = DiffCSENetworks(toy_backbone(), recipe, projection="mlp", condition_is_mapped=True)
    torch.nn.init.zeros_(model.projection.dense.weight)
    if fault == "map":
        torch.nn.init.zeros_(model.discriminator.map.weight).requires_grad_(False)
    objective = Objective(recipe)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3, weight_decay=0)
    for step in range(80):
        chunk, edited = planted_batch(step)
        model(objective.step, [chunk], [edited]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        chunk, edited = planted_batch(1000, sentences=128)
        z = objective.given(model.project(model.encode(chunk)), 2)
        logits, replaced = model.logits(chunk, edited, z), (edited != chunk.original_ids).flatten(0, 1)
    words = torch.zeros_like(replaced)
    words[:, 2:] = True
    high, low = logits[words & replaced], logits[words & ~replaced]
    above = (high[:, None] > low).double() + (high[:, None] == low).double() / 2
    return float(above.mean())


def test_a_task_that_z_alone_solves_is_learnt() -> None:
    """By chance 0.5; a z that says whether a row was edited can give 0.83."""
    assert auroc_of_planted_task("own") > 0.78


@pytest.mark.slow
@pytest.mark.parametrize(("condition", "fault"), [("detached", ""), ("other", ""), ("own", "map")])
def test_without_its_own_z_it_is_not(condition: str, fault: str) -> None:
    """z without a gradient, another sentence's, or one that does not get in."""
    assert abs(auroc_of_planted_task(condition, fault) - 0.5) < 0.06
