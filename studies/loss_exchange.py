"""What ranks send and hold for InfoNCE in a step, by the way in which they exchange embeddings.

    OMP_NUM_THREADS=1 python -m studies.loss_exchange
    OMP_NUM_THREADS=1 python -m studies.loss_exchange --nodes     # one level and two levels over nodes

Ranks are processes that connect over gloo. Bytes sent are counted by the kernel on a rank's connections. Bytes held are
the largest sum of operator results that are alive at once. Both cover forward and backward, without the similarities of
a block, and are printed in bytes per element of all keys (rows x width). Nodes are names that ranks of this machine
have; what a rank sends to ranks of other nodes is counted by connection.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from diffcse_kernels.reference import blocks

from diffcse_scale.distributed import PROCESS_GROUP, barrier, rank, world_size
from diffcse_scale.objective.sharded_info_nce import sharded_info_nce
from tests.support.kernels.live_memory import LiveMemory
from tests.support.ranks import run_ranks
from tests.support.tcp_bytes import Connection, sent_between_nodes, sent_by_connection

RANKS = (2, 4, 8)
DTYPES = (torch.float32, torch.bfloat16)
EXCHANGES = ("gather", "ring")
NODES = ((4, 2), (8, 2), (8, 4))  # ranks, and those of a node
Found = tuple[Counter[Connection], int]


def exchanged(exchange: Any, dtype: torch.dtype, rows: int, width: int) -> Found:
    """Bytes that this rank sends by connection and holds for InfoNCE with `rows` rows on all ranks together."""
    generator = torch.Generator().manual_seed(rank())
    inputs = torch.randn(2, rows // world_size(), width, generator=generator).to(dtype)
    queries, keys = (tensor.clone().requires_grad_() for tensor in inputs)
    barrier()
    before = sent_by_connection()
    with mock.patch.object(blocks, "BLOCK_BYTES", 1), LiveMemory() as memory:
        loss, _ = sharded_info_nce(queries, keys, strategy=exchange, shares=[len(keys)] * world_size())
        loss.backward()
    barrier()  # until then every rank has sent all its bytes
    return sent_by_connection() - before, memory.peak


def all_ways(rows: int, width: int) -> dict[tuple[str, str], Found]:
    """Bytes that this rank sends and holds, by exchange and dtype."""
    ways = list(product(EXCHANGES, DTYPES))
    for exchange, dtype in ways:
        exchanged(exchange, dtype, 4 * world_size(), 4)  # opens the connections
    return {(exchange, str(dtype)): exchanged(exchange, dtype, rows, width) for exchange, dtype in ways}


def over_nodes(per_node: int, rows: int, width: int) -> dict[tuple[str, int], Found]:
    """Bytes that this rank sends and holds with the gather, by dtype and number of levels."""
    found = {}
    for levels, dtype in product((1, 2), DTYPES):
        PROCESS_GROUP.lie_on_nodes(per_node if levels == 2 else 1)
        exchanged("gather", dtype, 4 * world_size(), 4)
        found[str(dtype), levels] = exchanged("gather", dtype, rows, width)
    return found


def print_nodes(rows: int, width: int) -> None:
    """Print what ranks send in all, and to other nodes."""
    print("| ranks | nodes | dtype | levels | sent | between nodes, a rank at most | a node | held |")
    print("|---|---|---|---|---|---|---|---|")
    for size, per_node in NODES:
        with tempfile.TemporaryDirectory() as folder:
            of_ranks = run_ranks(over_nodes, size, Path(folder), per_node, rows, width, per_node=per_node)
        for dtype, levels in sorted(of_ranks[0]):
            sent, held = zip(*(of_rank[dtype, levels] for of_rank in of_ranks), strict=True)
            between = sent_between_nodes(list(sent), per_node)
            numbers = [sum(sent[0].values()), max(between), sum(between[:per_node]), max(held)]
            cells = " | ".join(f"{number / (rows * width):.2f}" for number in numbers)
            name = dtype.removeprefix("torch.")
            print(f"| {size} | {size // per_node} of {per_node} | {name} | {levels} | {cells} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1024, help="Rows of all ranks together.")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS)
    parser.add_argument("--nodes", action="store_true", help="Compare one level and two levels over nodes.")
    arguments = parser.parse_args()
    if arguments.nodes:
        return print_nodes(arguments.rows, arguments.width)
    elements = arguments.rows * arguments.width
    print("| ranks | exchange | dtype | bytes sent | bytes held |\n|---|---|---|---|---|")
    for size in arguments.ranks:
        with tempfile.TemporaryDirectory() as folder:
            (found, *_) = run_ranks(all_ways, size, Path(folder), arguments.rows, arguments.width)
        for (exchange, dtype), (sent, held) in found.items():
            name = dtype.removeprefix("torch.")
            total = sum(sent.values())
            print(f"| {size} | {exchange} | {name} | {total / elements:.2f} | {held / elements:.2f} |", flush=True)


if __name__ == "__main__":
    main()
