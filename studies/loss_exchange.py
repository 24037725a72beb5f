"""What ranks send and hold for InfoNCE in a step, by the way in which their embeddings meet.

    OMP_NUM_THREADS=1 python -m studies.loss_exchange

Ranks are processes that meet over gloo. Bytes sent are those that the kernel counts on a rank's connections; bytes held
are the largest sum of the results of operators that are alive at once. Both are of forward and backward, less what the
similarities of a block take, and are printed in bytes an element of all keys (rows x width).
"""

from __future__ import annotations

import argparse
import tempfile
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from diffcse_kernels.reference import blocks

from diffcse_scale.distributed import barrier, rank, world_size
from diffcse_scale.objective.sharded_info_nce import sharded_info_nce
from tests.support.kernels.live_memory import LiveMemory
from tests.support.ranks import run_ranks
from tests.support.tcp_bytes import sent_bytes

RANKS = (2, 4, 8)
DTYPES = (torch.float32, torch.bfloat16)
EXCHANGES = ("gather", "ring")


def exchanged(exchange: Any, dtype: torch.dtype, rows: int, width: int) -> tuple[int, int]:
    """Bytes sent by this rank, and held, for InfoNCE of as many rows of all ranks."""
    generator = torch.Generator().manual_seed(rank())
    inputs = torch.randn(2, rows // world_size(), width, generator=generator).to(dtype)
    queries, keys = (tensor.clone().requires_grad_() for tensor in inputs)
    barrier()
    before = sent_bytes()
    with mock.patch.object(blocks, "BLOCK_BYTES", 1), LiveMemory() as memory:
        loss, _ = sharded_info_nce(queries, keys, strategy=exchange, equal_shares=True)
        loss.backward()
    barrier()  # all has left
    return sent_bytes() - before, memory.peak


def all_ways(rows: int, width: int) -> dict[tuple[str, str], tuple[int, int]]:
    """Of this rank, by exchange and dtype."""
    ways = list(product(EXCHANGES, DTYPES))
    for exchange, dtype in ways:
        exchanged(exchange, dtype, 4 * world_size(), 4)  # makes the connections
    return {(exchange, str(dtype)): exchanged(exchange, dtype, rows, width) for exchange, dtype in ways}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1024, help="Rows of all ranks together.")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS)
    arguments = parser.parse_args()
    elements = arguments.rows * arguments.width
    print("| ranks | exchange | dtype | bytes sent | bytes held |\n|---|---|---|---|---|")
    for size in arguments.ranks:
        with tempfile.TemporaryDirectory() as folder:
            (found, *_) = run_ranks(all_ways, size, Path(folder), arguments.rows, arguments.width)
        for (exchange, dtype), (sent, held) in found.items():
            name = dtype.removeprefix("torch.")
            print(f"| {size} | {exchange} | {name} | {sent / elements:.2f} | {held / elements:.2f} |", flush=True)


if __name__ == "__main__":
    main()
