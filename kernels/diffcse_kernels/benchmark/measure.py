"""Measure the time and memory of one call, and the rates of the device, all by the same clock.

On a GPU a call is timed with events, after a warm-up and with the L2 cache flushed. Its memory is the peak of the
caching allocator minus the inputs. On a CPU every call runs in its own process. Its memory is the growth of the
process's peak resident size. If the process runs out of memory, only this process dies.
"""

from __future__ import annotations

import gc
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from .workload import BOTH, Cell, Outcome, Shape, seeded

LEAST_CALLS, MOST_CALLS = 3, 1000
CLEAN_PROCESSES = "forkserver"  # its processes have imported torch but run nothing: clean, and quick to start
Result = TypeVar("Result")
Call = Callable[[], tuple[Tensor, tuple[Tensor, ...]]]


class Measured(NamedTuple):
    milliseconds: list[float]
    peak_bytes: int | None
    """Peak memory beyond the inputs, including the results; None if the compiler's own memory would be counted too."""
    outcome: Outcome


class Rates(NamedTuple):
    """The rates that the device reaches, per second."""

    flop: float
    """Floating-point operations in a large square matrix product."""
    bytes: float
    """Bytes read and written in a large copy."""


def measure(cell: Cell, device: torch.device, seconds: float) -> Measured:
    """Time the call for about `seconds`.

    Raises MemoryError if memory runs out, and RuntimeError with the reason for any other failure.
    """
    return _apart(_measure, device)(cell, device, seconds)


def measure_rates(dtype: torch.dtype, device: torch.device, seconds: float) -> Rates:
    return _apart(_rates, device)(dtype, device, seconds)


def _apart(function: Callable[..., Result], device: torch.device) -> Callable[..., Result]:
    """On a CPU, wrap the function so that it runs in a process of its own."""
    return function if device.type == "cuda" else partial(_in_fresh_process, function)


def _measure(cell: Cell, device: torch.device, seconds: float) -> Measured:
    try:
        if device.type == "cuda":
            gc.collect()  # free what a failed row has left behind
            torch.cuda.empty_cache()
        run = cell.implementation.run
        if cell.implementation.compiled:
            torch.compiler.reset()  # otherwise the ninth shape would silently run uncompiled
            run = torch.compile(run, fullgraph=True, dynamic=False)
        call = _call(cell, cell.shape, run, device)
        if device.type == "cuda":
            for _ in range(2):  # the first call compiles
                _synchronized(call)
            result, peak = _peak_on_gpu(call)
        else:
            if not cell.implementation.compiled:  # a small call first, so what it loads does not count as the call's
                small = cell.shape._replace(rows=min(8, cell.shape.rows), columns=min(8, cell.shape.columns))
                _call(cell, small, run, device)()
            result, peak = _peak_on_cpu(call)
        outcome = cell.workload.outcome(*result)
        del result
        times = _times(call, device, seconds)
    except Exception as error:
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise MemoryError from None
        # some packages' errors cannot be pickled on the way back from a process, and a row has room for one line
        raise RuntimeError(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}") from None
    return Measured(times, None if cell.implementation.compiled and device.type == "cpu" else peak, outcome)


def _call(cell: Cell, shape: Shape, run: Callable[..., Tensor], device: torch.device) -> Call:
    inputs = cell.workload.inputs(shape, cell.dtype, device)
    if cell.passes != BOTH:

        def forward() -> tuple[Tensor, tuple[Tensor, ...]]:
            with torch.no_grad():
                return run(*inputs), ()

        return forward
    leaves = tuple(tensor.requires_grad_() for tensor in inputs[: cell.workload.differentiable])

    def forward_and_backward() -> tuple[Tensor, tuple[Tensor, ...]]:
        value = run(*inputs)
        return value, torch.autograd.grad(value, leaves)

    return forward_and_backward


def _peak_on_gpu(call: Call) -> tuple[tuple[Tensor, tuple[Tensor, ...]], int]:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = _synchronized(call)
    return result, torch.cuda.max_memory_allocated() - before


def _peak_on_cpu(call: Call) -> tuple[tuple[Tensor, tuple[Tensor, ...]], int]:
    before = _peak_resident_bytes()
    result = call()
    return result, _peak_resident_bytes() - before


def _peak_resident_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _synchronized(call: Callable[[], Result]) -> Result:
    result = call()
    torch.cuda.synchronize()
    return result


def _times(call: Callable[[], object], device: torch.device, seconds: float) -> list[float]:
    """Milliseconds of each call."""
    if device.type == "cuda":
        return _gpu_times(call, seconds)
    times: list[float] = []
    while len(times) < LEAST_CALLS or (sum(times) < 1e3 * seconds and len(times) < MOST_CALLS):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return times


def _gpu_times(call: Callable[[], object], seconds: float) -> list[float]:
    flush = torch.empty(4 * torch.cuda.get_device_properties().L2_cache_size, dtype=torch.int8, device="cuda")
    start = time.perf_counter()
    _synchronized(call)
    count = min(MOST_CALLS, max(LEAST_CALLS, int(seconds / (time.perf_counter() - start))))
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
    for begin, end in events:
        flush.zero_()  # also keeps the GPU busy while the host prepares the call
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) for begin, end in events]


def _rates(dtype: torch.dtype, device: torch.device, seconds: float) -> Rates:
    side, size = (8192, 2**30) if device.type == "cuda" else (2048, 2**28)
    left, right = (torch.randn(side, side, generator=seeded(device), dtype=dtype, device=device) for _ in range(2))
    product_ms = _median_after_warm_up(lambda: left @ right, device, seconds)
    source = torch.ones(size, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    copy_ms = _median_after_warm_up(lambda: target.copy_(source), device, seconds)
    return Rates(2 * side**3 / product_ms * 1e3, 2 * size / copy_ms * 1e3)


def _median_after_warm_up(call: Callable[[], object], device: torch.device, seconds: float) -> float:
    call()
    return median(_times(call, device, seconds))


def _in_fresh_process(function: Callable[..., Result], *arguments: object) -> Result:
    context = multiprocessing.get_context(CLEAN_PROCESSES)
    context.set_forkserver_preload(["torch", __name__])
    threads = torch.get_num_threads()
    with ProcessPoolExecutor(1, context, initializer=_start, initargs=(threads,)) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            raise MemoryError("its process was killed") from None


def _start(threads: int) -> None:
    """Use as many threads as the run, and limit memory to what is free, so a failed allocation harms no one else."""
    torch.set_num_threads(threads)
    if not Path("/proc/meminfo").exists():
        return
    free = next(int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines() if "Available" in line)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + free * 1024 * 9 // 10, resource.RLIM_INFINITY))
