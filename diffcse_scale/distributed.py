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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F


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


@contextmanager
def imagined_ranks(count: int) -> Iterator[None]:
    """Inside, this process is rank 0 of `count`, and what it exchanges with the others has the right shape only.

    For planning on tensors without numbers; a process group must not exist yet.
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore  # its import registers the backend "fake"

    dist.init_process_group("fake", rank=0, world_size=count, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


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


def row_counts(rows: Tensor) -> list[int]:
    """Every rank's number of rows, in rank order. Waits for the device."""
    counts = torch.zeros(world_size(), dtype=torch.int64, device=rows.device)
    counts[rank()] = len(rows)
    return all_sum(counts).tolist()


def gather_rows(rows: Tensor, shares: Sequence[int] | None = None) -> Tensor:
    """Concatenate every rank's rows in rank order, differentiably.

    Args:
        rows: [n, ...], the same shape on every rank but for the `n` that `shares` gives.
        shares: every rank's `n` (`row_counts`); None where all are equal.

    Returns:
        [sum of n, ...]; its gradient is summed over all ranks before each takes back its own rows.
    """
    if world_size() == 1:
        return rows
    if shares is None or len(set(shares)) == 1:
        return _GatherRows.apply(rows)
    # collectives want equal shapes: the shorter shares travel with zeros below them
    largest = max(shares)
    padded = F.pad(rows, (*(0, 0) * (rows.dim() - 1), 0, largest - len(rows)))
    blocks = _GatherRows.apply(padded).split(largest)
    return torch.cat([block[:share] for block, share in zip(blocks, shares, strict=True)])


class _Transfer(NamedTuple):
    """A block on its way to the next rank, held until it is there, and the previous rank's on its way to this one."""

    leaving: Tensor
    arriving: Tensor
    requests: list[dist.Work]

    def wait(self) -> Tensor:
        for request in self.requests:
            request.wait()
        return self.arriving


def _pass_on(block: Tensor, into: Tensor) -> _Transfer:
    """Start to send `block` to the next rank and to receive the previous rank's; neither may be touched meanwhile."""
    following, previous = (rank() + 1) % world_size(), (rank() - 1) % world_size()
    operations = [dist.P2POp(dist.isend, block, following), dist.P2POp(dist.irecv, into, previous)]
    # nothing is sent for an empty block: both of its ends know that it is
    operations = [operation for operation in operations if operation.tensor.numel()]
    return _Transfer(block, into, dist.batch_isend_irecv(operations) if operations else [])


def ring(block: Tensor, shares: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
    """Every rank's block in turn, with its owner, this rank's own first; the next travels during the loop's body.

    At most two blocks are held beside the own one. They are used again: a block lasts until the loop goes on.

    Args:
        block: [n, ...], the same shape on every rank but for the `n` that `shares` gives.
        shares: every rank's `n`.
    """
    block = block.contiguous()
    last = world_size() - 1
    buffers = [block.new_empty(max(shares), *block.shape[1:]) for _ in range(min(2, last))]
    for step in range(last):
        owner = (rank() - step) % world_size()
        transfer = _pass_on(block, buffers[step % 2][: shares[owner - 1]])
        yield owner, block
        block = transfer.wait()
    yield (rank() - last) % world_size(), block


class RingSum:
    """A sum over ranks for every block of `ring`, which travels behind it and ends at the block's owner."""

    def __init__(self, shares: Sequence[int]) -> None:
        self._shares = shares
        self._owner = rank()
        self._transfer: _Transfer | None = None

    def add(self, part: Tensor) -> None:
        """Add this rank's part for the block in hand, [n of its owner, ...], contiguous; `part` is used up."""
        if self._transfer is not None:
            part += self._transfer.wait()
        self._owner = (self._owner - 1) % world_size()
        if world_size() == 1:
            self._transfer = _Transfer(part, part, [])
        else:
            self._transfer = _pass_on(part, part.new_empty(self._shares[self._owner], *part.shape[1:]))

    def total(self) -> Tensor:
        """The sum for this rank's own block, when every block has been round."""
        assert self._transfer is not None
        return self._transfer.wait()


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
