"""Everything that crosses ranks. No other file of the project names a collective.

Gradients do not depend on the number of ranks. Write the global objective as J = sum over ranks of J_r, where
J_r holds the terms of rank r's own rows, and let every exchange below be differentiable: the backward of a gather
*sums* over ranks. Then autograd on rank r yields dJ/d(r's copy of the parameters), the sum over ranks is the
gradient of J, and an engine that *averages* over W ranks gives it back exactly when each rank back-propagates
W * J_r. Losses therefore multiply by `world_size()` and divide by global counts.
"""

from __future__ import annotations

import os
import socket
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def _active() -> bool:
    return dist.is_available() and dist.is_initialized()


def free_port() -> int:
    """A port of this machine that nobody listens on now, for a rendezvous."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rank() -> int:
    """This process's number; 0 without a process group."""
    return dist.get_rank() if _active() else 0


def world_size() -> int:
    """Number of processes; 1 without a process group."""
    return dist.get_world_size() if _active() else 1


def local_rank() -> int:
    """This process's number on its machine, as the launcher gave it; 0 without one."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_main() -> bool:
    """True on the one rank that prints and writes."""
    return rank() == 0


def barrier() -> None:
    """Wait until every rank is here."""
    if world_size() > 1:
        dist.barrier()


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.share = rows.shape[0]
        gathered = [torch.empty_like(rows) for _ in range(world_size())]
        dist.all_gather(gathered, rows.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # the reduction runs in at least float32: W bfloat16 addends would lose what they share. gloo has no
        # reduce-scatter for every dtype, so the sum is complete everywhere and each rank keeps its own rows
        (gradient,) = gradients
        total = gradient.to(torch.promote_types(gradient.dtype, torch.float32), copy=True).contiguous()
        dist.all_reduce(total)
        first = rank() * ctx.share
        return total[first : first + ctx.share].to(gradient.dtype)


def gather_rows(rows: Tensor) -> Tensor:
    """Concatenate every rank's rows in rank order, differentiably.

    Args:
        rows: [n, ...], the same shape on every rank.

    Returns:
        [W * n, ...]; its gradient is summed over all ranks before each takes back its own rows.
    """
    return _GatherRows.apply(rows) if world_size() > 1 else rows


@torch.no_grad()
def all_sum(value: Tensor) -> Tensor:
    """Sum of `value` over all ranks, same shape and dtype, without a gradient."""
    if world_size() == 1:
        return value.detach()
    total = value.detach().clone()
    dist.all_reduce(total)
    return total


@torch.no_grad()
def all_mean(value: Tensor) -> Tensor:
    """Mean of `value` over all ranks, without a gradient."""
    return all_sum(value) / world_size()


@torch.no_grad()
def all_max(value: Tensor) -> Tensor:
    """Elementwise maximum of `value` over all ranks, without a gradient."""
    total = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total, op=dist.ReduceOp.MAX)
    return total


def broadcast_object(value: Any) -> Any:
    """Rank 0's `value` on every rank (any small picklable object)."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
