"""Ranks that meet in one process, a thread each: what is handed `Ranks` is tried without a process group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any, TypeVar

import torch
from torch import Tensor

from diffcse_scale.distributed import Ranks, Transfer

T = TypeVar("T")


class _Meeting:
    """Where the ranks lay down what they have, and take what others have."""

    def __init__(self, world_size: int) -> None:
        self._barrier = Barrier(world_size, timeout=20)
        self._table: list[Tensor | None] = [None] * world_size

    def exchange(self, rank: int, own: Tensor) -> list[Tensor]:
        """What every rank has laid down, in rank order."""
        self._table[rank] = own.detach().clone()
        self._barrier.wait()
        found = [tensor for tensor in self._table if tensor is not None]
        self._barrier.wait()  # nobody lays down the next before all have taken
        return found


class RankInThread(Ranks):
    """One of `ranks_in_threads`."""

    def __init__(self, rank: int, world_size: int, meeting: _Meeting) -> None:
        self._rank, self._world_size, self._meeting = rank, world_size, meeting

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def world_size(self) -> int:
        return self._world_size

    def all_gather(self, rows: Tensor) -> Tensor:
        return torch.cat(self._meeting.exchange(self._rank, rows))

    def all_to_all(self, rows: Tensor, shares: Sequence[int]) -> Tensor:
        found = self._meeting.exchange(self._rank, rows)
        return torch.stack([sent.split(list(shares))[self._rank] for sent in found])

    def all_reduce(self, total: Tensor) -> None:
        total.copy_(torch.stack(self._meeting.exchange(self._rank, total)).sum(0))

    def pass_on(self, block: Tensor, into: Tensor) -> Transfer:
        into.copy_(self._meeting.exchange(self._rank, block)[self._rank - 1])
        return Transfer(block, into, [])


def ranks_in_threads(world_size: int) -> list[Ranks]:
    """All ranks of one world, for `together`."""
    meeting = _Meeting(world_size)
    return [RankInThread(rank, world_size, meeting) for rank in range(world_size)]


def together(work: Callable[..., T], *of_ranks: Sequence[Any]) -> list[T]:
    """`work(*own)` in a thread for each rank, `own` being its entry of each of `of_ranks`; results in rank order."""
    with ThreadPoolExecutor(len(of_ranks[0])) as threads:
        return [done.result() for done in [threads.submit(work, *own) for own in zip(*of_ranks, strict=True)]]
