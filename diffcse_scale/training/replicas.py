"""Checks that replicated weights are equal on all ranks, bit for bit, and names a rank whose memory has failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffcse_scale.distributed import all_max, gather_objects, world_size
from diffcse_scale.foundation.environment import host_name
from diffcse_scale.foundation.errors import RunEnded
from diffcse_scale.foundation.exit_codes import ExitCode
from diffcse_scale.training.hook import Hook

if TYPE_CHECKING:
    from diffcse_scale.training.trainer import Trainer

# by the bytes of an element
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Replicas(Hook):
    """Compares the weights before each evaluation and each checkpoint."""

    def at_pause(self, trainer: Trainer) -> None:
        if trainer.due.evaluation or trainer.due.checkpoint:
            compare_replicas(trainer)


def compare_replicas(trainer: Trainer) -> None:
    """Run `check_replicas` on the current weights of `trainer`, if there are several ranks. Called on every rank."""
    if world_size() > 1:
        check_replicas(replicated(trainer), f"after step {trainer.step}")


def replicated(trainer: Trainer) -> dict[str, Tensor]:
    """Parameters and buffers of all networks by name, without those that ZeRO-3 has partitioned."""
    networks = {"": trainer.model}
    if trainer.generator is not None:
        networks["generator."] = trainer.generator.model
    return {
        prefix + name: tensor
        for prefix, network in networks.items()
        for name, tensor in (*network.named_parameters(), *network.named_buffers())
        if not hasattr(tensor, "ds_id")
    }


def check_replicas(tensors: Mapping[str, Tensor], when: str) -> None:
    """Check by checksums that tensors are equal on all ranks. Called on every rank.

    Args:
        tensors: the same names, shapes and dtypes on every rank.
        when: for the message, such as "after step 500".

    Raises:
        RunEnded: a tensor differs; the message names the first one, the rank and its machine.
    """
    if not tensors:
        return
    sums = checksums(list(tensors.values()))
    highest, lowest = all_max(torch.stack([sums, -sums]))
    differing = (highest != -lowest).nonzero()[:, 0].tolist()
    if not differing:
        return
    found = gather_objects((host_name(), sums[differing].tolist()))
    ((usual, times),) = Counter(tuple(own) for _, own in found).most_common(1)
    odd = [
        f"rank {number} on {host}"
        for number, (host, own) in enumerate(found)
        if tuple(own) != usual or 2 * times <= len(found)  # without a majority every rank is suspect
    ]
    first = list(tensors)[differing[0]]
    raise RunEnded(
        f"The weights differ {when}: {first} is not what the other ranks have on {', '.join(odd)}; "
        "memory or a device has failed there, so exclude that machine and continue from the newest checkpoint with "
        "--auto-resume.",
        ExitCode.MISTAKE,
    )


def checksums(tensors: list[Tensor]) -> Tensor:
    """A checksum of each tensor: the sum of its elements' bits, read as integers of the same width; int64, [tensors].

    Equals `torch.stack([tensor.view(integers).sum(dtype=torch.int64) for tensor in tensors])`. A single flipped bit
    always changes the checksum.
    """
    return torch.stack(
        [
            tensor.detach().contiguous().view(-1).view(_INTEGERS[tensor.element_size()]).sum(dtype=torch.int64)
            for tensor in tensors
        ]
    )
