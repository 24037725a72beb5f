"""Gradients of the whole objective do not depend on the number of ranks (design: the first of the tests that count).

The truth is one process with the whole batch in float64. Ranks hold contiguous shares with very different numbers
of real tokens. Tolerances, of each tensor's norm: float64 1e-9; float32 through DeepSpeed 5e-5; bfloat16, against one
rank in bfloat16, half of what bfloat16 costs that rank, which differs between processors. Tensors whose gradient is
zero by mathematics (key biases) are compared absolutely.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any
from unittest import mock

import deepspeed
import pytest
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_grad

from diffcse_scale import distributed
from diffcse_scale.engine.launch import start_process_group
from diffcse_scale.model import projection
from diffcse_scale.objective import replaced_tokens
from diffcse_scale.objective.objective import Objective
from diffcse_scale.objective.replaced_tokens import ReplacedTokens
from diffcse_scale.objective.term import Part
from diffcse_scale.recipe import ObjectiveRecipe
from diffcse_scale.text.batches import Chunk
from tests.support.ranks import run_ranks
from tests.support.toys import share, toy_chunk, toy_model

Gradients = dict[str, torch.Tensor]
SAMPLED = ObjectiveRecipe(fidelity="sampled", rtd_weight=0.5)


def _objective_gradients(objective: ObjectiveRecipe, head: str, views: int, dtype: torch.dtype) -> Gradients:
    """This rank's share through forward and backward, then the average over ranks that DeepSpeed would take."""
    model = toy_model(objective, head).to(dtype)
    chunk, edited = share(*toy_chunk(views=views), distributed.rank(), distributed.world_size())
    model(Objective(objective).step, [chunk], [edited]).loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    if dist.is_initialized():
        for gradient in gradients.values():
            dist.all_reduce(gradient)
            gradient /= dist.get_world_size()
    return gradients


def _broken_gather_backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
    return gradient.split(ctx.shares)[distributed.rank()], None, None


_CORRECT = ReplacedTokens.__call__


def _unmultiplied(term: ReplacedTokens, *arguments: Any) -> Part:
    part = _CORRECT(term, *arguments)
    return part._replace(loss=part.loss / distributed.world_size())


FAULTS = {
    "the gather's backward keeps only local gradients": lambda: mock.patch.object(
        distributed._GatherRows, "backward", staticmethod(_broken_gather_backward)
    ),
    "the sum's backward keeps only local gradients": lambda: mock.patch.object(
        distributed._SumOverRanks, "backward", staticmethod(lambda ctx, gradient: (gradient, None))
    ),
    "token means are per rank": lambda: mock.patch.object(
        replaced_tokens, "all_sum", lambda count, ranks: count * ranks.world_size
    ),
    "the loss is not multiplied by the world size": lambda: mock.patch.object(
        ReplacedTokens, "__call__", _unmultiplied
    ),
    "batch normalisation sees only its own rank": lambda: mock.patch.object(
        projection, "sum_over_ranks", lambda value, ranks: value
    ),
}


def _with_fault(fault: str) -> Gradients:
    with FAULTS[fault]():
        return _objective_gradients(SAMPLED, "batchnorm", 2, torch.float64)


def _largest_deviation(found: Gradients, truth: Gradients) -> float:
    """Largest deviation relative to each tensor's norm; relative to the whole gradient for mathematical zeros."""
    assert found.keys() == truth.keys()
    whole = torch.stack([gradient.norm() for gradient in truth.values()]).norm()
    deviations = []
    for name, true in truth.items():
        norm = true.norm() if true.norm() > 1e-10 * whole else whole
        deviations.append(float((found[name].double() - true.double()).norm() / norm))
    return max(deviations)


OBJECTIVES = {
    "sampled-batchnorm-pairs": (SAMPLED, "batchnorm", 2, torch.float64),
    "sampled-mlp-triples": (
        ObjectiveRecipe(fidelity="sampled", rtd_weight=0.5, hard_negative_weight=1.0),
        "mlp",
        3,
        torch.float64,
    ),
}


def _all_objectives() -> dict[str, Gradients]:
    return {name: _objective_gradients(*case) for name, case in OBJECTIVES.items()}


@pytest.mark.parametrize(("world_size", "per_node"), [(2, None), (4, None), (4, 2)])
def test_gradients_in_float64_are_those_of_one_process(tmp_path, world_size, per_node):
    truth = _all_objectives()
    for found in run_ranks(_all_objectives, world_size, tmp_path, per_node=per_node):
        for name in OBJECTIVES:
            assert _largest_deviation(found[name], truth[name]) < 1e-9, name


def _all_faults() -> dict[str, Gradients]:
    return {fault: _with_fault(fault) for fault in FAULTS}


def test_each_planted_fault_is_noticed(tmp_path):
    truth = _objective_gradients(SAMPLED, "batchnorm", 2, torch.float64)
    found = run_ranks(_all_faults, 2, tmp_path)[0]
    for fault in FAULTS:
        assert _largest_deviation(found[fault], truth) > 1e-3, fault


STAGES = (0, 1, 2, 3)


def _engine(stage: int, precision: dict[str, Any]) -> tuple[Any, list[Chunk], list[torch.Tensor]]:
    """DeepSpeed around the toy model, and this rank's share."""
    model = toy_model(SAMPLED)
    chunk, edited = share(*toy_chunk(), distributed.rank(), distributed.world_size())
    config = {
        "train_micro_batch_size_per_gpu": chunk.input_ids.shape[0],
        # persistence 0: else ZeRO-3 leaves tensors as small as these whole
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "steps_per_print": 10**9,
        **precision,
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
    return engine, [chunk], [edited]


def _engine_gradients() -> dict[tuple[int, str], Gradients]:
    """Averaged gradients out of DeepSpeed for every stage and precision."""
    start_process_group()
    found = {}
    for stage in STAGES:
        for precision in ("fp32", "bf16"):
            autocast = {"enabled": precision == "bf16", "dtype": "bfloat16"}
            engine, chunks, edited = _engine(stage, {"torch_autocast": autocast})
            engine.backward(engine(Objective(SAMPLED).step, chunks, edited).loss)
            gradients = {name: safe_get_full_grad(p) for name, p in engine.module.named_parameters()}
            found[stage, precision] = {name: gradient.float().clone() for name, gradient in gradients.items()}
    return found


def _losses_with_bfloat16_weights() -> dict[int, list[float]]:
    start_process_group()
    losses = {}
    for stage in STAGES:
        engine, chunks, edited = _engine(stage, {"bf16": {"enabled": True}})
        losses[stage] = []
        for _ in range(3):
            loss = engine(Objective(SAMPLED).step, chunks, edited).loss
            engine.backward(loss)
            engine.step()
            losses[stage].append(float(distributed.all_mean(loss)))
    return losses


@pytest.fixture(scope="module")
def engine_gradients(tmp_path_factory):
    @cache
    def of_ranks(size):
        return run_ranks(_engine_gradients, size, tmp_path_factory.mktemp(f"ranks{size}"))[0]

    return of_ranks


FOUR = pytest.param(4, marks=pytest.mark.slow)


@pytest.mark.parametrize("world_size", [1, 2, FOUR])
@pytest.mark.parametrize("stage", STAGES)
def test_engine_gradients_in_float32_are_those_of_one_process_in_float64(engine_gradients, stage, world_size):
    truth = _objective_gradients(SAMPLED, "batchnorm", 2, torch.float64)
    assert _largest_deviation(engine_gradients(world_size)[stage, "fp32"], truth) < 5e-5


@pytest.mark.parametrize("world_size", [2, FOUR])
@pytest.mark.parametrize("stage", [0, 2])
def test_engine_gradients_in_bfloat16_are_those_of_one_rank(engine_gradients, stage, world_size):
    # nearer to one rank in bfloat16 than that is to the truth: the sum must not depend on ranks, its rounding may
    one_rank = engine_gradients(1)[stage, "bf16"]
    truth = _objective_gradients(SAMPLED, "batchnorm", 2, torch.float64)
    nonzero = [name for name, gradient in truth.items() if gradient.norm() > 1e-8]
    found, one_rank, truth = (
        {name: gradients[name] for name in nonzero}
        for gradients in (engine_gradients(world_size)[stage, "bf16"], one_rank, truth)
    )
    assert _largest_deviation(found, one_rank) < _largest_deviation(one_rank, truth)


def test_bfloat16_weights_train_at_every_stage(tmp_path):
    truth = float(toy_model(SAMPLED).double()(Objective(SAMPLED).step, *([part] for part in toy_chunk())).loss)
    for stage, losses in run_ranks(_losses_with_bfloat16_weights, 2, tmp_path)[0].items():
        assert losses[0] == pytest.approx(truth, rel=0.05), stage
        assert losses[2] < losses[0], stage


def test_without_a_process_group_there_is_one_rank():
    if dist.is_initialized() or "RANK" in os.environ:
        pytest.skip("another test of this process has joined a process group")
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
