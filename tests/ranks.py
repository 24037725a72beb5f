"""Run a function on several gloo ranks, as a test's own processes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from diffcse_scale.distributed import free_port


def run_ranks(work: Callable[..., Any], world_size: int, folder: Path, *arguments: Any) -> list[Any]:
    """`work(*arguments)` on every rank of a fresh process group; returns each rank's result in rank order."""
    port = free_port()
    multiprocessing.spawn(_rank, (work, world_size, port, str(folder), arguments), nprocs=world_size)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(world_size)]


def _rank(rank: int, work: Callable[..., Any], world_size: int, port: int, folder: str, arguments: Any) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    dist.init_process_group("gloo")
    torch.save(work(*arguments), Path(folder) / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
