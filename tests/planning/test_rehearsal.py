"""A rehearsal on tensors without numbers sees what a real step allocates, at any size."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from diffcse_scale.distributed import imagined_ranks
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.model.backbone import load_backbone
from diffcse_scale.planning.fit import Planner
from diffcse_scale.planning.rehearsal import Rehearsal, _Stage
from diffcse_scale.planning.shape_networks import load_networks
from diffcse_scale.planning.sharding import read_sharding


def sharding(recipe, ranks=2):
    return read_sharding({"zero_optimization": {"stage": 2}}, recipe, ranks, on_cpu=True)


@pytest.fixture(scope="module")
def chunked(recipe):
    return Rehearsal(load_networks(recipe), recipe, sharding(recipe), share=16, chunk=4)


def test_no_weights_are_needed(recipe):
    assert all(parameter.is_meta for parameter in load_networks(recipe).model.parameters())
    with pytest.raises(InputError, match="cannot be read"):
        load_backbone(recipe.model.encoder)


def test_every_trained_parameter_gets_one_gradient_from_the_chunk_that_is_watched(recipe, chunked):
    names = [parameter.name for parameter in load_networks(recipe).parameters if parameter.trained]
    assert sorted(moment.gradient for moment in chunked.moments(16, 4) if moment.gradient) == sorted(names)


@pytest.mark.parametrize(("share", "chunk", "tolerance"), [(16, 4, 0), (24, 6, 0.05), (64, 8, 0.1)])
def test_sizes_are_as_if_each_were_rehearsed(recipe, chunked, share, chunk, tolerance):
    """Exact for the sizes given; elsewhere a stretch's peak may be another tensor's, which is off by a few percent."""
    networks = load_networks(recipe)
    with imagined_ranks(2), FakeTensorMode(allow_non_fake_inputs=True):
        truth = _Stage(networks, recipe, sharding(recipe)).rehearse(chunk, share - chunk)
    mine = chunked.moments(share, chunk)
    assert [(m.part, m.gradient) for m in mine] == [(m.part, m.gradient) for m in truth]
    for part in {moment.part for moment in truth}:
        peaks = [max(m.peak for m in moments if m.part == part) for moments in (mine, truth)]
        assert peaks[0] == pytest.approx(peaks[1], rel=tolerance)


def test_a_step_with_numbers_allocates_the_same(recipe):
    """The truth is the same step on ordinary tensors."""
    alone = recipe.model_copy(update={"objective": recipe.objective.model_copy(update={"rtd_weight": 0.0})})
    peaks = []
    for mode in (FakeTensorMode(allow_non_fake_inputs=True), nullcontext()):
        networks = load_networks(alone)
        with imagined_ranks(1), mode:
            stage = _Stage(networks, alone, sharding(alone, 1))
            stage.module.apply(_fill_with_zeros)
            peaks.append(max(moment.peak for moment in stage.rehearse(8, 0)))
    assert peaks[0] == pytest.approx(peaks[1], rel=0.02)


def test_activations_follow_the_chunk_and_not_the_share(chunked):
    def activations(share, chunk):
        return max(
            moment.peak - moment.held for moment in chunked.moments(share, chunk) if moment.part == "chunk_terms"
        )

    assert activations(4096, 8) == pytest.approx(activations(64, 8), rel=0.05)
    assert activations(64, 16) > 1.5 * activations(64, 8)


def test_computing_activations_again_is_seen(recipe):
    less = recipe.model_copy(update={"model": recipe.model.model_copy(update={"gradient_checkpointing": True})})
    plain, again = (Rehearsal(load_networks(r), r, sharding(r), share=16).moments(16, None) for r in (recipe, less))
    assert max(moment.peak for moment in again) < 0.8 * max(moment.peak for moment in plain)


def _fill_with_zeros(module: torch.nn.Module) -> None:
    with torch.no_grad():
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            tensor.zero_()


@pytest.mark.parametrize(("chunk", "planned"), [(16, None), (100, None), (15, 15)])
def test_a_chunk_that_holds_the_share_is_planned_as_none(recipe, chunk, planned):
    cut = recipe.model_copy(update={"batch": recipe.batch.model_copy(update={"chunk": chunk})})
    assert Planner(cut, sharding(cut), budget=2**30).chunk == planned


def test_zero_3_leaves_no_copy_of_a_linear_weight_in_the_graph(recipe):
    """Under autocast a plain linear layer leaves one in bfloat16, 2 bytes a number, until its backward pass."""
    config = {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}
    simple = recipe.model_copy(update={"objective": recipe.objective.model_copy(update={"rtd_weight": 0.0})})
    ends, networks = {}, load_networks(simple)
    for stage in (2, 3):
        planned = read_sharding({"zero_optimization": {"stage": stage}, **config}, simple, 2, on_cpu=True)
        moments = Rehearsal(load_networks(simple), simple, planned, share=1).moments(1, None)
        last = "encoder.backbone.encoder.layer.1.output.dense.weight"
        ends[stage] = next(moment.left for moment in moments if moment.gradient == last)
    # of what runs before that layer's output, which is all of the encoder's linear weights but this one
    copies = sum(
        parameter.elements
        for parameter in networks.parameters
        if parameter.autocast and parameter.part == "encoder" and parameter.name != last and parameter.dimensions > 1
    )
    assert ends[2] - ends[3] == pytest.approx(2 * copies, rel=0.05)
