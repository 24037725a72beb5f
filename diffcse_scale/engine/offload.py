"""The host's work for offloaded optimizer state: which AdamW computes there, and on which cores."""

from __future__ import annotations

import os
from typing import Any

import torch

from diffcse_scale.distributed import broadcast_object, gather_objects
from diffcse_scale.engine.host_adamw import HostAdamW, is_faster
from diffcse_scale.engine.launch import device
from diffcse_scale.foundation.environment import host_name, threads_asked_for
from diffcse_scale.foundation.errors import InputError, quoted

DEEPSPEEDS = "zero_force_ds_cpu_optimizer"  # a key of the DeepSpeed configuration


def offloads_optimizer(config: dict[str, Any]) -> bool:
    """Whether a configuration keeps the optimizer's state in the host's memory."""
    section = config.get("zero_optimization", {}).get("offload_optimizer") or {}
    return section.get("device", "none") != "none"


def check_host_optimizer(config: dict[str, Any]) -> None:
    """Raise InputError if the configuration does not say which AdamW the host uses."""
    if config.get(DEEPSPEEDS, False) not in (True, False, "auto"):
        raise InputError(
            f'DeepSpeed configuration says {DEEPSPEEDS} = {quoted(config[DEEPSPEEDS])}; it is true, false or "auto".'
        )


def takes_deepspeeds(config: dict[str, Any], optimizer: type) -> bool:
    """Whether the host uses DeepSpeed's kernel instead of `optimizer`. Called on every rank.

    It does if the configuration says true. With "auto" all ranks measure at the same time, and the main rank's result
    decides. Otherwise nothing is compiled.
    """
    asked = config.get(DEEPSPEEDS, False)
    if not asked or not offloads_optimizer(config) or optimizer is not torch.optim.AdamW:
        return False
    return asked is True or bool(broadcast_object(is_faster()))


def describe_optimizer(engine: Any) -> str:
    """An engine's optimizer in words, for the start table."""
    name = "AdamW" if isinstance(engine.basic_optimizer, torch.optim.AdamW) else type(engine.basic_optimizer).__name__
    if engine.zero_offload_optimizer() is None:
        return name
    kernel = "DeepSpeed's kernel" if isinstance(engine.basic_optimizer, HostAdamW) else "PyTorch's kernel"
    return f"{name} on the host, {kernel}, {torch.get_num_threads()} threads per rank"


def share_cores(config: dict[str, Any]) -> None:
    """Give an offloaded optimizer the cores that this process may use, divided among the ranks with the same cores.

    Otherwise each rank would use all cores of the machine, or, under torchrun, one. OMP_NUM_THREADS takes precedence,
    unless it is the 1 that torchrun sets. Called on every rank; on CPUs nothing changes.
    """
    if not offloads_optimizer(config) or device().type == "cpu":
        return
    mine = (host_name(), sorted(os.sched_getaffinity(0)))
    ranks = gather_objects(mine).count(mine)
    torch.set_num_threads(_threads_asked_for() or max(1, len(mine[1]) // ranks))


def _threads_asked_for() -> int:
    """OMP_NUM_THREADS as set by the user; 0 if the user has not set it."""
    asked = threads_asked_for()
    return 0 if asked == 1 and "TORCHELASTIC_RUN_ID" in os.environ else asked
