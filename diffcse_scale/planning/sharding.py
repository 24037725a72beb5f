"""The settings of a DeepSpeed configuration that affect memory and communication, with DeepSpeed's defaults."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from deepspeed.runtime.config import DtypeEnum
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from diffcse_scale.engine.configuration import complete_config
from diffcse_scale.engine.optimizer import OPTIMIZERS
from diffcse_scale.engine.refusals import CALLED, checked_by_deepspeed
from diffcse_scale.planning.shape_networks import Parameter
from diffcse_scale.recipe import Recipe


@dataclass(frozen=True)
class Sharding:
    """How a model is sharded over the devices."""

    stage: int
    world_size: int
    on_cpu: bool  # the devices are processes on CPUs: they use gloo, and memory counts only after it is written
    weight_dtype: torch.dtype
    autocast: bool
    autocast_dtype: torch.dtype
    reduce_bucket: int  # elements
    overlap: bool
    max_live: int  # ZeRO-3: elements of weights that may stay gathered
    offload_optimizer: bool
    offload_weights: bool  # ZeRO-3 only
    moment_bytes: int  # optimizer state per element of a weight
    devices_per_node: int
    hpz: int  # ZeRO-3: devices that share a second copy of all weights (hpZ); 1 without it
    reuse: int  # ZeRO-3: gathered weights are kept if fewer elements than this run before their next use
    persistent: int  # ZeRO-3: a tensor with at most this many elements stays gathered
    memory_efficient_linear: bool

    @property
    def weight_bytes(self) -> int:
        """Bytes per element of a weight and of its gradient."""
        return self.weight_dtype.itemsize

    @property
    def lean_linear(self) -> bool:
        """Whether DeepSpeed's linear layers for ZeRO-3 are used, whose backward keeps no copy of the weight."""
        return self.stage == 3 and self.memory_efficient_linear

    def held(self, parameter: Parameter) -> int:
        """Bytes per element of a weight in the model. A frozen base may use fewer than trained weights."""
        return parameter.itemsize if self.weight_dtype is torch.float32 else self.weight_bytes

    def weights(self, parameters: Iterable[Parameter]) -> float:
        """Bytes of all these parameters, unsharded."""
        return float(sum(self.held(parameter) * parameter.elements for parameter in parameters))

    def travels(self, parameter: Parameter) -> int:
        """Bytes per element when a weight or its gradient is sent between devices.

        With `torch_autocast` linear layers are sent in the reduced dtype, except the gradients of stage 0 and the
        updated weights of stages 1 and 2.
        """
        reduced = self.autocast and parameter.autocast and self.stage > 0
        return self.autocast_dtype.itemsize if reduced else self.held(parameter)

    def at_stage(self, stage: int) -> Sharding:
        """The same sharding with another ZeRO stage."""
        return replace(self, stage=stage, offload_weights=self.offload_weights and stage == 3)


def read_sharding(
    config: dict[str, Any],
    recipe: Recipe,
    world_size: int,
    on_cpu: bool,
    called: str = CALLED,
    devices_per_node: int | None = None,
) -> Sharding:
    """Read a configuration from `load_deepspeed_config`. The devices need not exist on this machine.

    Args:
        devices_per_node: None if all devices are on one node.

    Raises:
        InputError: it contradicts the recipe, or DeepSpeed refuses it.
    """
    config = checked_by_deepspeed(config, called)
    for section in ("bf16", "torch_autocast"):
        if config.get(section, {}).get("enabled") == "auto":
            config[section] = {**config[section], "enabled": not on_cpu}
    half = torch.float16 if config.get("fp16", {}).get("enabled") else None
    complete_config({key: value for key, value in config.items() if key != "fp16"}, recipe, world_size)
    if config.get("bf16", {}).get("enabled"):
        half = torch.bfloat16
    zero = DeepSpeedZeroConfig(**config.get("zero_optimization", {}))
    autocast = config.get("torch_autocast", {})
    stage = int(zero.stage)
    return Sharding(
        stage=stage,
        world_size=world_size,
        on_cpu=on_cpu,
        weight_dtype=half or torch.float32,
        autocast=bool(autocast.get("enabled")),
        autocast_dtype=DtypeEnum(autocast.get("dtype", "bfloat16")).value,
        reduce_bucket=int(zero.reduce_bucket_size),
        overlap=bool(zero.overlap_comm) and not on_cpu if zero.overlap_comm is not None else False,
        max_live=int(zero.max_live_parameters),
        offload_optimizer=_offloads(zero.offload_optimizer),
        offload_weights=_offloads(zero.offload_param) and stage == 3,
        moment_bytes=OPTIMIZERS[recipe.optimizer.name].moment_bytes,
        devices_per_node=min(devices_per_node or world_size, world_size),
        hpz=max(1, min(int(zero.zero_hpz_partition_size), world_size)),
        reuse=int(zero.max_reuse_distance),
        persistent=int(zero.param_persistence_threshold),
        memory_efficient_linear=bool(zero.memory_efficient_linear),
    )


def _offloads(section: Any) -> bool:
    return section is not None and str(getattr(section.device, "value", section.device)) != "none"
