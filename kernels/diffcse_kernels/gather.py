"""Gather rows from all processes of a group, for losses that compare against all of them.

The gather is differentiable: the gradients of a row from all processes' losses are summed and sent back to the process
that owns the row. Write the objective as a sum over processes of their own rows' terms, and let every process
back-propagate W times its own terms. Average the gradients of shared parameters over the W processes, as
`DistributedDataParallel` does. The result is the gradient of the whole objective.

All processes of the group must make these calls, and their backward passes, together. `group` is a
`torch.distributed.ProcessGroup`, or "world" for all processes of the default group. Without a default group, "world"
is this process alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Group", "gather_rows", "place", "row_counts"]

Group = dist.ProcessGroup | Literal["world"]


def check_group(group: Group | None) -> None:
    """Raise ValueError for anything but "world", None, or a group that this process is in."""
    if not (group is None or group == "world" or isinstance(group, dist.ProcessGroup)):
        raise ValueError(f'group must be "world" or a ProcessGroup that this process is in, not {group!r}')


def place(group: Group) -> tuple[int, int]:
    """This process's rank in the group, and the number of its processes.

    Args:
        group: a process group that this process is in, or "world".

    Returns:
        The rank, counted from 0, and the number of processes; (0, 1) if no process group exists.

    Raises:
        ValueError: `group` is neither, or is a group that this process is not in.

    Example:
        >>> from diffcse_kernels.gather import place
        >>> place("world")  # without torchrun this process is alone
        (0, 1)
    """
    check_group(group)
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    handle = _handle(group)
    return dist.get_rank(handle), dist.get_world_size(handle)


def row_counts(*tensors: Tensor, group: Group = "world") -> list[list[int]]:
    """Every process's number of rows, for each tensor. This takes one exchange, which waits for the device.

    Args:
        tensors: [n, ...] each; every process passes the same number of tensors. n may differ, and may be 0.
        group: which processes.

    Returns:
        For each tensor a list of the n of every process, in the order of their ranks.

    Example:
        >>> import torch
        >>> from diffcse_kernels.gather import row_counts
        >>> row_counts(torch.zeros(3, 8), torch.zeros(5, 8))  # of one process
        [[3], [5]]
    """
    own = torch.tensor([len(tensor) for tensor in tensors], device=tensors[0].device)
    counts = gather_rows(own, [len(own)] * place(group)[1], group)
    return counts.view(-1, len(own)).T.tolist()


def gather_rows(rows: Tensor, shares: Sequence[int], group: Group = "world") -> Tensor:
    """The rows of all processes, joined by `torch.cat` in the order of their ranks.

    This process's own rows begin at row `sum(shares[:place(group)[0]])`.

    Args:
        rows: [n, ...], of any dtype. Everything but n must be the same on every process, including whether it
            requires a gradient.
        shares: every process's n, which may differ and may be 0 (`row_counts`).
        group: which processes.

    Returns:
        [sum of n, ...]. Its gradient is summed over the processes in float32, or in float64 if it is float64.

    Example:
        >>> import torch
        >>> from diffcse_kernels.gather import gather_rows, row_counts
        >>> keys = torch.ones(3, 2, requires_grad=True)
        >>> (shares,) = row_counts(keys)
        >>> gather_rows(keys, shares).shape  # of one process; of W processes it has the rows of all of them
        torch.Size([3, 2])
    """
    return rows if len(shares) == 1 else _GatherRows.apply(rows, shares, group)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, shares: Sequence[int], group: Group) -> Tensor:
        ctx.shares, ctx.group = list(shares), group
        # a gather needs equal shapes, so shorter shares are padded with uninitialised rows, which are cut off below
        blocks = rows.new_empty(len(shares), max(shares), *rows.shape[1:])
        travelling = torch.empty_like(blocks[0])
        travelling[: len(rows)] = rows
        # all_gather_into_tensor is the name until torch 2.12
        gather = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
        getattr(dist, gather)(blocks.flatten(0, 1), travelling, _handle(group))
        if min(shares) == max(shares):
            return blocks.flatten(0, 1)
        return torch.cat([block[:share] for block, share in zip(blocks, shares, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        # a reduce-scatter that sums at the destination: summing in half precision on the way would lose digits, and
        # gloo's own reduce-scatter sends twice as much
        (gradient,) = gradients
        own = ctx.shares[place(ctx.group)[0]]
        parts = gradient.new_empty(len(ctx.shares), own, *gradient.shape[1:])
        sizes = [own] * len(ctx.shares)
        dist.all_to_all_single(parts.flatten(0, 1), gradient.contiguous(), sizes, ctx.shares, group=_handle(ctx.group))
        return parts.sum(0, dtype=torch.promote_types(gradient.dtype, torch.float32)).to(gradient.dtype), None, None


def _handle(group: Group) -> dist.ProcessGroup | None:
    """The group as torch.distributed expects it; None is the default group."""
    return None if group == "world" else group
