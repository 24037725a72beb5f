"""ZeRO++ on top of ZeRO-3: a second copy of the weights within each node (hpZ), and quantized weights and gradients.

With `zero_hpz_partition_size` the ranks of a node share a whole copy of the weights. Each rank keeps its part of this
copy from the first gather of a step until the optimizer's step. All later gathers of the step stay within the node.
DeepSpeed 0.19.8 creates the groups of these ranks again for each network that it partitions while loading, and asserts
that there are none yet. So a discriminator beside the encoder ends in an AssertionError on all ranks (DeepSpeed issue
4901; pull request 8361 is open). `groups_made_once` lets all networks use the groups of the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import deepspeed
from deepspeed.accelerator import get_accelerator
from deepspeed.utils import groups

from diffcse_scale.distributed import world_size
from diffcse_scale.foundation.errors import InputError

WITHIN = "zero_hpz_partition_size"
QUANTIZED = ("zero_quantized_weights", "zero_quantized_nontrainable_weights", "zero_quantized_gradients")
MAKE, MADE = "_create_zero_param_parallel_group", "_ZERO_PARAM_INTRA_PARALLEL_GROUP"  # internal names in DeepSpeed


def ranks_within(config: Mapping[str, Any], devices: int) -> int:
    """How many ranks share a second whole copy of the weights (hpZ); 1 if it is not requested."""
    return min(int(config.get("zero_optimization", {}).get(WITHIN) or 1), devices)


def check_zero_plus(config: Mapping[str, Any], devices: int, called: str) -> None:
    """Refuse what DeepSpeed would ignore, or would refuse only after loading the weights.

    Args:
        config: the configuration after DeepSpeed has read it.
        devices: number of devices that share the weights.
        called: the configuration's name in messages.

    Raises:
        InputError: the message says what to do instead.
    """
    zero = config.get("zero_optimization", {})
    stage, within = zero.get("stage", 0), ranks_within(config, devices)
    quantized = [key for key in QUANTIZED if zero.get(key)]
    asked = [WITHIN] * (int(zero.get(WITHIN) or 1) > 1) + quantized
    if asked and stage != 3:
        raise InputError(
            f"{called}: {asked[0]} does nothing at ZeRO stage {stage}, which shards no weights; remove it, or "
            "set the stage to 3."
        )
    if devices % within:
        raise InputError(
            f"{called}: {WITHIN} = {within} does not divide the {devices} devices; set it to the number of devices "
            "of a node, which must be the same for all nodes."
        )
    if within > 1 and not (hasattr(groups, MAKE) and hasattr(groups, MADE)):
        raise InputError(
            f"{called}: {WITHIN} needs groups of ranks that DeepSpeed {deepspeed.__version__} makes in a way that is "
            "not known here; remove it, or install DeepSpeed 0.19.8."
        )
    if "zero_quantized_weights" in quantized and config.get("torch_autocast", {}).get("enabled"):
        raise InputError(f"{called}: zero_quantized_weights cannot be used with torch_autocast; remove one of them.")


def check_kernels(config: Mapping[str, Any]) -> None:
    """Raise InputError for quantized weights or gradients on CPUs. Plans skip this: they may be for other machines."""
    quantized = [key for key in QUANTIZED if config.get("zero_optimization", {}).get(key)]
    if quantized and get_accelerator().device_name() == "cpu":
        raise InputError(
            f"DeepSpeed has the kernels of {quantized[0]} for GPUs only; remove it from the configuration."
        )


@contextmanager
def groups_made_once(config: Mapping[str, Any]) -> Iterator[None]:
    """Inside, all networks that DeepSpeed partitions use the same groups of ranks in a node. Called on every rank.

    Args:
        config: a completed configuration.
    """
    if ranks_within(config, world_size()) == 1:
        yield
        return
    make = getattr(groups, MAKE)

    def make_once(size: int) -> None:
        if getattr(groups, MADE) is None:
            make(size)

    setattr(groups, MAKE, make_once)
    try:
        yield
    finally:
        setattr(groups, MAKE, make)
