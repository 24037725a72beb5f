"""Simulates how long a step takes on many devices, with assumptions that can be changed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.model.arithmetic import part_flop
from diffcse_scale.planning.communication import bytes_sent
from diffcse_scale.planning.gathers import gathers
from diffcse_scale.planning.network import Link, Network
from diffcse_scale.planning.shape_networks import Networks
from diffcse_scale.planning.sharding import Sharding
from diffcse_scale.planning.step_model import Device, Part, StepTime, Ways, Work, simulate
from diffcse_scale.recipe import Recipe
from diffcse_scale.recipe_file import explained
from diffcse_scale.text.batches import Batch, Chunk, chunk_of

NODES = (1, 8, 32, 128, 512)
LINEAR_LAYER = 5e7  # weights in the largest linear layers of an 8B model; also DeepSpeed's bucket for gathers


class Assumptions(BaseModel):
    """Assumed values, not measured ones. docs/scaling.md gives the source of each."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    tflops: float = Field(989.0, gt=0, description="10^12 operations a second at a device's peak")
    efficiency: float = Field(0.4, gt=0, le=1, description="the part of the peak that a step reaches by itself")
    memory_gb: float = Field(3350.0, gt=0, description="10^9 bytes a second of a device's memory")
    within_gb: float = Field(450.0, gt=0, description="10^9 bytes a second that a device sends within its node")
    within_us: float = Field(3.0, ge=0, description="microseconds a hop within a node")
    between_gb: float = Field(50.0, gt=0, description="10^9 bytes a second of a device's port out of its node")
    between_us: float = Field(10.0, ge=0, description="microseconds a hop between nodes")
    update_bytes: float = Field(28.0, ge=0, description="bytes that an update of one weight reads and writes")
    batch_us: float = Field(0.04, ge=0, description="microseconds of a host for each sentence of the global batch")
    flags_ms: float = Field(0.042, ge=0, description="milliseconds a step for flags that are exchanged once a second")

    @classmethod
    def changed(cls, changes: Iterable[str]) -> Assumptions:
        """The default assumptions with changes of the form `name=value`.

        Raises:
            InputError: a name is unknown or a value is not allowed.
        """
        try:
            return cls.model_validate(dict(change.partition("=")[::2] for change in changes))
        except ValidationError as error:
            raise InputError(f"--assume: {explained(error, cls)}.") from None

    def network(self, devices: int, per_node: int) -> Network:
        """The network of `devices` devices."""
        within = Link(self.within_us * 1e-6, self.within_gb * 1e9)
        return Network(devices, per_node, within, Link(self.between_us * 1e-6, self.between_gb * 1e9))

    @property
    def device(self) -> Device:
        """The speeds of a device and its host."""
        rate, memory = self.tflops * 1e12 * self.efficiency, self.memory_gb * 1e9
        return Device(rate, memory, self.update_bytes, self.batch_us * 1e-6, self.flags_ms * 1e-3)


def read_ways(config: dict[str, Any]) -> Ways:
    """Read from a DeepSpeed configuration how weights and gradients are communicated."""
    section = config.get("zero_optimization", {})
    zero = DeepSpeedZeroConfig(**section)
    bucket = float(zero.reduce_bucket_size)
    if zero.stage == 3:
        # without leaf modules weights are gathered separately for each linear layer
        most = float(zero.prefetch_bucket_size)
        bucket = most if section.get("leaf_module") else min(most, LINEAR_LAYER)
    return Ways(
        overlap=bool(zero.overlap_comm),
        bucket=bucket,
        gathered=float(zero.allgather_bucket_size),
        ahead=float(zero.max_live_parameters),
        group=int(zero.zero_hpz_partition_size),
        quantized=bool(zero.zero_quantized_weights),
    )


@dataclass(frozen=True)
class Point:
    """A simulated step on `devices` devices."""

    devices: int
    share: int
    chunk: int | None
    step: StepTime

    def as_json(self) -> dict[str, Any]:
        """The point as JSON, in seconds and bytes."""
        found = {"devices": self.devices, "share": self.share, "chunk": self.chunk, **asdict(self.step)}
        return {**found, "efficiency": self.step.efficiency, "limit": self.step.limit}


class Scaling:
    """Simulations for one recipe and sharding, on nodes of `per_node` devices."""

    def __init__(
        self,
        recipe: Recipe,
        sharding: Sharding,
        networks: Networks,
        per_node: int,
        assumptions: Assumptions,
        ways: Ways,
    ) -> None:
        self.recipe, self.sharding, self.networks = recipe, sharding, networks
        self.per_node, self.assumptions, self.ways = per_node, assumptions, ways

    def point(self, devices: int, share: int) -> Point:
        """Simulate a step on `devices` devices with `share` sentences each."""
        chunk = chunk_of(share, self.recipe.batch.chunk)
        work = self.work(devices, share, chunk)
        network = self.assumptions.network(devices, self.per_node)
        return Point(devices, share, chunk, simulate(work, network, self.assumptions.device, self.ways))

    def weak(self, share: int) -> list[Point]:
        """Weak scaling: the same number of sentences per device on every number of devices."""
        return [self.point(nodes * self.per_node, share) for nodes in NODES]

    def strong(self, sentences: int) -> list[Point]:
        """Strong scaling: the same number of sentences in total, while each device has at least one."""
        devices = [nodes * self.per_node for nodes in NODES]
        return [self.point(number, -(-sentences // number)) for number in devices if sentences >= number]

    def work(self, devices: int, share: int, chunk: int | None) -> Work:
        """The work of a device, and the bytes that it sends according to `communication`."""
        networks, recipe = self.networks, self.recipe
        flop = part_flop(networks.model, networks.generator, _batch(recipe, share, devices))
        # the simulation itself decides which gathers stay within an hpZ group
        sharding = replace(self.sharding, world_size=devices, hpz=1)
        sent = bytes_sent(networks, sharding, recipe, share, chunk)
        visits = gathers(networks, sharding, recipe, share, chunk)

        def part(*names: str) -> Part:
            sizes = [sum(networks.elements(name, trained) for name in names) for trained in (None, True)]
            gathered = sum(
                times * parameter.elements
                for parameter, (times, _) in zip(networks.parameters, visits, strict=True)
                if parameter.part in names
            )
            return Part(float(sizes[0]), float(sizes[1]), flop[names[0]], max(1, round(gathered / max(sizes[0], 1))))

        return Work(
            encoder=part("encoder"),
            projection=part("projection"),
            discriminator=part("discriminator", "rtd_head") if "discriminator" in flop else None,
            generator=flop["generator"].forward if "generator" in flop else 0.0,
            loss=flop["loss"],
            stage=self.sharding.stage,
            chunks=1 if chunk is None else -(-share // chunk),
            recomputes=recipe.model.gradient_checkpointing,
            sentences=share * devices,
            keys=float(share * (_views(recipe) - 1) * networks.width),
            width=networks.width,
            sent=sent,
        )


def _views(recipe: Recipe) -> int:
    return 3 if recipe.data.columns is not None and len(recipe.data.columns) == 3 else 2


def _batch(recipe: Recipe, share: int, devices: int) -> Batch:
    """A batch of sentences of the recipe's maximum length, with only the fields that operation counts need."""
    mask = torch.ones(share, _views(recipe), recipe.data.max_length, dtype=torch.int64)
    corrupted = torch.zeros(int(mask.numel() * recipe.objective.masking_ratio), dtype=torch.int64)
    return Batch(0, 0, [Chunk(mask, mask, mask, corrupted, mask)], share * devices)
