"""Positions of the marks of a chart: from numbers to positions in the picture. The templates draw them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Point = tuple[float, float | None]

MINUS = "\N{MINUS SIGN}"

# most points of a line: two per pixel of a wide chart
MOST_POINTS = 600


@dataclass(frozen=True)
class Axis:
    """One axis: the values at its ends, its ticks, and pixels.

    Attributes:
        start, stop: pixels of `low` and `high`.
        log: whether the axis is logarithmic.
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    start: float
    stop: float
    log: bool = False

    def place(self, value: float) -> float:
        """The pixel of a value."""
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log10(value), math.log10(low), math.log10(high)
        return round(self.start + (self.stop - self.start) * (value - low) / (high - low), 2)


def axis(values: Sequence[float], start: float, stop: float, ticks: int = 4, log: bool = False) -> Axis:
    """An axis for `values` that begins and ends at round numbers. A logarithmic axis needs positive values."""
    low, high = min(values), max(values)
    if log:
        low, high = 10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high))
        decades = round(math.log10(high / low))
        every = max(1, math.ceil(decades / ticks))
        marks = [low * 10**power for power in range(0, decades + 1, every)]
        return Axis(low, high, tuple(marks), start, stop, log=True)
    if low == high:
        low, high = low - (abs(low) / 2 or 0.5), high + (abs(high) / 2 or 0.5)
    step = _round_step((high - low) / ticks)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    marks = [round(number * step, 12) for number in range(first, last + 1)]
    return Axis(marks[0], marks[-1], tuple(marks), start, stop)


def steps_axis(last: int, start: float, stop: float) -> Axis:
    """An axis from step 0 to exactly the last step, because room beyond it would suggest missing steps."""
    step = max(1, round(_round_step(max(last, 4) / 4)))
    return Axis(0, max(last, 1), tuple(float(mark) for mark in range(0, last + 1, step)), start, stop)


def _round_step(step: float) -> float:
    """The smallest number not below `step` that is 1, 2, 2.5 or 5 times a power of ten."""
    power = 10 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= step * (1 - 1e-9))


def tick_label(value: float, ticks: Sequence[float], percent: bool = False) -> str:
    """A tick's label, with enough decimals to tell the ticks apart."""
    if percent:
        return f"{100 * value:.{_decimals([100 * tick for tick in ticks])}f}%"
    largest = max(abs(tick) for tick in ticks)
    if value == 0:
        return "0"
    if largest < 1e-2:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}".replace("-", MINUS)
    if largest >= 10_000:
        return f"{value / 1000:,.{_decimals([tick / 1000 for tick in ticks])}f}k".replace("-", MINUS)
    decimals = _decimals(ticks) if len(ticks) > 1 else 0
    return f"{value:,.{decimals}f}".replace("-", MINUS)


def _decimals(ticks: Sequence[float]) -> int:
    return next((n for n in range(6) if all(math.isclose(round(tick, n), tick, abs_tol=1e-9) for tick in ticks)), 6)


def thinned(steps: NDArray[np.int64], values: NDArray[np.float64], most: int = MOST_POINTS) -> list[Point]:
    """At most about `most` points: the lowest and the highest of each equal part, so spikes stay. NaN becomes None.

    Args:
        steps, values: [n], coordinates of the points.
    """
    count, parts = len(steps), most // 2
    kept = np.arange(count)
    if count > most:
        cuts = np.arange(parts + 1) * count // parts
        kept = np.concatenate([_ends(values[first:stop]) + first for first, stop in pairwise(cuts.tolist())])
        kept = np.concatenate([[0], kept[1:-1], [count - 1]])
    heights = [None if math.isnan(value) else value for value in values[kept].tolist()]
    return list(zip(steps[kept].tolist(), heights, strict=True))


def _ends(values: NDArray[np.float64]) -> NDArray[np.intp]:
    """Indices of the lowest and the highest value in order of position; 0 if all values are NaN."""
    if np.isnan(values).all():
        return np.zeros(1, np.intp)
    return np.unique([np.nanargmin(values), np.nanargmax(values)])


def path(points: Sequence[Point], x: Axis, y: Axis) -> str:
    """An SVG path through the points, interrupted where a value is None."""
    parts, pen = [], "M"
    for step, value in points:
        if value is None:
            pen = "M"
            continue
        parts.append(f"{pen}{x.place(step):g},{y.place(value):g}")
        pen = "L"
    return "".join(parts)


def area(heights: Sequence[float], edges: Sequence[float], x: Axis, base: float, scale: float) -> str:
    """The closed outline of a histogram on the line `base`, with `scale` pixels for a height of 1."""
    steps = [f"M{x.place(edges[0]):g},{base:g}"]
    for height, left, right in zip(heights, edges[:-1], edges[1:], strict=True):
        top = round(base - scale * height, 2)
        steps.append(f"L{x.place(left):g},{top:g}L{x.place(right):g},{top:g}")
    return "".join([*steps, f"L{x.place(edges[-1]):g},{base:g}Z"])


def readout(points: Sequence[Point], x: Axis, y: Axis, text: Callable[[float], str]) -> list[list[Any]]:
    """Data for the mouse pointer: step, pixels and printed value of each point that has a value."""
    return [[step, x.place(step), y.place(value), text(value)] for step, value in points if value is not None]
