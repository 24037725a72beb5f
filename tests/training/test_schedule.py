"""Batch arithmetic and learning rate, on cases worked by hand."""

from __future__ import annotations

from typing import get_args

import pytest

from diffcse_scale.recipe import OptimizerRecipe, Schedule
from diffcse_scale.recipe_file import load_recipe
from diffcse_scale.training.schedule import SCHEDULES, learning_rate, make_plan


def test_plan_of_a_small_corpus():
    plan = make_plan(load_recipe("quickstart", ["epochs=2.5"]), sentences=1000, views=2, world_size=2)
    # 1000 // 64 = 15 batches an epoch, floor(15 * 2.5) = 37
    assert (plan.share, plan.negatives, plan.steps_per_epoch, plan.steps) == (32, 63, 15, 37)


def test_devices_that_cannot_share_a_batch_equally_differ_by_a_sentence():
    plan = make_plan(load_recipe("quickstart"), sentences=1000, views=2, world_size=3)
    assert (plan.share, dict(plan.table())["sentences per device"]) == (22, "22 or 21")


def test_hard_negatives_count_as_negatives():
    assert make_plan(load_recipe("quickstart"), sentences=1000, views=3, world_size=1).negatives == 63 + 64


def test_max_steps_cuts_the_epochs():
    assert make_plan(load_recipe("quickstart", ["max_steps=5"]), 1000, 2, 1).steps == 5


def test_a_chunk_is_no_larger_than_a_share():
    assert make_plan(load_recipe("quickstart"), 1000, 2, world_size=2).chunk == 32
    assert make_plan(load_recipe("quickstart", ["batch.chunk=8"]), 1000, 2, world_size=2).chunk == 8
    assert make_plan(load_recipe("quickstart", ["batch.chunk=48"]), 1000, 2, world_size=2).chunk == 32


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("linear", 0.0, {0: 1.0, 5: 0.5, 9: 0.1}),
        ("constant", 0.0, {0: 1.0, 9: 1.0}),
        ("cosine", 0.0, {0: 1.0, 5: 0.5}),
        ("linear", 0.2, {0: 1 / 3, 1: 2 / 3, 2: 1.0, 6: 0.5}),
    ],
)
def test_learning_rate(schedule, warmup, expected):
    optimizer = OptimizerRecipe(learning_rate=1.0, schedule=schedule, warmup=warmup)
    for step, rate in expected.items():
        assert learning_rate(optimizer, step, 10) == pytest.approx(rate, abs=1e-12)


def test_the_recipe_offers_the_schedules_of_the_table():
    assert get_args(Schedule) == tuple(SCHEDULES)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup", [0.0, 0.2])
def test_a_run_may_be_extended_where_its_steps_have_the_same_rates_in_a_longer_one(schedule: str, warmup: float):
    optimizer = OptimizerRecipe(learning_rate=1.0, schedule=schedule, warmup=warmup)
    rates = [[learning_rate(optimizer, step, steps) for step in range(10)] for steps in (10, 30)]
    assert optimizer.open_ended == (rates[0] == rates[1])
