"""Moments (stretches) of a rehearsed step, and their linear extrapolation to other sizes and depths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Moment(NamedTuple):
    """A stretch of the step that ends when a gradient arrives or a pass ends.

    Only bytes that the step itself allocates are counted: no parameters, and a gradient only until it has arrived.
    """

    part: str  # edit, encode again, `BETWEEN`, or the function that a pass computes (step if nothing is chunked)
    held: float  # bytes alive when the pass began: embeddings, and tensors saved by the projection
    peak: float  # most bytes alive during the stretch, including the held ones
    left: float  # bytes alive at its end, including the gradient that arrived
    workspace: float  # bytes that InfoNCE or sampling needs inside, at the peak
    gradient: str | None  # name of the parameter whose gradient arrived


def along(steps: Sequence[float], base: Moment, others: Sequence[Moment]) -> Moment:
    """The moment base + the sum of step * (other - base), for each of its numbers."""

    def at(name: str) -> float:
        start: float = getattr(base, name)
        slopes = [getattr(other, name) - start for other in others]
        return max(0.0, start + sum(step * slope for step, slope in zip(steps, slopes, strict=True)))

    return base._replace(held=at("held"), peak=at("peak"), left=at("left"), workspace=at("workspace"))
