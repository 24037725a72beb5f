"""A plan: what a step needs on every device, and the largest sizes and the cheapest stage that fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from diffcse_scale.planning.communication import bytes_by_link, bytes_sent
from diffcse_scale.planning.memory import Need, device_memory
from diffcse_scale.planning.rehearsal import Rehearsal
from diffcse_scale.planning.shape_networks import Networks, load_networks
from diffcse_scale.planning.sharding import Sharding
from diffcse_scale.recipe import Recipe
from diffcse_scale.text.batches import chunk_of, share_of

# share of an accelerator's memory for its context, libraries' workspaces and fragmentation: an assumption, not measured
RESERVE = 0.08
LARGEST = 1 << 20  # sentences per device at which searches stop


@dataclass(frozen=True)
class StagePlan:
    """One ZeRO stage with the recipe's sizes."""

    stage: int
    need: Need
    sent: dict[str, float]  # bytes per device and step, by kind
    links: dict[str, float]  # the same bytes by link: within a node, between nodes
    fits: bool


class Planner:
    """Plans for one recipe on given machines. Every answer after the first is cheap.

    Args:
        budget: bytes that a device may use.
    """

    def __init__(self, recipe: Recipe, sharding: Sharding, budget: float) -> None:
        self.recipe, self.sharding, self.budget = recipe, sharding, budget
        self.share = share_of(recipe.batch, sharding.world_size)
        self.chunk = chunk_of(self.share, recipe.batch.chunk)
        self.networks: Networks = load_networks(recipe)
        self._stages: dict[int, StagePlan] = {}
        self._rehearsals: dict[tuple[bool, bool], Rehearsal] = {}

    def need(self, stage: int, share: int, chunk: int | None) -> Need:
        """Peak memory of a device."""
        chunk = chunk_of(share, chunk)
        sharding = self.sharding.at_stage(stage)
        moments = self._rehearsal(chunk is not None, sharding).moments(share, chunk)
        return device_memory(moments, self.networks, sharding)

    def stage(self, stage: int) -> StagePlan:
        """The plan of a stage with the recipe's own sizes."""
        if stage not in self._stages:
            need = self.need(stage, self.share, self.chunk)
            sizes = self.networks, self.sharding.at_stage(stage), self.recipe, self.share, self.chunk
            sent, links = bytes_sent(*sizes), bytes_by_link(*sizes)
            self._stages[stage] = StagePlan(stage, need, sent, links, need.total <= self.budget)
        return self._stages[stage]

    def cheapest(self) -> StagePlan | None:
        """The stage that sends least among those that fit; ties go to the lowest."""
        fitting = [plan for plan in map(self.stage, range(4)) if plan.fits]
        return min(fitting, key=lambda plan: sum(plan.sent.values()), default=None)

    def largest_chunk(self) -> int | None:
        """The largest chunk in sentences, with the recipe's batch; None if not even one sentence fits."""
        return _largest(lambda chunk: self._fits(self.share, chunk), self.share)

    def largest_batch(self) -> int | None:
        """The largest global batch, with the recipe's chunk; None if not even one sentence per device fits."""
        share = _largest(lambda share: self._fits(share, self.recipe.batch.chunk), LARGEST)
        return None if share is None else share * self.sharding.world_size

    def _fits(self, share: int, chunk: int | None) -> bool:
        return self.need(self.sharding.stage, share, chunk).total <= self.budget

    def _rehearsal(self, chunked: bool, sharding: Sharding) -> Rehearsal:
        """The rehearsal of the recipe's own sizes. If the recipe has no chunks, chunked ones use half a share."""
        kind = chunked, sharding.lean_linear
        if kind not in self._rehearsals:
            share, chunk = self.share, None
            if chunked:
                share = max(2, self.share)
                chunk = self.chunk if self.chunk is not None and self.chunk < share else share // 2
            # networks can be rehearsed only once
            self._rehearsals[kind] = Rehearsal(load_networks(self.recipe), self.recipe, sharding, share, chunk)
        return self._rehearsals[kind]


def _largest(fits: Callable[[int], bool], limit: int) -> int | None:
    """The largest number up to `limit` that fits, by bisection; every smaller number must fit too."""
    if not fits(1):
        return None
    low, high = 1, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def as_json(planner: Planner, budget: float) -> dict[str, Any]:
    """Everything that the tables show, in bytes.

    Args:
        budget: bytes of a device, including the reserve.
    """
    networks, own = planner.networks, planner.stage(planner.sharding.stage)
    beside = 0.0 if planner.sharding.on_cpu else budget * RESERVE
    parts = list(dict.fromkeys(parameter.part for parameter in networks.parameters))
    parameters = {part: networks.elements(part) for part in parts} | {"generator": networks.generator_elements}
    cheapest = planner.cheapest()
    return {
        "recipe": planner.recipe.name,
        "devices": planner.sharding.world_size,
        "device_bytes": budget,
        "share": planner.share,
        "chunk": planner.chunk,
        "parameters": {**parameters, "trained": networks.elements(trained=True)},
        "memory": {
            "peak": own.need.total,
            "reserved": own.need.total + beside,
            "when": own.need.when,
            "at_peak": own.need.lines,
            "largest": own.need.largest,
            "host": own.need.host,
            "parameters": parameters,
        },
        "sent_per_step": own.sent,
        "sent_by_link": own.links,
        "fits": own.fits,
        "largest_chunk": planner.largest_chunk(),
        "largest_batch": planner.largest_batch(),
        "stages": [
            {
                "stage": plan.stage,
                "peak": plan.need.total,
                "sent": sum(plan.sent.values()),
                "sent_by_link": plan.links,
                "fits": plan.fits,
            }
            for plan in map(planner.stage, range(4))
        ],
        "cheapest_stage": None if cheapest is None else cheapest.stage,
    }
