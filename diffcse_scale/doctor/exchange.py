"""Checks that need several ranks: whether they meet, how fast they exchange data, and which folders they share."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import multiprocessing

from diffcse_scale.distributed import broadcast_object, gather_objects, is_main, local_rank, world_size
from diffcse_scale.doctor.verdict import Row, Verdict
from diffcse_scale.foundation.environment import host_name
from diffcse_scale.foundation.errors import InputError, first_line
from diffcse_scale.foundation.exit_codes import ExitCode
from diffcse_scale.rendezvous import all_reduce_rate, free_port, join, leave

# bytes of gradients per step of BERT-base: encoder and discriminator, 110 million each, in float32
GRADIENTS = 2 * 110e6 * 4
LONG = 1.0  # seconds for these gradients that count as slow
MEETING = "set GLOO_SOCKET_IFNAME to the interface between the nodes; check for a firewall between them"
REMEDIES = {
    "gloo": MEETING,
    "NCCL": "run with NCCL_DEBUG=INFO; NCCL_SOCKET_IFNAME sets the interface, NCCL_IB_DISABLE=1 turns InfiniBand off",
}
Tell = Callable[[list[Row]], None]


def meet(seconds: float, on_devices: bool, tell: Tell) -> None:
    """Join the other ranks as RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT say.

    Args:
        seconds: how long to wait for the other ranks.
        on_devices: whether each rank has a GPU and also exchanges through NCCL.
        tell: called with the problem before the process exits, if the system never answers.

    Raises:
        InputError: some ranks did not come, or they cannot reach each other.
    """
    if on_devices:
        torch.cuda.set_device(local_rank() % torch.cuda.device_count())
    silent = Row("ranks", f"did not meet within {2 * seconds:.0f} s", Verdict.BROKEN, MEETING)
    with _leaving_after(2 * seconds, lambda: tell([silent])):
        try:
            # NCCL connects at its first exchange, after gloo's connections are known to work
            join("cpu:gloo,cuda:nccl" if on_devices else "gloo", seconds)
        except RuntimeError as error:
            raise InputError(f"The ranks did not meet: {first_line(error)}") from None


def measure(seconds: float, on_devices: bool, tell: Tell) -> list[Row]:
    """Time an all-reduce between hosts and one between devices. Call it on every rank after `meet`, with its arguments.

    If one does not end within `seconds`, a row is reported and the process exits, because nothing else ends it.
    """
    rows: list[Row] = []
    for name, device in (("gloo", "cpu"), *([("NCCL", "cuda")] if on_devices else [])):
        check = f"all-reduce, {name}"
        silent = Row(check, f"not done within {seconds:.0f} s", Verdict.BROKEN, REMEDIES[name])
        with _leaving_after(seconds, lambda silent=silent: tell([*rows, silent])):  # type: ignore[misc]
            try:
                rate = all_reduce_rate(torch.device(device))
            except (InputError, RuntimeError) as error:
                rows.append(Row(check, first_line(error), Verdict.BROKEN, REMEDIES[name]))
                return rows
        rows.append(_rate(name, rate, carries_gradients=(name == "NCCL") == on_devices))
    return rows


def _rate(name: str, rate: dict[str, float], carries_gradients: bool) -> Row:
    check, ranks = f"all-reduce, {name}", world_size()
    speed = rate["gigabytes_per_second"]
    found = f"{ranks} ranks, {rate['latency_ms']:.2f} ms for 4 bytes, {speed:.2f} GB/s"
    if ranks == 1:
        return Row(check, "1 rank, so nothing is exchanged")
    if not carries_gradients:
        return Row(check, found)
    needed = 2 * (ranks - 1) / ranks * GRADIENTS / (speed * 1e9)
    found += f": {needed:.2g} s for the gradients of BERT-base"
    if needed > LONG:
        link = "check that the fast link is used (NCCL_DEBUG=INFO); " if name == "NCCL" else ""
        return Row(check, found, Verdict.SLOWER, f"{link}larger batches (batch.sentences) exchange less often")
    return Row(check, found)


def shared_folder(folder: Path) -> Row:
    """Check that all ranks see a file that rank 0 creates in `folder`. Call it on every rank."""
    with _file_in(folder) if is_main() else nullcontext() as made:
        name = broadcast_object(made)
        everywhere = gather_objects((host_name(), name is not None and Path(name).exists()))
    if name is None:
        return Row("shared folder", f"{folder} is not to be written to", Verdict.BROKEN, "choose another (--output)")
    blind = sorted({host for host, seen in everywhere if not seen})
    if blind:
        advice = "write runs to a folder that all nodes share, and set DIFFCSE_CACHE and HF_HOME to such folders"
        return Row("shared folder", f"{', '.join(blind)} cannot see into {folder}", Verdict.BROKEN, advice)
    return Row("shared folder", f"every node sees into {folder}")


@contextmanager
def _file_in(folder: Path) -> Iterator[str | None]:
    """A temporary file that is removed afterwards; None if it cannot be created."""
    file = folder / f".doctor-{host_name()}-{os.getpid()}"
    try:
        file.touch(exist_ok=False)
    except OSError:
        yield None
        return
    try:
        yield str(file)
    finally:
        file.unlink(missing_ok=True)


def measure_here(ranks: int, seconds: float, on_devices: bool) -> list[Row]:
    """Start `ranks` processes on this machine, and return the rows of `measure`."""
    place = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    with tempfile.TemporaryDirectory() as folder:
        told = [Path(folder, f"{rank}.pt") for rank in range(ranks)]
        with suppress(multiprocessing.ProcessExitedException):  # a process has reported the reason
            multiprocessing.spawn(_rank, (place, seconds, on_devices, told), nprocs=ranks)
        rows = [torch.load(file) for file in told if file.exists()]
    if not rows:
        return [Row("ranks", "ended without a word", Verdict.BROKEN, "see what they have printed")]
    return [Row(**{**row, "verdict": Verdict(row["verdict"])}) for row in rows[0]]


def _rank(rank: int, place: dict[str, str], seconds: float, on_devices: bool, told: list[Path]) -> None:
    os.environ.update(place, RANK=str(rank), LOCAL_RANK=str(rank))

    def tell(rows: list[Row]) -> None:
        torch.save([{**asdict(row), "verdict": row.verdict.value} for row in rows], told[rank])

    try:
        meet(seconds, on_devices, tell)
        tell(measure(seconds, on_devices, tell))
    except InputError as error:
        tell([Row("ranks", str(error), Verdict.BROKEN, MEETING)])
    leave()


@contextmanager
def _leaving_after(seconds: float, tell: Callable[[], Any]) -> Iterator[None]:
    """Call `tell` and exit this process if the block takes longer, because nothing else ends a hanging exchange."""

    def end() -> None:
        tell()
        os._exit(ExitCode.MISTAKE)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
