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
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from diffcse_scale.errors import InputError


def _active() -> bool:
    return dist.is_available() and dist.is_initialized()


def free_port() -> int:
    """A port of this machine that nobody listens on now, for a rendezvous."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def host_name() -> str:
    """This machine's name, SLURM's where it has given one: several of its nodes may be one machine."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


_store: dist.Store | None = None


def join(backend: str, seconds: float, device: torch.device | None = None) -> None:
    """Meet the other ranks that RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT speak of, and form the process group.

    Args:
        seconds: how long to wait for them.
        device: bound to this rank, where the backend wants to know it.

    Raises:
        InputError: not all have come (names those that are missing), or one has come twice.
        DistNetworkError: this is rank 0 and cannot listen.
    """
    global _store
    if _active():
        return
    number, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    # torchrun's agent listens itself, and goes on to do so when it starts the ranks again
    listens = number == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    address, port, patience = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), timedelta(seconds=seconds)
    try:
        shared = dist.TCPStore(address, port, is_master=listens, timeout=patience, wait_for_workers=False)
    except dist.DistError as error:
        if listens:
            raise
        raise InputError(
            f"Rank {number} on {host_name()} found nobody at {place} within {seconds:.0f} seconds "
            f"({_first_line(error)}); see whether rank 0 started there, and whether this machine reaches it."
        ) from None
    store = dist.PrefixStore(f"attempt {attempt}", shared)
    names = [f"host of rank {other}" for other in range(count)]
    if store.add(f"arrivals of rank {number}", 1) > 1:
        raise InputError(
            f"Rank {number} has come twice to {place}, now from {host_name()}; RANK must be another on every process, "
            "and MASTER_PORT on every run."
        )
    store.set(names[number], host_name())
    try:
        store.wait(names, patience)
    except dist.DistError:
        missing = ", ".join(str(other) for other, name in enumerate(names) if not store.check([name]))
        raise InputError(
            f"Only some of the {count} ranks came within {seconds:.0f} seconds: missing is {missing}; see whether "
            "their nodes started them, or ask for fewer."
        ) from None
    group = dist.PrefixStore("group", store)
    dist.init_process_group(
        backend, store=group, rank=number, world_size=count, device_id=device if count > 1 else None
    )
    _store = store


# what asking the store of a rank that has left may raise
STORE_ERRORS = (dist.DistError, RuntimeError)
Store = dist.Store


def leave(alone: bool = False) -> None:
    """Leave the process group while Python is whole.

    gloo's threads hold the tensors of its last operation for a moment longer. One that lets go of them while Python
    ends aborts the process, and a run that has finished exits with -6.

    Args:
        alone: the other ranks may not be leaving: NCCL would wait for them.
    """
    global _store
    if _active() and not (alone and dist.get_backend() == "nccl"):
        dist.destroy_process_group()
        _store = None


def control_store() -> dist.Store | None:
    """A connection of its own to what all ranks can read and write, for a thread; None for a single process."""
    return None if _store is None or world_size() == 1 else _store.clone()  # type: ignore[attr-defined]


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0]


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


def collectives() -> list[tuple[Any, str]]:
    """Module and name of each function that ranks exchange through, whoever calls it; for timing them."""
    names = (
        "all_gather",
        "all_gather_into_tensor",
        "all_reduce",
        "all_to_all_single",
        "barrier",
        "broadcast",
        "reduce",
    )
    return [(dist, name) for name in (*names, "reduce_scatter", "reduce_scatter_tensor")]


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


@cache
def _control() -> dist.ProcessGroup | None:
    """The group for a few numbers between hosts: gloo, so that agreeing on a flag does not wait for the device."""
    return None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")


def agree(*flags: int) -> list[int]:
    """The largest of all ranks' values of each flag. Does not wait for the device."""
    if world_size() == 1:
        return list(flags)
    largest = torch.tensor(flags, dtype=torch.int64)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=_control())
    return [int(flag) for flag in largest]


def gather_objects(value: Any) -> list[Any]:
    """Every rank's `value` (any small picklable object), in rank order, on every rank."""
    if world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value, group=_control())
    return gathered


def all_reduce_rate(device: torch.device, mebibytes: int = 16, repeats: int = 5) -> dict[str, float]:
    """Whether all ranks reach each other, and how fast. Called on every rank.

    Returns:
        `latency_ms` of four bytes, and `gigabytes_per_second` (1e9 bytes, "bus" bandwidth: 2 (W - 1) / W times the
        bytes of one rank), both medians, measured on this rank.

    Raises:
        InputError: a sum is wrong.
    """
    small = torch.ones(1, device=device)
    large = torch.ones(mebibytes * 2**18, device=device)
    latency, seconds = (_median_seconds(tensor, repeats) for tensor in (small, large))
    if float(small) != world_size() or float(large[-1]) != world_size():
        raise InputError(
            f"An all-reduce over {world_size()} ranks gave a wrong sum on rank {rank()} ({host_name()}); exclude that "
            "node, or look at its network."
        )
    moved = 2 * (world_size() - 1) / world_size() * large.numel() * 4
    return {"latency_ms": latency * 1e3, "gigabytes_per_second": moved / seconds / 1e9}


def _median_seconds(tensor: Tensor, repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):  # the first makes connections
        tensor.fill_(1)
        start = time.perf_counter()
        dist.all_reduce(tensor)
        tensor.view(-1)[0].item()  # waits for the device
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def broadcast_object(value: Any) -> Any:
    """Rank 0's `value` on every rank (any small picklable object)."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, group=_control())
    return box[0]
