"""Select the rows that a run measures, and run the measurements."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from statistics import median

import torch

from .info_nce import ColdInfoNCE, InfoNCE
from .measure import Rates, measure, measure_rates
from .record import Row, empty_row, environment_here, measured_row
from .replaced_token_bce import ReplacedTokenBCE
from .sample_tokens import SampleTokens
from .sigmoid_loss import SigmoidLoss
from .workload import FORWARD, Cell, Implementation, Outcome, Shape, Workload

WORKLOADS: tuple[Workload, ...] = (InfoNCE(), ReplacedTokenBCE(), SampleTokens(), SigmoidLoss(), ColdInfoNCE())
TRUTH_FLOP = {"cuda": 3e13, "cpu": 2e11}  # above this the float64 truth would take longer than the measured call
WIDTHS = {"cuda": (384, 768, 1024, 4096), "cpu": (768,)}


class DeviceFailed(Exception):
    """The device has failed, so this process cannot measure anything more."""


@dataclass(frozen=True)
class Plan:
    """What the user asked to measure."""

    workloads: tuple[Workload, ...]
    device: torch.device
    sizes: tuple[int, ...] | None
    """Numbers of rows; None uses each workload's default sizes for this device."""
    widths: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...]
    passes: tuple[str, ...]
    only: tuple[str, ...] | None
    """Names of implementations; None measures all."""
    vocabulary: int
    seconds: float
    """Seconds to spend on timing each row."""
    longest: float
    """Seconds; a call that is predicted to take longer is skipped."""


def left_out(plan: Plan) -> dict[str, str]:
    """For each implementation that cannot run here, the reason."""
    reasons = {
        implementation.name: implementation.obstacle(plan.device)
        for workload in plan.workloads
        for implementation in _asked_for(plan, workload)
    }
    return {name: reason for name, reason in reasons.items() if reason}


def cells(plan: Plan) -> list[Cell]:
    """The cells in the order of measurement: sizes grow, and cells with the same truth are consecutive."""
    return [
        Cell(workload, implementation, shape, dtype, passes)
        for workload in plan.workloads
        for dtype in plan.dtypes
        for width in plan.widths
        for rows in sorted(plan.sizes or workload.sizes[plan.device.type])
        for shape in [workload.shape(rows, width, plan.vocabulary)]
        for passes in workload.passes
        if passes in plan.passes
        for implementation in _asked_for(plan, workload)
        if implementation.obstacle(plan.device) is None
    ]


def _asked_for(plan: Plan, workload: Workload) -> list[Implementation]:
    return [each for each in workload.implementations if plan.only is None or each.name in plan.only]


def run(plan: Plan) -> Iterator[tuple[Cell, Row | None]]:
    """Measure cell by cell; the row is None if a smaller size has already run out of memory or time.

    Raises DeviceFailed after a failure that leaves the GPU unusable.
    """
    environment = environment_here(plan.device)
    rates: dict[torch.dtype, Rates] = {}
    given_up: set[tuple[object, ...]] = set()
    pace: dict[tuple[object, ...], float] = {}  # milliseconds per unit of work, at the previous size
    for cell in cells(plan):
        series = (cell.workload, cell.implementation, cell.dtype, cell.shape.width, cell.passes)
        if series in given_up:
            yield cell, None
            continue
        work = cell.workload.flop(cell.shape, cell.passes)
        predicted = pace.get(series, 0) * work / 1e3
        if predicted > plan.longest:
            given_up.add(series)
            yield cell, empty_row(cell, f"skipped: a call would take about {predicted:.0f} s", environment)
            continue
        try:
            measured = measure(cell, plan.device, plan.seconds)
        except MemoryError as error:
            given_up.add(series)
            yield cell, empty_row(cell, "out of memory" + (f" ({error})" if str(error) else ""), environment)
        except RuntimeError as error:
            yield cell, empty_row(cell, f"failed: {error}", environment)
            _check_device(plan.device)
        else:
            if cell.dtype not in rates:
                rates[cell.dtype] = measure_rates(cell.dtype, plan.device, plan.seconds)
            if (typical := median(measured.milliseconds)) > 100:  # shorter times may be mostly overhead
                pace[series] = typical / work
            truth = truth_of(cell.workload, cell.shape, cell.dtype, plan.device)
            yield cell, measured_row(cell, measured, rates[cell.dtype], truth, environment)


@lru_cache(maxsize=1)
def truth_of(workload: Workload, shape: Shape, dtype: torch.dtype, device: torch.device) -> Outcome | None:
    """The float64 truth; None if it would take too much time or memory."""
    if workload.flop(shape, FORWARD) > TRUTH_FLOP[device.type]:
        return None
    try:
        return workload.truth(*workload.inputs(shape, dtype, device))
    except torch.OutOfMemoryError:
        return None


def _check_device(device: torch.device) -> None:
    """Raise DeviceFailed if the GPU no longer works; after an illegal access, for example, every later call fails."""
    if device.type == "cuda":
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            raise DeviceFailed(str(error).splitlines()[0]) from None
