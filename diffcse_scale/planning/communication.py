"""Bytes that one device sends a step, with the ring algorithms that NCCL and gloo use for large messages."""

from __future__ import annotations

from diffcse_scale.planning.shape_networks import Networks
from diffcse_scale.planning.sharding import Sharding
from diffcse_scale.recipe import Recipe

CHUNKED_PARTS = ("encoder", "discriminator", "rtd_head")  # their backward pass is made once a chunk


def bytes_sent(
    networks: Networks, sharding: Sharding, recipe: Recipe, share: int, chunk: int | None
) -> dict[str, float]:
    """By what is sent: gradients, weights, embeddings. BatchNorm's statistics and counts are too small to matter."""
    if sharding.world_size == 1:
        return {"gradients": 0.0, "weights": 0.0, "embeddings": 0.0}
    return {
        "gradients": _gradients(networks, sharding, share, chunk),
        "weights": _weights(networks, sharding, recipe, share, chunk),
        "embeddings": _embeddings(networks, sharding, recipe, share),
    }


def _ring(sharding: Sharding) -> float:
    """The part of a tensor that a device sends in a reduce-scatter or an all-gather; an all-reduce is both."""
    return (sharding.world_size - 1) / sharding.world_size


def _passes(part: str, share: int, chunk: int | None) -> int:
    """Backward passes a step through a part."""
    return -(-share // chunk) if chunk is not None and part in CHUNKED_PARTS else 1


def _gradients(networks: Networks, sharding: Sharding, share: int, chunk: int | None) -> float:
    sent = 0.0
    for parameter in networks.parameters:
        if parameter.trained:
            width = sharding.autocast_dtype.itemsize if sharding.autocast and parameter.linear else None
            passes = _passes(parameter.part, share, chunk) if sharding.stage >= 2 else 1
            if sharding.stage == 3 and chunk is not None:
                passes += 1  # the pass that reaches every parameter, before the others
            sent += passes * parameter.elements * (width or sharding.weight_bytes)
    # stages 0 to 2 all-reduce their buckets (use_multi_rank_bucket_allreduce), stage 3 reduce-scatters
    return sent * _ring(sharding) * (1 if sharding.stage == 3 else 2)


def _weights(networks: Networks, sharding: Sharding, recipe: Recipe, share: int, chunk: int | None) -> float:
    if sharding.stage == 0:
        return 0.0
    if sharding.stage < 3:
        return networks.elements(trained=True) * sharding.weight_bytes * _ring(sharding)
    sent = 0.0
    for parameter in networks.parameters:
        # forward and backward, and forward once more where activations are computed again
        visits = 3 if recipe.model.gradient_checkpointing else 2
        gathers = visits * _passes(parameter.part, share, chunk)
        if chunk is not None:
            gathers += visits + (_passes(parameter.part, share, chunk) if parameter.part == "encoder" else 0)
        sent += gathers * parameter.elements * sharding.weight_bytes
    return sent * _ring(sharding)


def _embeddings(networks: Networks, sharding: Sharding, recipe: Recipe, share: int) -> float:
    """Keys to everybody, and the sum of their gradients, in float32."""
    negatives = 2 if recipe.data.columns is not None and len(recipe.data.columns) == 3 else 1
    width = networks.width
    keys = 4.0 * share * negatives * width
    return keys * (sharding.world_size - 1) + 2 * _ring(sharding) * keys * sharding.world_size
