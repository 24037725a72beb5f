"""Communication between ranks. No other file of this package names a collective.

Gradients do not depend on the number of ranks. Write the global objective as J = sum over ranks of J_r, where J_r
holds the terms of rank r's own rows. Every exchange below is differentiable: the backward of a gather *sums* over
ranks. Autograd on rank r therefore yields dJ/d(r's copy of the parameters), and the sum over ranks is the gradient
of J. An engine that *averages* over W ranks returns exactly this gradient if each rank back-propagates W * J_r.
Losses therefore multiply by the world size and divide by global counts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache, partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

__all__ = ["PROCESS_GROUP", "Ranks", "all_mean", "gather_objects", "is_main", "rank", "world_size"]


def _active() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's rank; 0 without a process group.

    Example:
        >>> from diffcse_scale.distributed import rank
        >>> rank()
        0
    """
    return dist.get_rank() if _active() else 0


def world_size() -> int:
    """Number of processes; 1 without a process group.

    Example:
        >>> from diffcse_scale.distributed import world_size
        >>> world_size()
        1
    """
    return dist.get_world_size() if _active() else 1


# holds the launcher's LOCAL_RANK if LOCAL_RANK itself had to be overwritten with a device number
LAUNCHERS_NUMBER = "DIFFCSE_LOCAL_RANK"


def local_rank() -> int:
    """This process's rank on its machine, as set by the launcher; 0 without a launcher."""
    return int(os.environ.get(LAUNCHERS_NUMBER, os.environ.get("LOCAL_RANK", "0")))


def is_main() -> bool:
    """True on the one rank that prints and writes.

    Example:
        >>> from diffcse_scale.distributed import is_main
        >>> is_main()
        True
    """
    return rank() == 0


def collectives() -> list[tuple[Any, str]]:
    """Module and name of each collective that ranks exchange through. Used to time them, whoever calls them."""
    names = ["all_gather", "all_gather_into_tensor", "all_gather_single", "all_reduce", "all_to_all_single", "barrier"]
    names += ["broadcast", "reduce", "reduce_scatter", "reduce_scatter_single", "reduce_scatter_tensor"]
    return [(dist, name) for name in names if hasattr(dist, name)]


def barrier() -> None:
    """Wait until every rank is here. The timeout is the longest, because one of them may write to a slow disk."""
    if world_size() > 1:
        dist.barrier(group=_control())


@contextmanager
def imagined_ranks(count: int) -> Iterator[None]:
    """Inside, this process is rank 0 of `count`. Exchanged tensors have the right shape but arbitrary values.

    Used for planning on tensors without data. A process group must not exist yet.
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore  # its import registers the backend "fake"

    dist.init_process_group("fake", rank=0, world_size=count, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


class Transfer(NamedTuple):
    """A block on its way to the next rank, and the previous rank's block on its way here. Both are kept alive."""

    leaving: Tensor
    arriving: Tensor
    requests: list[dist.Work]

    def wait(self) -> Tensor:
        """The block that arrives, after both transfers have finished."""
        for request in self.requests:
            request.wait()
        return self.arriving


_due: list[Callable[[], object]] = []


def before_next_exchange(call: Callable[[], object]) -> None:
    """Register `call` to run once, just before losses or BatchNorm next exchange with other ranks."""
    _due[:] = [call]


def _exchanging() -> None:
    if _due:
        _due.pop()()


class Ranks:
    """All ranks, seen from one of them. Losses and BatchNorm receive this object and exchange through it.

    This class asks the process group on every call, so networks may be built before the group exists. Tests pass
    another implementation, whose ranks live in one process.

    Args:
        group: some of the ranks, in rank order; None for all.

    Example:
        >>> from diffcse_scale.distributed import PROCESS_GROUP, Ranks
        >>> isinstance(PROCESS_GROUP, Ranks), PROCESS_GROUP.world_size
        (True, 1)
    """

    _per_node = 1
    _levels: Levels | None = None

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self._group = group

    @property
    def rank(self) -> int:
        """This rank's number."""
        return dist.get_rank(self._group) if _active() else 0

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return dist.get_world_size(self._group) if _active() else 1

    def lie_on_nodes(self, per_node: int) -> None:
        """Say that each node has `per_node` consecutive ranks; 1: the nodes differ, or there is only one."""
        self._per_node, self._levels = per_node, None

    @property
    def levels(self) -> Levels | None:
        """Groups for an exchange in two levels, or None. The first call makes them, so every rank must make it."""
        if self._levels is None and (count := self._per_node) > 1:
            number, ranks = self.rank % count, list(range(self.world_size))
            # each rank makes only its own groups, in the same order, so none of them waits for all ranks
            make = partial(dist.new_group, timeout=CONTROL_PATIENCE, use_local_synchronization=True)
            within, across = ranks[self.rank - number :][:count], ranks[number::count]
            self._levels = Levels(Ranks(make(within)), Ranks(make(across)))
        return self._levels

    def all_gather(self, rows: Tensor) -> Tensor:
        """Concatenate every rank's `rows` (contiguous, same shape everywhere) in rank order, without a gradient."""
        _exchanging()
        gathered = rows.new_empty(self.world_size * len(rows), *rows.shape[1:])
        # all_gather_into_tensor was the name until torch 2.12
        gather = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
        getattr(dist, gather)(gathered, rows, group=self._group)
        return gathered

    def all_to_all(self, rows: Tensor, shares: Sequence[int]) -> Tensor:
        """Split contiguous `rows` by `shares` and send each rank its part; the W parts for this rank, [W, n, ...]."""
        _exchanging()
        own = shares[self.rank]
        received = rows.new_empty(self.world_size, own, *rows.shape[1:])
        dist.all_to_all_single(received.flatten(0, 1), rows, [own] * self.world_size, list(shares), group=self._group)
        return received

    def all_reduce(self, total: Tensor) -> None:
        """Replace `total` by its sum over all ranks, in place."""
        _exchanging()
        dist.all_reduce(total, group=self._group)

    def pass_on(self, block: Tensor, into: Tensor) -> Transfer:
        """Start sending `block` to the next rank and receiving the previous rank's block in `into`; touch neither."""
        _exchanging()
        following, previous = (self.rank + 1) % self.world_size, (self.rank - 1) % self.world_size
        both = (dist.isend, block, following), (dist.irecv, into, previous)
        # an empty block is not sent: sender and receiver both know that it is empty
        operations = [dist.P2POp(way, rows, None, self._group, 0, peer) for way, rows, peer in both if rows.numel()]
        return Transfer(block, into, dist.batch_isend_irecv(operations) if operations else [])


class Levels(NamedTuple):
    """The ranks of this rank's node, and the ranks that have this rank's number on their node, in node order."""

    within: Ranks
    across: Ranks


PROCESS_GROUP = Ranks()


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, shares: Sequence[int], ranks: Ranks) -> Tensor:
        ctx.shares, ctx.ranks = shares, ranks
        # a gather needs equal shapes, so shorter shares are padded with zeros
        largest = max(shares)
        gathered = F.pad(rows, (*(0, 0) * (rows.dim() - 1), 0, largest - len(rows))).contiguous()
        if (levels := ranks.levels) is None:
            gathered = ranks.all_gather(gathered)
        else:
            gathered = levels.within.all_gather(levels.across.all_gather(gathered))
            gathered = _every(levels.across.world_size, gathered, [largest] * len(shares))
        if min(shares) == largest:
            return gathered
        return torch.cat([block[:share] for block, share in zip(gathered.split(largest), shares, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        total, shares, ranks = gradient, ctx.shares, ctx.ranks
        if (levels := ranks.levels) is not None:
            # first each rank adds up its node's gradients for the ranks of its own number on all nodes
            count = levels.within.world_size
            of_numbers = [sum(shares[number::count]) for number in range(count)]
            total = _sum_of_own(_every(count, gradient, shares), of_numbers, levels.within)
            shares, ranks = shares[levels.within.rank :: count], levels.across
        return _sum_of_own(total, shares, ranks).to(gradient.dtype), None, None


def _every(step: int, rows: Tensor, shares: Sequence[int]) -> Tensor:
    """Put blocks of `rows` in another order: 0, step, 2 step ..., then 1, step + 1 ..., and so on."""
    if min(shares) == max(shares):
        return rows.unflatten(0, (len(shares) // step, step, shares[0])).transpose(0, 1).flatten(0, 2)
    blocks = rows.split(list(shares))
    return torch.cat([block for first in range(step) for block in blocks[first::step]])


def _sum_of_own(rows: Tensor, shares: Sequence[int], ranks: Ranks) -> Tensor:
    """This rank's part of the sum of `rows` over ranks, in at least float32: a sum of bfloat16 loses precision.

    It is a reduce-scatter that adds at the receiver; rows travel in their own dtype. gloo's own sends twice as much.
    """
    return ranks.all_to_all(rows.contiguous(), shares).sum(0, dtype=torch.promote_types(rows.dtype, torch.float32))


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return all_sum(value, ranks)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return all_sum(gradient.contiguous(), ctx.ranks), None


def sum_over_ranks(value: Tensor, ranks: Ranks = PROCESS_GROUP) -> Tensor:
    """Differentiable sum of `value` over all ranks, same shape and dtype. Its gradient is also summed over ranks."""
    return value if ranks.world_size == 1 else _SumOverRanks.apply(value, ranks)


def row_counts(rows: Tensor, ranks: Ranks = PROCESS_GROUP) -> list[int]:
    """Every rank's number of rows, in rank order. Waits for the device."""
    counts = torch.zeros(ranks.world_size, dtype=torch.int64, device=rows.device)
    counts[ranks.rank] = len(rows)
    return all_sum(counts, ranks).tolist()


def gather_rows(rows: Tensor, shares: Sequence[int] | None = None, ranks: Ranks = PROCESS_GROUP) -> Tensor:
    """Concatenate every rank's rows in rank order, differentiably.

    Args:
        rows: [n, ...], the same shape on every rank except for `n`.
        shares: every rank's `n` (`row_counts`). None if all are equal.

    Returns:
        [sum of n, ...]. In the backward pass the gradient is summed over all ranks and each rank gets its own rows.
    """
    if ranks.world_size == 1:
        return rows
    return _GatherRows.apply(rows, shares or [len(rows)] * ranks.world_size, ranks)


@torch.no_grad()
def all_sum(value: Tensor, ranks: Ranks = PROCESS_GROUP) -> Tensor:
    """Sum of `value` over all ranks, same shape and dtype, without a gradient."""
    if ranks.world_size == 1:
        return value.detach()
    total = value.detach().clone()
    ranks.all_reduce(total)
    return total


@torch.no_grad()
def all_mean(value: Tensor) -> Tensor:
    """Mean of `value` over all ranks, without a gradient.

    Args:
        value: floating point, of the same shape and dtype on every rank.

    Returns:
        The mean, on every rank.

    Example:
        >>> import torch
        >>> from diffcse_scale.distributed import all_mean
        >>> all_mean(torch.tensor(0.5))
        tensor(0.5000)
    """
    return all_sum(value) / world_size()


@torch.no_grad()
def all_max(value: Tensor) -> Tensor:
    """Elementwise maximum of `value` over all ranks, without a gradient."""
    total = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total, op=dist.ReduceOp.MAX)
    return total


# how long a rank waits for others. They may be exporting, copying or tokenizing, or the whole job may be suspended.
# The watchdog checks whether they are alive. Longer would overflow timers that count milliseconds in 32 bits.
CONTROL_PATIENCE = timedelta(days=20)


@cache
def _control() -> dist.ProcessGroup | None:
    """The gloo group that exchanges a few numbers between hosts, so agreeing on a flag does not wait for the device."""
    return None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo", timeout=CONTROL_PATIENCE)


class Agreement:
    """An asynchronous maximum of each flag over all ranks. Every rank must start it.

    It does not wait for the device, and waits for other ranks only in `answer`.
    """

    def __init__(self, *flags: int) -> None:
        self._largest = torch.tensor(flags, dtype=torch.int64)
        self._work = None
        if world_size() > 1:
            self._work = dist.all_reduce(self._largest, dist.ReduceOp.MAX, group=_control(), async_op=True)

    def answer(self) -> list[int]:
        """The maxima, after every rank has given its flags."""
        if self._work is not None:
            self._work.wait()
        return [int(flag) for flag in self._largest]


def agree(*flags: int) -> list[int]:
    """The maximum of each flag over all ranks. Does not wait for the device."""
    return Agreement(*flags).answer()


def gather_objects(value: Any) -> list[Any]:
    """Every rank's `value` (any small picklable object), in rank order, on every rank.

    Args:
        value: a small object that `pickle` accepts.

    Returns:
        One value per rank.

    Example:
        >>> from diffcse_scale.distributed import gather_objects
        >>> gather_objects({"host": "node1"})
        [{'host': 'node1'}]
    """
    if world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value, group=_control())
    return gathered


def broadcast_object(value: Any) -> Any:
    """Rank 0's `value` on every rank (any small picklable object)."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, group=_control())
    return box[0]
