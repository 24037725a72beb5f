"""Weights that every rank holds whole are equal on all, bit for bit; a rank whose memory has failed is named."""

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

# by bytes of an element
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Replicas(Hook):
    """Compares weights before they are measured, and before each checkpoint."""

    def at_pause(self, trainer: Trainer) -> None:
        if trainer.due.evaluation or trainer.due.checkpoint:
            compare_replicas(trainer)


def compare_replicas(trainer: Trainer) -> None:
    """`check_replicas` of what `trainer` has now, where there are several ranks. Called on every rank."""
    if world_size() > 1:
        check_replicas(replicated(trainer), f"after step {trainer.step}")


def replicated(trainer: Trainer) -> dict[str, Tensor]:
    """Parameters and buffers of all networks, by name, but for those that ZeRO-3 has divided among the ranks."""
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
    """Whether tensors are equal on all ranks, by the sums of their bits. Called on every rank.

    Args:
        tensors: the same names, shapes and dtypes on every rank.
        when: "after step 500".

    Raises:
        RunEnded: one is not (names the first of them, the rank and its machine).
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
        if tuple(own) != usual or 2 * times <= len(found)  # of two none is right
    ]
    first = list(tensors)[differing[0]]
    raise RunEnded(
        f"The weights differ {when}: {first} is not what the other ranks have on {', '.join(odd)}; "
        "memory or a device has failed there, so exclude that machine and continue from the newest checkpoint with "
        "--auto-resume.",
        ExitCode.MISTAKE,
    )


def checksums(tensors: list[Tensor]) -> Tensor:
    """The sum of each tensor's bits, read as integers of its elements' width: int64, [tensors].

    The same as `torch.stack([tensor.view(integers).sum(dtype=torch.int64) for tensor in tensors])`. One flipped bit
    always changes it.
    """
    return torch.stack(
        [
            tensor.detach().contiguous().view(-1).view(_INTEGERS[tensor.element_size()]).sum(dtype=torch.int64)
            for tensor in tensors
        ]
    )
