"""The DeepSpeed engine: its creation around a model, its step, and differences between ZeRO stages."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import deepspeed
import deepspeed.ops
import torch
from deepspeed.runtime.torch_autocast import autocast_if_enabled
from torch import Tensor, nn
from transformers.integrations import HfDeepSpeedConfig, unset_hf_deepspeed_config

from diffcse_scale.distributed import rank, world_size
from diffcse_scale.engine.host_adamw import HostAdamW
from diffcse_scale.engine.offload import DEEPSPEEDS, share_cores, takes_deepspeeds
from diffcse_scale.engine.optimizer import OPTIMIZERS, make_optimizer
from diffcse_scale.engine.refusals import refusals_explained
from diffcse_scale.engine.zero_plus import check_kernels, groups_made_once
from diffcse_scale.foundation.host_memory import freed_blocks_returned
from diffcse_scale.recipe import Recipe


@contextmanager
def partitioned_loading(config: dict[str, Any], recipe: Recipe) -> Iterator[None]:
    """Inside, ZeRO-3 partitions what `from_pretrained` loads layer by layer, so that no rank ever holds a whole model.

    At other stages nothing changes. It does not apply to official checkpoints either: they are small models, and are
    loaded into whole weights.

    Args:
        config: a completed configuration.

    Raises:
        InputError: quantized weights or gradients are requested on CPUs.
    """
    check_kernels(config)
    if config.get("zero_optimization", {}).get("stage") != 3 or recipe.model.checkpoint is not None:
        yield
        return
    handle = HfDeepSpeedConfig(config)  # transformers has only a weak reference to it
    try:
        with freed_blocks_returned(), groups_made_once(config):
            yield
    finally:
        unset_hf_deepspeed_config()
        del handle


def loading_device(config: dict[str, Any], recipe: Recipe, device: torch.device) -> torch.device:
    """Where networks are loaded: on this rank's device, or on the CPU if the engine changes them before it moves them.

    On the device, a file in bfloat16 becomes float32 there, and not once for every rank in the memory of the node.
    ZeRO-3 loads on the CPU and keeps parts. An engine in float16 or bfloat16 casts first: in float32 the device could
    lack room for what it can train.

    Args:
        config: a completed configuration.
    """
    casts = any(config.get(section, {}).get("enabled") for section in ("fp16", "bf16"))
    partitions = config.get("zero_optimization", {}).get("stage") == 3
    is_quantized = recipe.model.lora is not None and recipe.model.lora.base == "nf4"  # only on a device
    return device if is_quantized or not (casts or partitions) else torch.device("cpu")


def initialize(model: nn.Module, recipe: Recipe, config: dict[str, Any]) -> Any:
    """Create the DeepSpeed engine around `model`; `config` is a completed configuration.

    Raises:
        InputError: DeepSpeed refuses the configuration.
    """
    parameter: Any  # DeepSpeed adds attributes to parameters that it partitions
    for parameter in model.parameters():
        # a base with fewer bits: changing the dtype of a parameter that ZeRO-3 has partitioned does not change its part
        if hasattr(parameter, "ds_tensor") and parameter.ds_tensor.dtype != parameter.dtype:
            parameter.ds_tensor.data = parameter.ds_tensor.data.to(parameter.dtype)
            parameter.ds_secondary_tensor = None  # hpZ makes it again from the whole parameter
    share_cores(config)
    kind, untested = OPTIMIZERS[recipe.optimizer.name].kind, {}
    if takes_deepspeeds(config, kind):
        kind, untested = HostAdamW, {"zero_allow_untested_optimizer": True}
    config = {**config, DEEPSPEEDS: False, **untested}  # if true, DeepSpeed would insist on its own optimizer class
    with refusals_explained():
        engine, *_ = deepspeed.initialize(
            model=model, optimizer=make_optimizer(model, recipe, kind), config=config, dist_init_required=False
        )
    if engine.zero_optimization_stage() == 0 and world_size() == 1:
        engine.enable_backward_allreduce = False  # it would copy all gradients twice although there is no other rank
    move_buffers(engine.module, engine.device)
    return engine


def precision_of(engine: Any) -> AbstractContextManager[None]:
    """Inside, the engine's module may be called directly, and computes in the engine's precision.

    The engine's hooks do not act on the backward pass then. Parameters must be whole.
    """
    return autocast_if_enabled(engine)


def move_buffers(module: nn.Module, device: torch.device) -> None:
    """Move all buffers to a device, because DeepSpeed does not move a module that ZeRO-3 has partly loaded."""
    for part in module.modules():
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, buffer.to(device))


class StepTaken(NamedTuple):
    """Whether a step was applied, and the norm of its gradient.

    Attributes:
        norm: norm of the averaged gradient before clipping. If it is a tensor, it is on the engine's device, and
            reading it waits for the device. NaN if the engine does not report it.
        applied: False if the gradient was not finite and the weights were not changed.
    """

    norm: float | Tensor
    applied: bool


def optimizer_step(engine: Any) -> StepTaken:
    """Take the engine's step, unless the gradient is not finite.

    ZeRO-1 to 3 check the norm themselves and skip such a step. At stage 0 the engine clips without reporting the norm,
    and would apply the step.
    """
    norm: float | None = None
    if engine.zero_optimization_stage() == 0:
        trained = [p for p in engine.module.parameters() if p.grad is not None]
        scaler = engine.torch_autocast_z0_gradscaler
        total = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
        norm = float(total) / (scaler.get_scale() if scaler else 1.0)
        if not scaler and not math.isfinite(norm):  # a gradient scaler skips such steps itself
            engine.zero_grad()
            return StepTaken(norm, False)
    engine.step()
    reported = engine.get_global_grad_norm()
    known = next((value for value in (reported, norm) if value is not None), float("nan"))
    return StepTaken(known, engine.was_step_applied())


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """`module`'s whole state dict on the main rank, even if ZeRO-3 has partitioned it; empty on the other ranks.

    Called on every rank.
    """
    return gathered(module.state_dict(keep_vars=True), 0)


def gathered(values: Mapping[str, Tensor], owner: int) -> dict[str, Tensor]:
    """Gather `values`, some of which ZeRO-3 may have partitioned, in host memory of the rank `owner`.

    Called on every rank. One parameter is gathered at a time, so that only `owner` holds them all. The other ranks get
    an empty result.
    """
    whole = {}
    for name, value in values.items():
        with deepspeed.zero.GatheredParameters([value]):  # no effect on tensors that are not partitioned
            if rank() == owner:
                whole[name] = value.detach().cpu()
    return whole
