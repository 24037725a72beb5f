"""Measure a row of `diffcse_kernels/crossovers.py`: the size from which Triton is faster on this device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

import torch

from ..crossovers import UNITS, device_class
from .info_nce import InfoNCE
from .measure import measure
from .replaced_token_bce import ReplacedTokenBCE
from .sample_tokens import SampleTokens
from .sigmoid_loss import SigmoidLoss
from .workload import Cell, Workload

WIDTH, VOCABULARY = 768, 30_522
NEVER = 2**62
SIZES: tuple[tuple[Workload, tuple[int, ...]], ...] = (
    (InfoNCE(), tuple(2**power for power in range(5, 14))),
    (ReplacedTokenBCE(), tuple(2**power for power in range(6, 19))),
    (SampleTokens(), tuple(2**power for power in range(2, 13))),
    (SigmoidLoss(), tuple(2**power for power in range(5, 14))),
)


def crossovers(device: torch.device, seconds: float, report: Callable[[str], None]) -> str:
    """The row as text to paste; measured in bfloat16, with the backward pass if the function has one."""
    found = {workload.name: _crossover(workload, sizes, device, seconds, report) for workload, sizes in SIZES}
    return f'"{device_class(device)}": {found},'.replace("'", '"')


def first_lasting_win(works: Sequence[int], triton: Sequence[float], reference: Sequence[float]) -> int:
    """The smallest measured work from which on Triton is always faster; NEVER if there is none."""
    first = NEVER
    for work, ours, other in sorted(zip(works, triton, reference, strict=True), reverse=True):
        if ours >= other:
            break
        first = work
    return first


def _crossover(
    workload: Workload, sizes: tuple[int, ...], device: torch.device, seconds: float, report: Callable[[str], None]
) -> int:
    by_name = {implementation.name: implementation for implementation in workload.implementations}
    medians: dict[str, list[float]] = {"triton": [], "reference": []}
    works = []
    for rows in sizes:
        shape = workload.shape(rows, WIDTH, VOCABULARY)
        works.append(shape.rows * (WIDTH if shape.columns == 1 else shape.columns))
        for name, times in medians.items():
            cell = Cell(workload, by_name[name], shape, torch.bfloat16, workload.passes[-1])
            measured = measure(cell, device, seconds)
            times.append(median(measured.milliseconds))
        latest = ", ".join(f"{name} {times[-1]:.3f} ms" for name, times in medians.items())
        report(f"{workload.name} at {works[-1]:,} {UNITS[workload.name]}: {latest}")
    return first_lasting_win(works, medians["triton"], medians["reference"])
