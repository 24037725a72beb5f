"""What ZeRO++ adds to ZeRO-3: weights that are whole within a node too (hpZ), and quantized weights and gradients.

With `zero_hpz_partition_size` a rank keeps, from the first gather of a step until the optimizer's step, its part of the
weights among the ranks of its node, and all later gathers of the step stay within the node. DeepSpeed 0.19.8 makes the
groups of these ranks for each network that it partitions while loading, and asserts that there are none yet: a
discriminator beside the encoder ends in an AssertionError on all ranks (DeepSpeed issue 4901; pull request 8361 is
open). `groups_made_once` lets all networks have the groups of the first.
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
MAKE, MADE = "_create_zero_param_parallel_group", "_ZERO_PARAM_INTRA_PARALLEL_GROUP"  # internal names of DeepSpeed's


def ranks_within(config: Mapping[str, Any], devices: int) -> int:
    """How many of the ranks have all weights among them beside what is sharded over all; 1 where that is not asked."""
    return min(int(config.get("zero_optimization", {}).get(WITHIN) or 1), devices)


def check_zero_plus(config: Mapping[str, Any], devices: int, called: str) -> None:
    """Refuse what DeepSpeed would ignore, or find out about when the weights are there.

    Args:
        config: after DeepSpeed has read it.
        devices: among which weights are sharded.
        called: names it in messages.

    Raises:
        InputError: says what to do instead.
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
    """Raises InputError where weights or gradients are to be quantized on CPUs. Plans may be made on other machines."""
    quantized = [key for key in QUANTIZED if config.get("zero_optimization", {}).get(key)]
    if quantized and get_accelerator().device_name() == "cpu":
        raise InputError(
            f"DeepSpeed has the kernels of {quantized[0]} for GPUs only; remove it from the configuration."
        )


@contextmanager
def groups_made_once(config: Mapping[str, Any]) -> Iterator[None]:
    """Inside, all networks that DeepSpeed partitions have the same groups of ranks within nodes. Called on every rank.

    Args:
        config: complete.
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
