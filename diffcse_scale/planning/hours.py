"""Estimates how long a step takes and what limits it: work divided by speeds. Nothing here is measured.

Peaks are from the vendors' data sheets: dense bfloat16 products, memory, NVLink in one direction, and one network card
of 400 Gbit/s (A100: 200) per device. `REACHED` is the assumed share of each peak that training reaches.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from diffcse_scale.model.arithmetic import part_flop
from diffcse_scale.planning.communication import BETWEEN_NODES, WITHIN
from diffcse_scale.planning.fit import Planner, StagePlan
from diffcse_scale.text.batches import Batch, Chunk

COMPUTE, MEMORY = "compute", "memory bandwidth"
# assumptions: shares of the peaks that training reaches
REACHED = {COMPUTE: 0.4, MEMORY: 0.7, WITHIN: 0.7, BETWEEN_NODES: 0.7}


@dataclass(frozen=True)
class Device:
    """Peaks of one device, per second."""

    flop: float
    memory: float  # bytes
    within: float  # bytes sent to devices of the same node
    between: float  # bytes sent to other nodes


DEVICES = {
    "a100": Device(312e12, 2.039e12, 300e9, 25e9),
    "h100": Device(989e12, 3.35e12, 450e9, 50e9),
    "h200": Device(989e12, 4.8e12, 450e9, 50e9),
    "b200": Device(2250e12, 8e12, 900e9, 50e9),
}


def reached_speeds(name: str, tflops: float | None = None, network_gbs: float | None = None) -> Device:
    """Assumed speeds of a device. `tflops` (1e12 per second) and `network_gbs` (1e9 bytes per second) override them."""
    peak = DEVICES[name]
    speeds = Device(
        peak.flop * REACHED[COMPUTE],
        peak.memory * REACHED[MEMORY],
        peak.within * REACHED[WITHIN],
        peak.between * REACHED[BETWEEN_NODES],
    )
    if tflops is not None:
        speeds = replace(speeds, flop=tflops * 1e12)
    return speeds if network_gbs is None else replace(speeds, between=network_gbs * 1e9)


def estimate(planner: Planner, plan: StagePlan, speeds: Device) -> dict[str, Any]:
    """Seconds of a step by cause, the largest cause, and hours of the whole run if its number of steps is known.

    A step takes as long as its longest cause if all overlap, and the sum of all causes if nothing overlaps.
    """
    seconds = {
        COMPUTE: _flop(planner) / speeds.flop,
        MEMORY: _memory_traffic(planner, plan) / speeds.memory,
        WITHIN: plan.links[WITHIN] / speeds.within,
        BETWEEN_NODES: plan.links[BETWEEN_NODES] / speeds.between,
    }
    step = {"overlapping": max(seconds.values()), "one after another": sum(seconds.values())}
    found: dict[str, Any] = {"seconds": seconds, "limit": max(seconds, key=seconds.__getitem__), "step": step}
    steps = planner.recipe.max_steps
    hours = {} if steps is None else {way: steps * taken / 3600 for way, taken in step.items()}
    devices = planner.sharding.world_size
    return {**found, "hours": hours, "device_hours": {way: devices * taken for way, taken in hours.items()}}


def _flop(planner: Planner) -> float:
    """Operations of a device per step, including everything that is computed twice."""
    recipe, networks = planner.recipe, planner.networks
    columns = recipe.data.columns
    shape = (planner.share, 3 if columns is not None and len(columns) == 3 else 2, recipe.data.max_length)
    ids = torch.ones(shape, dtype=torch.int64)
    corrupted = torch.zeros(int(ids.numel() * recipe.objective.masking_ratio), dtype=torch.int64)
    batch = Batch(0, 0, [Chunk(ids, ids, ids, corrupted, ids[..., 0])], recipe.batch.sentences)
    parts = part_flop(networks.model, networks.generator, batch)
    # recomputed layers, and the encoder's pass without a graph
    twice = [part for part in ("encoder", "discriminator") if recipe.model.gradient_checkpointing and part in parts]
    twice += ["encoder"] if planner.chunk is not None else []
    return sum(sum(flop) for flop in parts.values()) + sum(parts[part].forward for part in twice)


def _memory_traffic(planner: Planner, plan: StagePlan) -> float:
    """Bytes of memory traffic: weights read in every pass, activations written and read, the optimizer's update."""
    networks, sharding = planner.networks, planner.sharding.at_stage(plan.stage)
    chunks = -(-planner.share // planner.chunk) if planner.chunk else 1
    weights = 3 * chunks * sharding.weights(networks.parameters)
    activations = 2 * chunks * plan.need.largest.get("activations", 0.0)
    # the gradient is read; weight and moments are read and written
    updated = networks.elements(trained=True) / (sharding.world_size if sharding.stage else 1)
    return weights + activations + updated * (4 + 2 * (4 + sharding.moment_bytes))
