"""Run a function on several gloo ranks, as a test's own processes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from diffcse_scale.rendezvous import free_port, join
from tests.support.forks import Fork, wait_for_all


def places(world_size: int, per_node: int | None = None) -> list[dict[str, str]]:
    """The variables by which so many ranks on this machine find each other, for each of them.

    With `per_node` they lie on nodes that are named as SLURM names several of one machine.
    """
    meeting = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    found = [{"RANK": str(rank), "LOCAL_RANK": str(rank), **meeting} for rank in range(world_size)]
    for rank, place in enumerate(found if per_node else []):
        place["SLURMD_NODENAME"] = f"node{rank // per_node}"
    return found


def run_ranks(
    work: Callable[..., Any], world_size: int, folder: Path, *arguments: Any, per_node: int | None = None
) -> list[Any]:
    """`work(*arguments)` on every rank of a fresh process group; returns each rank's result in rank order.

    With `per_node`, ranks lie on so many nodes, and meet as in training.
    """
    forks = []
    for rank, place in enumerate(places(world_size, per_node)):
        said = folder / f"rank{rank}.txt"
        said.unlink(missing_ok=True)
        variables = {**os.environ, **place}
        given = work, folder / f"rank{rank}.pt", per_node is not None, *arguments
        forks.append(Fork(_rank, *given, output=said, environment=variables))
    code = wait_for_all(forks)
    outputs = "".join((folder / f"rank{rank}.txt").read_text() for rank in range(world_size))
    assert code == 0, outputs
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(world_size)]


def _rank(work: Callable[..., Any], result: Path, on_nodes: bool, *arguments: Any) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    if on_nodes:
        join("gloo", 60)
    else:
        dist.init_process_group("gloo")
    torch.save(work(*arguments), result)
    dist.barrier()
    dist.destroy_process_group()
