"""What ranks send and hold for InfoNCE in a step, by the way in which they exchange embeddings.

    OMP_NUM_THREADS=1 python -m studies.loss_exchange

Ranks are processes that connect over gloo. Bytes sent are counted by the kernel on a rank's connections. Bytes held are
the largest sum of operator results that are alive at once. Both cover forward and backward, without the similarities of
a block, and are printed in bytes per element of all keys (rows x width).
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
    """Bytes that this rank sends and holds for InfoNCE with `rows` rows on all ranks together."""
    generator = torch.Generator().manual_seed(rank())
    inputs = torch.randn(2, rows // world_size(), width, generator=generator).to(dtype)
    queries, keys = (tensor.clone().requires_grad_() for tensor in inputs)
    barrier()
    before = sent_bytes()
    with mock.patch.object(blocks, "BLOCK_BYTES", 1), LiveMemory() as memory:
        loss, _ = sharded_info_nce(queries, keys, strategy=exchange, equal_shares=True)
        loss.backward()
    barrier()  # until then every rank has sent all its bytes
    return sent_bytes() - before, memory.peak


def all_ways(rows: int, width: int) -> dict[tuple[str, str], tuple[int, int]]:
    """Bytes that this rank sends and holds, by exchange and dtype."""
    ways = list(product(EXCHANGES, DTYPES))
    for exchange, dtype in ways:
        exchanged(exchange, dtype, 4 * world_size(), 4)  # opens the connections
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
