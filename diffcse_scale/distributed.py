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
from functools import cache
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

    Example:
        >>> from diffcse_scale.distributed import PROCESS_GROUP, Ranks
        >>> isinstance(PROCESS_GROUP, Ranks), PROCESS_GROUP.world_size
        (True, 1)
    """

    @property
    def rank(self) -> int:
        """This rank's number."""
        return rank()

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return world_size()

    def all_gather(self, rows: Tensor) -> Tensor:
        """Concatenate every rank's `rows` (contiguous, same shape everywhere) in rank order, without a gradient."""
        _exchanging()
        gathered = rows.new_empty(self.world_size * len(rows), *rows.shape[1:])
        # all_gather_into_tensor was the name until torch 2.12
        gather = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
        getattr(dist, gather)(gathered, rows)
        return gathered

    def all_to_all(self, rows: Tensor, shares: Sequence[int]) -> Tensor:
        """Split contiguous `rows` by `shares` and send each rank its part; the W parts for this rank, [W, n, ...]."""
        _exchanging()
        own = shares[self.rank]
        received = rows.new_empty(self.world_size, own, *rows.shape[1:])
        dist.all_to_all_single(received.flatten(0, 1), rows, [own] * self.world_size, list(shares))
        return received

    def all_reduce(self, total: Tensor) -> None:
        """Replace `total` by its sum over all ranks, in place."""
        _exchanging()
        dist.all_reduce(total)

    def pass_on(self, block: Tensor, into: Tensor) -> Transfer:
        """Start sending `block` to the next rank and receiving the previous rank's block in `into`; touch neither."""
        _exchanging()
        following, previous = (self.rank + 1) % self.world_size, (self.rank - 1) % self.world_size
        operations = [dist.P2POp(dist.isend, block, following), dist.P2POp(dist.irecv, into, previous)]
        # an empty block is not sent: sender and receiver both know that it is empty
        operations = [operation for operation in operations if operation.tensor.numel()]
        return Transfer(block, into, dist.batch_isend_irecv(operations) if operations else [])


PROCESS_GROUP = Ranks()


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, shares: Sequence[int], ranks: Ranks) -> Tensor:
        ctx.shares, ctx.ranks = shares, ranks
        # a gather needs equal shapes, so shorter shares are padded with zeros
        largest = max(shares)
        gathered = ranks.all_gather(F.pad(rows, (*(0, 0) * (rows.dim() - 1), 0, largest - len(rows))).contiguous())
        if min(shares) == largest:
            return gathered
        return torch.cat([block[:share] for block, share in zip(gathered.split(largest), shares, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        # a reduce-scatter that adds at the receiver: gradients travel in their own dtype and are summed in at least
        # float32, because a sum of W bfloat16 numbers loses precision. gloo's reduce-scatter sends twice as much
        (gradient,) = gradients
        parts = ctx.ranks.all_to_all(gradient.contiguous(), ctx.shares)
        return parts.sum(0, dtype=torch.promote_types(gradient.dtype, torch.float32)).to(gradient.dtype), None, None


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


def ring(block: Tensor, shares: Sequence[int], ranks: Ranks = PROCESS_GROUP) -> Iterator[tuple[int, Tensor]]:
    """Yield every rank's block with its owner, starting with this rank's own.

    The next block travels during the loop's body. At most two received blocks are held. Their buffers are reused, so
    a block is valid only until the next iteration.

    Args:
        block: [n, ...], the same shape on every rank except for `n`.
        shares: every rank's `n`.
    """
    block = block.contiguous()
    last = ranks.world_size - 1
    buffers = [block.new_empty(max(shares), *block.shape[1:]) for _ in range(min(2, last))]
    for step in range(last):
        owner = (ranks.rank - step) % ranks.world_size
        transfer = ranks.pass_on(block, buffers[step % 2][: shares[owner - 1]])
        yield owner, block
        block = transfer.wait()
    yield (ranks.rank - last) % ranks.world_size, block


class RingSum:
    """A sum over ranks for every block of `ring`. The sum travels one step behind its block to the block's owner."""

    def __init__(self, shares: Sequence[int], ranks: Ranks = PROCESS_GROUP) -> None:
        self._shares, self._ranks = shares, ranks
        self._owner = ranks.rank
        self._transfer: Transfer | None = None

    def add(self, part: Tensor) -> None:
        """Add this rank's part for the current block, [n of its owner, ...], contiguous. `part` is overwritten."""
        if self._transfer is not None:
            part += self._transfer.wait()
        self._owner = (self._owner - 1) % self._ranks.world_size
        if self._ranks.world_size == 1:
            self._transfer = Transfer(part, part, [])
        else:
            into = part.new_empty(self._shares[self._owner], *part.shape[1:])
            self._transfer = self._ranks.pass_on(part, into)

    def total(self) -> Tensor:
        """The sum for this rank's own block, after every block has been around the ring."""
        assert self._transfer is not None
        return self._transfer.wait()


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
