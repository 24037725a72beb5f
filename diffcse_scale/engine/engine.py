"""The DeepSpeed engine: made around a model, its step, and what differs by ZeRO stage."""

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
    """Inside, ZeRO-3 partitions what `from_pretrained` loads, layer by layer: no rank ever holds a whole model.

    At other stages nothing changes. An official checkpoint is loaded over whole weights: those are small models.

    Args:
        config: complete.

    Raises:
        InputError: weights or gradients are to be quantized on CPUs.
    """
    check_kernels(config)
    if config.get("zero_optimization", {}).get("stage") != 3 or recipe.model.checkpoint is not None:
        yield
        return
    handle = HfDeepSpeedConfig(config)  # transformers holds it weakly
    try:
        with freed_blocks_returned(), groups_made_once(config):
            yield
    finally:
        unset_hf_deepspeed_config()
        del handle


def initialize(model: nn.Module, recipe: Recipe, config: dict[str, Any]) -> Any:
    """The DeepSpeed engine around `model`; `config` is complete.

    Raises:
        InputError: DeepSpeed refuses the configuration.
    """
    parameter: Any  # DeepSpeed adds attributes to those that it partitions
    for parameter in model.parameters():
        # a base that is held in fewer bits: a parameter that ZeRO-3 has partitioned changes its dtype without its part
        if hasattr(parameter, "ds_tensor") and parameter.ds_tensor.dtype != parameter.dtype:
            parameter.ds_tensor.data = parameter.ds_tensor.data.to(parameter.dtype)
            parameter.ds_secondary_tensor = None  # hpZ makes it again from the whole
    share_cores(config)
    kind, untested = OPTIMIZERS[recipe.optimizer.name].kind, {}
    if takes_deepspeeds(config, kind):
        kind, untested = HostAdamW, {"zero_allow_untested_optimizer": True}
    config = {**config, DEEPSPEEDS: False, **untested}  # DeepSpeed knows its own by its class
    with refusals_explained():
        engine, *_ = deepspeed.initialize(
            model=model, optimizer=make_optimizer(model, recipe, kind), config=config, dist_init_required=False
        )
    if engine.zero_optimization_stage() == 0 and world_size() == 1:
        engine.enable_backward_allreduce = False  # it would copy all gradients twice to average them with nobody's
    move_buffers(engine.module, engine.device)
    return engine


def precision_of(engine: Any) -> AbstractContextManager[None]:
    """Inside, the engine's module may be called without it, and computes in the precision in which the engine would.

    No hook of the engine then acts on what is back-propagated. Parameters must be whole.
    """
    return autocast_if_enabled(engine)


def move_buffers(module: nn.Module, device: torch.device) -> None:
    """Bring all buffers to a device. DeepSpeed moves no module of which ZeRO-3 has loaded a part."""
    for part in module.modules():
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, buffer.to(device))


class StepTaken(NamedTuple):
    """Whether a step was applied, and the norm of its gradient.

    Attributes:
        norm: of the averaged gradient before clipping, where the engine has it: reading a tensor waits for the device;
            NaN if the engine does not tell.
        applied: False where the gradient was not finite and the weights stayed as they were.
    """

    norm: float | Tensor
    applied: bool


def optimizer_step(engine: Any) -> StepTaken:
    """Take the engine's step, unless the gradient is not finite.

    ZeRO-1 to 3 look at the norm themselves and skip such a step. At stage 0 the engine clips without telling the norm,
    and would apply it.
    """
    norm: float | None = None
    if engine.zero_optimization_stage() == 0:
        trained = [p for p in engine.module.parameters() if p.grad is not None]
        scaler = engine.torch_autocast_z0_gradscaler
        total = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
        norm = float(total) / (scaler.get_scale() if scaler else 1.0)
        if not scaler and not math.isfinite(norm):  # a gradient scaler skips for itself
            engine.zero_grad()
            return StepTaken(norm, False)
    engine.step()
    reported = engine.get_global_grad_norm()
    known = next((value for value in (reported, norm) if value is not None), float("nan"))
    return StepTaken(known, engine.was_step_applied())


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """`module`'s state dict on the main rank, also where ZeRO-3 has partitioned it; nothing on the others.

    Called on every rank.
    """
    return gathered(module.state_dict(keep_vars=True), 0)


def gathered(values: Mapping[str, Tensor], owner: int) -> dict[str, Tensor]:
    """`values`, of which ZeRO-3 may have partitioned some, whole in the memory of the rank `owner`'s host.

    Called on every rank. One parameter at a time is gathered, so that only that rank comes to hold them all; the others
    get nothing.
    """
    whole = {}
    for name, value in values.items():
        with deepspeed.zero.GatheredParameters([value]):  # does nothing to what is not partitioned
            if rank() == owner:
                whole[name] = value.detach().cpu()
    return whole
