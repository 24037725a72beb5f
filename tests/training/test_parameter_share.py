"""Gradients on the encoder's parameters, measured while training: nothing changes; ranks and chunks do not matter.

Tolerance between one rank and two: 1e-4 of a length in float32 (largest seen: 2e-6).
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from diffcse_scale.engine.configuration import complete_config
from diffcse_scale.engine.engine import initialize, optimizer_step
from diffcse_scale.engine.launch import start_process_group
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.objective.gradients_in_parameters import METRICS, NAMES
from diffcse_scale.recipe_file import load_recipe
from diffcse_scale.text.batches import Batch
from diffcse_scale.training.step import TrainingStep
from tests.support.launch import launch, metrics
from tests.support.programs.chunking_program import SENTENCES, STEPS, Case
from tests.support.ranks import run_ranks

EVERY = 2
Trained = tuple[dict[str, torch.Tensor], list[dict[str, float]]]


def trained(chunk: int | None, every: int | None, precision: str) -> Trained:
    """All weights after three steps, and what was measured in each."""
    case = Case(0, precision=precision)
    options = [f"batch.sentences={SENTENCES}", f"batch.chunk={json.dumps(chunk)}", "objective.rtd_weight=0.3"]
    recipe = load_recipe("quickstart", [*options, f"objective.parameter_share_every={json.dumps(every)}"])
    step_once = TrainingStep(initialize(case.model(), case.recipe(), case.config()), None, recipe)
    for group in step_once.engine.optimizer.param_groups:
        group["lr"] = recipe.optimizer.learning_rate
    found = []
    for step in range(STEPS):
        chunks = [replace(chunk, edited_ids=ids) for chunk, ids in zip(*case.share(step), strict=True)]
        statistics = step_once(Batch(step, 0, chunks, SENTENCES)).statistics
        optimizer_step(step_once.engine)
        found.append({name: float(statistics[name]) for name in NAMES if name in statistics})
    state = {name: value.clone() for name, value in step_once.engine.module.state_dict().items()}
    step_once.engine.destroy()
    return state, found


def of_all_ways() -> dict[tuple[Any, ...], Trained]:
    start_process_group()
    ways = [(chunk, every, "fp32") for chunk in (None, 3) for every in (None, EVERY)]
    return {way: trained(*way) for way in [*ways, (3, None, "bf16"), (3, EVERY, "bf16")]}


@pytest.fixture(scope="module")
def on_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[tuple[Any, ...], Trained]]]:
    """What every rank has, by their number."""
    return {ranks: run_ranks(of_all_ways, ranks, tmp_path_factory.mktemp(f"of{ranks}")) for ranks in (1, 2)}


def test_training_is_the_same_bit_for_bit(on_ranks) -> None:
    for of_rank in (one for found in on_ranks.values() for one in found):
        for chunk, every, precision in of_rank:
            mine, plain = of_rank[chunk, every, precision][0], of_rank[chunk, None, precision][0]
            assert all(torch.equal(mine[name], plain[name]) for name in plain)


def test_it_is_measured_every_so_many_steps_from_the_first_on(on_ranks) -> None:
    for (_, every, _), (_, found) in on_ranks[1][0].items():
        assert [set(one) for one in found] == ([set(NAMES), set(), set(NAMES)] if every else [set()] * STEPS)


def test_ranks_agree_and_their_number_and_chunks_do_not_matter(on_ranks) -> None:
    def ratios(of_rank: dict[tuple[Any, ...], Trained], chunk: int | None) -> list[float]:
        return [metric.ratio.of(found) for found in of_rank[chunk, EVERY, "fp32"][1][::EVERY] for metric in METRICS]

    assert on_ranks[2][0].keys() == on_ranks[2][1].keys()
    for chunk in (None, 3):
        assert ratios(on_ranks[2][0], chunk) == ratios(on_ranks[2][1], chunk)
        assert ratios(on_ranks[2][0], chunk) == pytest.approx(ratios(on_ranks[1][0], None), rel=1e-4)


def test_a_run_logs_it_in_the_rows_of_these_steps(toy_world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    asked = ("objective.parameter_share_every=2", "max_steps=3", "evaluation.data=null")
    arguments = ("--deepspeed_config", "zero0", "--recipe", str(toy_world / "toy.yaml"), "--output", str(run), *asked)
    launched = launch(*arguments, ranks=1)
    assert launched.returncode == 0, launched.stdout
    rows = metrics(run)
    assert [row["step"] for row in rows if "parameter_share" in row] == [1, 3]
    assert all(0 < row["parameter_share"] < 1 and abs(row["parameter_cosine"]) <= 1 for row in rows[::2])


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_at_other_stages_it_is_refused_before_the_start(stage: int) -> None:
    recipe = load_recipe("quickstart", ["objective.parameter_share_every=10"])
    with pytest.raises(InputError, match=f"needs whole gradients, and .* asks for ZeRO stage {stage}; use stage 0"):
        complete_config({"zero_optimization": {"stage": stage}}, recipe, 1)
    complete_config({"zero_optimization": {"stage": 0}}, recipe, 1)
