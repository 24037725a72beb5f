"""A chunked step is the step: the same losses and parameters as one graph and one backward pass, whatever the stage.

Tolerances on the norm of each tensor's difference after three steps: 5e-5 of its norm in float32 (largest seen: 2e-6),
2e-2 with bfloat16 products. `chunking_program.py` says what the truth is and which cases there are.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from diffcse_scale.engine.engine import initialize
from diffcse_scale.engine.launch import start_process_group
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.model.compiled import has_compiler
from diffcse_scale.objective.objective import Objective
from diffcse_scale.recipe_file import load_recipe
from diffcse_scale.text.batches import Batch
from diffcse_scale.training.chunking import ChunkedStep
from diffcse_scale.training.step import TrainingStep
from tests.support.devices import most_ranks, tolerance
from tests.support.launch import PROGRAMS, launch, metrics
from tests.support.programs.chunking_program import Case
from tests.support.ranks import run_ranks
from tests.support.toys import toy_chunk, toy_model

PROGRAM = PROGRAMS / "chunking_program.py"
TOLERANCES = {"fp32": tolerance(5e-5, 5e-4), "bf16": 2e-2}
FAR = 2e-3  # what a planted fault exceeds, 40 times the tolerance of its float32


def compared(output: Path, ranks: int, *options: str) -> dict[str, dict[str, Any]]:
    result = launch(str(output), *options, ranks=ranks, program=PROGRAM)
    assert result.returncode == 0, result.stdout
    return json.loads(output.read_text())


def assert_right_but_for_the_faults(results: dict[str, dict[str, Any]]) -> None:
    for name, case in results.items():
        if not case["fault"]:
            tolerance = TOLERANCES[case["precision"]]
            assert case["parameter_difference"] < tolerance, (name, case)
            assert case["loss_difference"] < tolerance, (name, case)
        else:
            assert case["parameter_difference"] > FAR, (name, case)


@pytest.mark.device
def test_on_two_ranks(tmp_path):
    results = compared(tmp_path / "results.json", 2)
    assert_right_but_for_the_faults(results)
    faults = {name for name, case in results.items() if case["fault"]}
    # another seed in the second pass; gradients of the step before at ZeRO-3; gradients lost at ZeRO-1 with overlap
    assert faults == {"zero2-chunk3-fp32-seed", "zero3-chunk3-fp32-untouched", "zero1-chunk3-fp32-overlap-untouched"}


@pytest.mark.device
@pytest.mark.slow
def test_on_one_rank(tmp_path):
    results = compared(tmp_path / "results.json", 1)
    # ZeRO-1 with overlap has nothing to reduce on one rank, so that nothing is lost
    del results["zero1-chunk3-fp32-overlap-untouched"]
    assert_right_but_for_the_faults(results)


@pytest.mark.slow
def test_every_stage_overlap_precision_and_cut(tmp_path):
    results = compared(tmp_path / "results.json", 2, "--all")
    assert_right_but_for_the_faults(results)
    assert len(results) > 50


@pytest.mark.device
@pytest.mark.slow
def test_one_and_two_ranks_and_compiled_layers_agree_with_dropout_on(toy_world, tmp_path):
    losses = {}
    for ranks, compiled in ((1, False), (2, False), (1, True)):
        if ranks > most_ranks() or (compiled and not has_compiler()):
            continue
        result = launch(
            *("--recipe", str(toy_world / "toy.yaml"), "--output", str(tmp_path / f"run{ranks}{compiled}")),
            *("batch.chunk=4", "max_steps=6", "evaluation.data=null", f"model.compile={str(compiled).lower()}"),
            ranks=ranks,
        )
        assert result.returncode == 0, result.stdout
        assert "chunk                │ 4 sentences" in result.stdout
        losses[ranks, compiled] = [row["loss"] for row in metrics(tmp_path / f"run{ranks}{compiled}")]
    for found in losses.values():
        assert len(found) == 6
        assert found == pytest.approx(
            losses[1, False], rel=tolerance(1e-4, 0.1)
        )  # 6 steps of AdamW on sums in another order


def _collectives(chunk: int | None) -> dict[str, int]:
    """How often each is called in a step of six sentences a device at ZeRO-3, which gathers every weight it uses."""
    case = Case(3, chunk=min(chunk or 6, 6))
    recipe = load_recipe("quickstart", ["batch.sentences=12", f"batch.chunk={json.dumps(chunk)}"])
    step = TrainingStep(initialize(case.model(), case.recipe(), case.config()), None, recipe)
    batch = Batch(0, 0, [replace(chunk, edited_ids=ids) for chunk, ids in zip(*case.share(0), strict=True)], 12)
    with torch.profiler.profile() as seen:
        step(batch)
    return {event.key: event.count for event in seen.key_averages() if event.key.startswith("c10d::")}


def _collectives_of_each(chunks: list[int | None]) -> list[dict[str, int]]:
    start_process_group()
    return [_collectives(chunk) for chunk in chunks]


@pytest.mark.slow
def test_a_chunk_that_holds_the_share_gathers_weights_as_often_as_none(tmp_path):
    for without, equal, larger, cut in run_ranks(_collectives_of_each, 2, tmp_path, [None, 6, 100, 3]):
        assert without == equal == larger
        assert cut["c10d::_allgather_base_"] > 2 * without["c10d::_allgather_base_"] > 20


@pytest.mark.parametrize(("chunk", "passes"), [(None, 1), (7, 1), (6, 1), (5, 8), (3, 8)])
def test_a_share_of_one_chunk_is_one_graph(chunk, passes):
    engine = WithoutDeepSpeed(toy_model(load_recipe("quickstart").objective))
    chunks, edited = _chunks(2) if passes > 1 else ([whole] for whole in toy_chunk(6))
    recipe = load_recipe("quickstart", ["batch.sentences=6", f"batch.chunk={json.dumps(chunk)}"])
    chunks = [replace(chunk, edited_ids=ids) for chunk, ids in zip(chunks, edited, strict=True)]
    TrainingStep(engine, None, recipe)(Batch(0, 0, chunks, 6))
    # each chunk twice through the encoder and once through RTD; projection and InfoNCE
    assert engine.calls == passes


class WithoutDeepSpeed:
    """An engine that is plain PyTorch, as at ZeRO-0 on one rank."""

    def __init__(self, module):
        self.module, self.calls = module, 0

    def __call__(self, *arguments):
        self.calls += 1
        return self.module(*arguments)

    def backward(self, loss):
        loss.backward()

    def set_gradient_accumulation_boundary(self, is_boundary):
        self.is_boundary = is_boundary

    def zero_optimization_stage(self):
        return 0

    def zero_offload_optimizer(self):
        return None


def _chunks(count: int, seeds: bool = True):
    made = [toy_chunk(3, seed=number) for number in range(count)]
    chunks = [replace(chunk, seed=number if seeds else None) for number, (chunk, _) in enumerate(made)]
    return chunks, [edited for _, edited in made]


@pytest.mark.parametrize("fidelity", ["sampled", "official"])
def test_losses_counts_and_batchnorm_statistics_are_those_of_one_graph(fidelity):
    objective = load_recipe("quickstart", [f"objective.fidelity={fidelity}", "objective.rtd_weight=0.2"]).objective
    models = [toy_model(objective, dropout=0.1) for _ in range(2)]
    chunks, edited = _chunks(4)
    whole = models[0](Objective(objective).step, chunks, edited)
    chunked = ChunkedStep(WithoutDeepSpeed(models[1]), Objective(objective))(chunks, edited)
    assert torch.allclose(chunked.loss, whole.loss, rtol=1e-5)
    assert chunked.statistics.keys() == whole.statistics.keys()
    for name, truth in whole.statistics.items():
        assert torch.allclose(chunked.statistics[name], truth, rtol=1e-5), name
    for mine, truth in zip(models[1].buffers(), models[0].buffers(), strict=True):
        assert torch.equal(mine, truth)  # running statistics are updated once


def test_activations_of_one_chunk_are_alive_at_a_time():
    objective = load_recipe("quickstart", ["objective.rtd_weight=0.2"]).objective
    model = toy_model(objective)

    def saved(step, count):
        """Largest number of bytes held for backward."""
        alive = {"now": 0, "most": 0}

        class Held:
            def __init__(self, tensor):
                self.tensor, self.size = tensor, tensor.untyped_storage().nbytes()
                alive["now"] += self.size
                alive["most"] = max(alive["most"], alive["now"])

            def __del__(self):
                alive["now"] -= self.size

        chunks, edited = _chunks(count)
        with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
            step(chunks, edited)
        return alive["most"]

    chunked = ChunkedStep(WithoutDeepSpeed(model), Objective(objective))
    # what grows with the batch is of an embedding's size: 9 chunks more cost less than the activations of one
    assert saved(chunked, 10) - saved(chunked, 1) < 0.7 * saved(chunked, 1)
    assert saved(lambda *share: model(Objective(objective).step, *share).loss.backward(), 10) > 8 * saved(chunked, 1)


def test_an_encoder_that_cannot_be_replayed_is_refused():
    objective = load_recipe("quickstart", ["objective.rtd_weight=0"]).objective
    chunks, _ = _chunks(2, seeds=False)  # as if it drew its dropout from elsewhere
    with pytest.raises(InputError, match="second pass over a chunk differs from its first"):
        ChunkedStep(WithoutDeepSpeed(toy_model(objective, dropout=0.1)), Objective(objective))(chunks)
