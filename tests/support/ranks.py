"""Run a function on several gloo ranks, as a test's own processes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from diffcse_scale.rendezvous import free_port
from tests.support.forks import Fork, wait_for_all


def places(world_size: int) -> list[dict[str, str]]:
    """The variables by which so many ranks on this machine find each other, for each of them."""
    meeting = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [{"RANK": str(rank), "LOCAL_RANK": str(rank), **meeting} for rank in range(world_size)]


def run_ranks(work: Callable[..., Any], world_size: int, folder: Path, *arguments: Any) -> list[Any]:
    """`work(*arguments)` on every rank of a fresh process group; returns each rank's result in rank order."""
    forks = []
    for rank, place in enumerate(places(world_size)):
        said = folder / f"rank{rank}.txt"
        said.unlink(missing_ok=True)
        variables = {**os.environ, **place}
        forks.append(Fork(_rank, work, folder / f"rank{rank}.pt", *arguments, output=said, environment=variables))
    code = wait_for_all(forks)
    outputs = "".join((folder / f"rank{rank}.txt").read_text() for rank in range(world_size))
    assert code == 0, outputs
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(world_size)]


def _rank(work: Callable[..., Any], result: Path, *arguments: Any) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    torch.save(work(*arguments), result)
    dist.barrier()
    dist.destroy_process_group()
