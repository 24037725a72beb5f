"""What a DeepSpeed configuration says about memory and communication, with DeepSpeed's own defaults."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from deepspeed.runtime.config import DtypeEnum
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from diffcse_scale.engine.configuration import complete_config
from diffcse_scale.engine.optimizer import OPTIMIZERS
from diffcse_scale.engine.refusals import CALLED, checked_by_deepspeed
from diffcse_scale.recipe import Recipe


@dataclass(frozen=True)
class Sharding:
    """How a model lies on the devices."""

    stage: int
    world_size: int
    on_cpu: bool  # the devices are processes on CPUs: gloo, and memory counts when it is touched
    weight_dtype: torch.dtype
    autocast: bool
    autocast_dtype: torch.dtype
    reduce_bucket: int  # elements
    overlap: bool
    max_live: int  # ZeRO-3: elements of weights that may stay gathered
    offload_optimizer: bool
    offload_weights: bool  # ZeRO-3 only
    moment_bytes: int  # of the optimizer's state, for each number of a weight

    @property
    def weight_bytes(self) -> int:
        """Of one number of a weight, and of its gradient."""
        return self.weight_dtype.itemsize

    def at_stage(self, stage: int) -> Sharding:
        """The same with another ZeRO stage."""
        return replace(self, stage=stage, offload_weights=self.offload_weights and stage == 3)


def read_sharding(
    config: dict[str, Any], recipe: Recipe, world_size: int, on_cpu: bool, called: str = CALLED
) -> Sharding:
    """Read a configuration as `load_deepspeed_config` returns it, for devices that need not be here.

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
    )


def _offloads(section: Any) -> bool:
    return section is not None and str(getattr(section.device, "value", section.device)) != "none"
