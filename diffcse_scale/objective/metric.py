"""How a number in metrics.jsonl is computed and shown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple


class Ratio(NamedTuple):
    """A ratio of sums, `part` / (`whole` - `without`); each is the name of a statistic."""

    part: str
    whole: str
    without: str | None = None

    def of(self, known: Mapping[str, float]) -> float | None:
        """Its value; None if there was nothing to count."""
        count = known[self.whole] - (known[self.without] if self.without else 0)
        return known[self.part] / count if count > 0 else None


class Length(NamedTuple):
    """One length as a share of another: the square root of `part` / `whole`, which are sums of squares."""

    part: str
    whole: str

    def of(self, known: Mapping[str, float]) -> float | None:
        """Its value; None if one of the two is missing or 0."""
        part, whole = known.get(self.part, 0.0), known.get(self.whole, 0.0)
        return math.sqrt(part / whole) if part > 0 and whole > 0 else None


class Cosine(NamedTuple):
    """The cosine of two vectors, from their inner product and the sums of their squares."""

    product: str
    one: str
    other: str

    def of(self, known: Mapping[str, float]) -> float | None:
        """Its value; None if one of the two sums is missing or 0."""
        one, other = known.get(self.one, 0.0), known.get(self.other, 0.0)
        return known[self.product] / math.sqrt(one) / math.sqrt(other) if one > 0 and other > 0 else None


@dataclass(frozen=True)
class Metric:
    """One number of metrics.jsonl, for all its readers: log line, report, curves.png.

    Attributes:
        name: its name in metrics.jsonl.
        title: title of its curve in the report; "" if it is not drawn.
        note: text beside the curve's title.
        label: title of its console column, including the unit, at most 7 characters; "" if it has no column, because a
            log line has at most 80 characters.
        pattern: the format of a value.
        ratio: how to compute it from sums; None if it is the mean over steps and ranks of the statistic `name`.
        is_logarithmic: whether to draw it on a logarithmic axis, because a few large first values would hide the rest.
        panel: title of its panel in curves.png; "" if it has none.
    """

    name: str
    title: str = ""
    note: str = ""
    label: str = ""
    pattern: str = ""
    ratio: Ratio | Length | Cosine | None = None
    is_logarithmic: bool = False
    panel: str = ""
