"""Hours are arithmetic over speeds: by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import get_args

import pytest

from diffcse_scale.cli.recipe_commands import PlannedDevice
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.planning.command import plan as make_plan
from diffcse_scale.planning.fit import StagePlan
from diffcse_scale.planning.hours import DEVICES, Device, estimate, reached_speeds
from diffcse_scale.planning.memory import Need
from diffcse_scale.planning.shape_networks import load_networks
from diffcse_scale.planning.sharding import read_sharding
from diffcse_scale.recipe_file import load_recipe

LINKS = {"within a node": 6e6, "between nodes": 2e6}


@pytest.fixture
def planner(recipe):
    """8 sentences of 2 views and 16 tokens on each of 4 devices; without RTD."""
    simple = recipe.model_copy(
        update={"objective": recipe.objective.model_copy(update={"rtd_weight": 0.0}), "max_steps": 3600}
    )
    sharding = read_sharding({"zero_optimization": {"stage": 1}}, simple, 4, on_cpu=False, devices_per_node=2)
    return SimpleNamespace(recipe=simple, networks=load_networks(simple), sharding=sharding, share=8, chunk=None)


def test_seconds_by_hand(planner):
    plan = StagePlan(1, Need(largest={"activations": 1e6}), {}, LINKS, True)
    found = estimate(planner, plan, Device(flop=1e9, memory=1e9, within=1e6, between=1e6))
    rows, tokens, width = 16, 16 * 16, 24
    layers = 2 * (4 * width**2 + 2 * width * 48)
    projection = sum(p.elements for p in planner.networks.parameters if p.part == "projection" and p.dimensions > 1)
    attention = 2 * 4 * width * rows * 16**2
    flop = 3 * (2 * layers * tokens + attention) + 6 * rows * projection + 6 * width * 8 * 32
    assert found["seconds"]["compute"] == pytest.approx(flop / 1e9)
    elements = planner.networks.elements()
    # weights three times, activations twice, and 28 bytes of each of a quarter of the weights
    assert found["seconds"]["memory bandwidth"] == pytest.approx((12 * elements + 2e6 + 28 * elements / 4) / 1e9)
    assert (found["seconds"]["within a node"], found["seconds"]["between nodes"]) == (6, 2)
    assert found["limit"] == "within a node"
    one_after_another = sum(found["seconds"].values())
    assert found["hours"] == pytest.approx({"overlapping": 6, "one after another": one_after_another})
    assert found["device_hours"]["overlapping"] == pytest.approx(24)


def test_only_what_is_computed_twice_counts_twice(recipe_file):
    """Layers that are computed again, and the encoder in chunks; not the generator, nor any gradient."""
    lora = "model.lora={rank: 2, alpha: 4, dropout: 0.05, base: float32}"
    rows, tokens, width, speeds = 16, 16 * 16, 24, Device(flop=1e9, memory=1e9, within=1e6, between=1e6)

    def planned(again: bool, chunk: int | None) -> tuple[float, SimpleNamespace]:
        changes = ["model.dropout=0.1", lora, f"model.gradient_checkpointing={str(again).lower()}"]
        recipe = load_recipe(str(recipe_file), changes)
        sharding = read_sharding({"zero_optimization": {"stage": 1}}, recipe, 4, on_cpu=False, devices_per_node=2)
        planner = SimpleNamespace(
            recipe=recipe, networks=load_networks(recipe), sharding=sharding, share=8, chunk=chunk
        )
        found = estimate(planner, StagePlan(1, Need(), {}, LINKS, True), speeds)
        return found["seconds"]["compute"] * 1e9, planner

    plain, planner = planned(False, None)
    adapters = planner.networks.elements("encoder", trained=True)
    layers = 2 * (4 * width**2 + 2 * width * 48)
    discriminator = 2 * layers * tokens + 2 * 4 * width * rows * 16**2
    encoder = discriminator + 2 * adapters * tokens
    assert planned(True, None)[0] - plain == pytest.approx(encoder + discriminator)
    assert planned(False, 4)[0] - plain == pytest.approx(encoder)
    assert planned(True, 4)[0] - plain == pytest.approx(2 * encoder + discriminator)


def test_given_speeds_are_taken_as_they_are_and_peaks_in_part():
    speeds = reached_speeds("h100", tflops=500.0, network_gbs=20.0)
    assert (speeds.flop, speeds.between) == (500e12, 20e9)
    assert speeds.within < DEVICES["h100"].within and reached_speeds("h100").flop < DEVICES["h100"].flop


def test_the_command_offers_the_devices_whose_speeds_are_known():
    assert set(get_args(PlannedDevice)) == set(DEVICES)


def test_speeds_without_a_device_are_refused(recipe_file):
    with pytest.raises(InputError, match="name the device too, such as --device h100"):
        make_plan(str(recipe_file), None, tflops=400.0)
