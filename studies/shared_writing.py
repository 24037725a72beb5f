"""What it costs to write the weights of a ZeRO-3 run: one rank that writes all, against files that ranks share.

    OMP_NUM_THREADS=1 python -m studies.shared_writing

Ranks are processes of this machine that connect over gloo and share one disk. Both ways alternate. Seconds are those of
the slowest rank, until its files are flushed to the disk. Bytes written are what the kernel counts for a process, and
held is the growth of a process's resident memory at its peak.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import deepspeed
from transformers import BertConfig, BertModel

from diffcse_scale.distributed import barrier, broadcast_object, is_main
from diffcse_scale.engine.engine import whole_state
from diffcse_scale.foundation.durable import sync_file
from diffcse_scale.model_folder import weight_files
from diffcse_scale.training.writers import write_encoder
from tests.support.ranks import run_ranks

MB = 10**6


class Cost(NamedTuple):
    """Of one rank and one way of writing; bytes in MB."""

    seconds: float
    written: float
    held: float


def one_writer(encoder: BertModel, folder: Path) -> None:
    """The main rank gathers all weights and writes them into one file."""
    state = whole_state(encoder)
    if is_main():
        weight_files.save_encoder(encoder, folder, state)
        sync_file(folder / "model.safetensors")
    barrier()


def shared(encoder: BertModel, folder: Path) -> None:
    """Each rank gathers, writes and flushes files of its own."""
    write_encoder(encoder, folder if is_main() else None)
    barrier()


def cost(write: Callable[[BertModel, Path], None], encoder: BertModel, folder: Path) -> Cost:
    """Write once."""
    barrier()
    ctypes.CDLL(None).malloc_trim(0)  # memory that earlier writing has freed would hide new memory
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    resident, written, start = _entry("status", "VmRSS"), _entry("io", "write_bytes"), time.perf_counter()
    write(encoder, folder)
    seconds = time.perf_counter() - start
    held = 1024 * (_entry("status", "VmHWM") - resident)
    return Cost(seconds, (_entry("io", "write_bytes") - written) / MB, held / MB)


def _entry(file: str, name: str) -> int:
    lines = Path(f"/proc/self/{file}").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def measured(folder: Path, layers: int, file_bytes: int, repeats: int) -> dict[str, list[Cost]]:
    """This rank's costs by way of writing."""
    config = BertConfig(num_hidden_layers=layers, vocab_size=8000)
    encoder = BertModel(config)
    deepspeed.zero.Init(module=encoder)
    ways = {"one writer": (one_writer, 10**12), "shared": (shared, file_bytes)}
    found: dict[str, list[Cost]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, (write, weight_files.FILE_BYTES) in ways.items():
            place = broadcast_object(folder / f"{name} {repeat}")
            found[name].append(cost(write, encoder, place))
    return {name: costs[1:] for name, costs in found.items()}  # the first ones load code


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--layers", type=int, default=6, help="Layers of a BERT of width 768; each has 28 MB.")
    parser.add_argument("--file-mb", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        arguments = (Path(folder).resolve(), given.layers, given.file_mb * MB, given.repeats)
        of_ranks = run_ranks(measured, given.ranks, Path(folder), *arguments)
        files = list(Path(folder).glob(f"shared {given.repeats}/*.safetensors"))
        size = sum(file.stat().st_size for file in files) / MB
    print(f"{size:.0f} MB of weights; shared: {len(files)} files\n")
    print("| way | seconds | MB written, by rank | MB held, by rank |\n|---|---|---|---|")
    for name in of_ranks[0]:
        costs = [of_rank[name] for of_rank in of_ranks]
        seconds = [max(one.seconds for one in repeat) for repeat in zip(*costs, strict=True)]
        cells = [", ".join(f"{statistics.median(one[i] for one in own):.0f}" for own in costs) for i in (1, 2)]
        print(f"| {name} | {statistics.median(seconds):.2f} | {cells[0]} | {cells[1]} |")


if __name__ == "__main__":
    main()
