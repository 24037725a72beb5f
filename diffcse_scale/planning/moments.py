"""Stretches of a rehearsed step, and stretches of other sizes and depths along lines through rehearsed ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Moment(NamedTuple):
    """A stretch of the step that ends with the arrival of a gradient, or with a pass.

    Bytes are those that the step itself makes: not parameters, and a gradient only until it has arrived.
    """

    part: str  # edit, encode again, or the function that a pass computes: step where nothing is chunked; or `BETWEEN`
    held: float  # alive when the pass began: embeddings, and what the projection keeps
    peak: float  # most bytes alive during the stretch, the held ones included
    left: float  # alive at its end, the gradient that arrived included
    workspace: float  # what InfoNCE or sampling needs inside, at the peak
    gradient: str | None  # the parameter's name


def along(steps: Sequence[float], base: Moment, others: Sequence[Moment]) -> Moment:
    """The moment at base + the sum of step * (other - base), number by number."""

    def at(name: str) -> float:
        start: float = getattr(base, name)
        slopes = [getattr(other, name) - start for other in others]
        return max(0.0, start + sum(step * slope for step, slope in zip(steps, slopes, strict=True)))

    return base._replace(held=at("held"), peak=at("peak"), left=at("left"), workspace=at("workspace"))
