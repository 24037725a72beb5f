"""Bytes that one device sends per step, with the ring algorithms that NCCL and gloo use for large messages.

What is sent, how often and in which dtype follows DeepSpeed 0.19.8. `tests/planning/test_counted_bytes.py` checks it
by counting on CPUs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from diffcse_scale.objective.sharded_info_nce import chosen
from diffcse_scale.planning.gathers import gathers, passes
from diffcse_scale.planning.shape_networks import Networks
from diffcse_scale.planning.sharding import Sharding
from diffcse_scale.recipe import Recipe

WITHIN, BETWEEN_NODES = "within a node", "between nodes"


@dataclass(frozen=True)
class _Sent:
    """Bytes that a device sends per step: in the ring of all devices, and in its ring of secondary shards (hpZ)."""

    of_all: float
    of_group: float = 0.0


def bytes_sent(
    networks: Networks, sharding: Sharding, recipe: Recipe, share: int, chunk: int | None
) -> dict[str, float]:
    """Bytes by kind: gradients, weights, embeddings. BatchNorm's statistics and counts are too small to matter."""
    return {kind: sent.of_all + sent.of_group for kind, sent in _sent(networks, sharding, recipe, share, chunk).items()}


def bytes_by_link(
    networks: Networks, sharding: Sharding, recipe: Recipe, share: int, chunk: int | None
) -> dict[str, float]:
    """The same bytes split into within and between nodes, averaged over devices.

    A ring passes through all devices of a node before it leaves the node, so only one device per node sends to
    another node. NCCL builds several rings, and each device is the last of its node in some of them.
    """
    found = _sent(networks, sharding, recipe, share, chunk).values()
    of_all, of_group = (sum(getattr(sent, ring) for sent in found) for ring in ("of_all", "of_group"))
    rings, node = ((of_all, sharding.world_size), (of_group, sharding.hpz)), sharding.devices_per_node
    leaves = sum(sent / node for sent, ranks in rings if ranks > node)
    return {WITHIN: of_all + of_group - leaves, BETWEEN_NODES: leaves}


def _sent(networks: Networks, sharding: Sharding, recipe: Recipe, share: int, chunk: int | None) -> dict[str, _Sent]:
    if sharding.world_size == 1:
        return dict.fromkeys(("gradients", "weights", "embeddings"), _Sent(0.0))
    return {
        "gradients": _gradients(networks, sharding, share, chunk),
        "weights": _weights(networks, sharding, recipe, share, chunk),
        "embeddings": _embeddings(networks, sharding, recipe, share),
    }


def _ring(ranks: int) -> float:
    """Share of a tensor that a device sends in a reduce-scatter or an all-gather. An all-reduce is both."""
    return (ranks - 1) / ranks


def _gradients(networks: Networks, sharding: Sharding, share: int, chunk: int | None) -> _Sent:
    trained = [parameter for parameter in networks.parameters if parameter.trained]
    # the extra pass that reaches every parameter is part of the first pass, which reaches these parts anyway
    first = {"discriminator", "rtd_head"} if any(p.part == "discriminator" for p in trained) else {"projection"}
    sent = 0.0
    for parameter in trained:
        times = passes(parameter.part, share, chunk) if sharding.stage >= 2 else 1
        if sharding.stage == 3 and chunk is not None and parameter.part not in first:
            times += 1
        sent += times * parameter.elements * sharding.travels(parameter)
    # stages 0 to 2 all-reduce their buckets (use_multi_rank_bucket_allreduce), stage 3 reduce-scatters
    return _Sent(sent * _ring(sharding.world_size) * (1 if sharding.stage == 3 else 2))


def _weights(networks: Networks, sharding: Sharding, recipe: Recipe, share: int, chunk: int | None) -> _Sent:
    if sharding.stage == 0:
        return _Sent(0.0)
    if sharding.stage < 3:
        # the updated weights, in the dtype in which they are held
        updated = sum(p.elements * sharding.held(p) for p in networks.parameters if p.trained)
        return _Sent(updated * _ring(sharding.world_size))
    of_all = of_group = 0.0
    found = gathers(networks, sharding, recipe, share, chunk)
    for parameter, (times, is_persistent) in zip(networks.parameters, found, strict=True):
        size = parameter.elements * (sharding.held(parameter) if is_persistent else sharding.travels(parameter))
        # after each update trained weights are gathered once from all devices; frozen weights need it never again
        across = times if sharding.hpz == 1 else min(times, 1.0) if parameter.trained else 0.0
        of_all += across * size
        of_group += (times - across) * size
    return _Sent(of_all * _ring(sharding.world_size), of_group * _ring(sharding.hpz))


def _embeddings(networks: Networks, sharding: Sharding, recipe: Recipe, share: int) -> _Sent:
    """Keys to all devices and their gradients back, in the dtype of the comparison.

    A ring sends the keys again in backward, and also sends float32 sums of their gradients once around the ring.
    """
    negatives = 2 if recipe.data.columns is not None and len(recipe.data.columns) == 3 else 1
    dtype = sharding.autocast_dtype if sharding.autocast else sharding.weight_dtype
    dtype = torch.promote_types(dtype, torch.float32) if recipe.objective.contrasts_in_float32 else dtype
    keys, others = share * negatives * networks.width, sharding.world_size - 1
    columns = share * negatives * sharding.world_size
    if chosen(recipe.batch.exchange, columns, networks.width, dtype) == "ring":
        return _Sent(keys * (2.0 * others * dtype.itemsize + 4.0 * sharding.world_size))
    return _Sent(2.0 * others * keys * dtype.itemsize)
