"""Checks of a cluster before anything expensive begins: all requested ranks exist and have the same inputs."""

from __future__ import annotations

import logging
import os
from collections import Counter

import torch

from diffcse_scale.distributed import gather_objects, world_size
from diffcse_scale.foundation.environment import host_name
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.rendezvous import all_reduce_rate

log = logging.getLogger(__name__)

# set by the script that requested nodes x tasks from a scheduler
ASKED_FOR = "DIFFCSE_WORLD_SIZE"


def check_world() -> None:
    """Check that as many ranks were started as requested, before waiting for any of them.

    Raises:
        InputError: the numbers differ.
    """
    asked, came = os.environ.get(ASKED_FOR), os.environ.get("WORLD_SIZE", "1")
    if asked is not None and int(asked) != int(came):
        raise InputError(
            f"{asked} ranks were asked for ({ASKED_FOR}), but rank {os.environ.get('RANK', '0')} on {host_name()} is "
            f"one of {came} (WORLD_SIZE); start one task per rank, or correct the request."
        )


def check_same_everywhere(**facts: str) -> None:
    """Check that every rank has the same `facts` (short texts). Called on every rank.

    Raises:
        InputError: a rank differs (names the rank, its machine, and the majority's value).
    """
    everywhere = gather_objects((host_name(), facts))
    for name in facts:
        label = name.replace("_", " ")
        ((usual, _),) = Counter(found[name] for _, found in everywhere).most_common(1)
        odd = [
            f"rank {number} on {host} has {found[name]}"
            for number, (host, found) in enumerate(everywhere)
            if found[name] != usual
        ]
        if odd:
            raise InputError(f"The {label} must be the same on every rank: {', '.join(odd)}, the others {usual}.")


def check_interconnect(device: torch.device) -> dict[str, float]:
    """Measure and log latency and bandwidth of an all-reduce; empty for a single process. Called on every rank.

    Raises:
        InputError: the all-reduce gives a wrong sum.
    """
    if world_size() == 1:
        return {}
    rate = all_reduce_rate(device)
    log.info(
        "All-reduce over %d ranks: %.2f ms for 4 bytes, %.2f GB/s.",
        world_size(),
        rate["latency_ms"],
        rate["gigabytes_per_second"],
    )
    return rate
