"""How one number of metrics.jsonl is read and shown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple


class Ratio(NamedTuple):
    """A ratio of sums: `part` / (`whole` - `without`), each the name of a statistic."""

    part: str
    whole: str
    without: str | None = None

    def of(self, known: Mapping[str, float]) -> float | None:
        """Its value; None where there was nothing to count."""
        count = known[self.whole] - (known[self.without] if self.without else 0)
        return known[self.part] / count if count > 0 else None


class Length(NamedTuple):
    """One length as a share of another: the root of `part` / `whole`, which are sums of squares."""

    part: str
    whole: str

    def of(self, known: Mapping[str, float]) -> float | None:
        """Its value; None where one of them was not there."""
        part, whole = known.get(self.part, 0.0), known.get(self.whole, 0.0)
        return math.sqrt(part / whole) if part > 0 and whole > 0 else None


class Cosine(NamedTuple):
    """Of two vectors, from their inner product and the sums of their squares."""

    product: str
    one: str
    other: str

    def of(self, known: Mapping[str, float]) -> float | None:
        """Its value; None where one of them was not there."""
        one, other = known.get(self.one, 0.0), known.get(self.other, 0.0)
        return known[self.product] / math.sqrt(one) / math.sqrt(other) if one > 0 and other > 0 else None


@dataclass(frozen=True)
class Metric:
    """One number of metrics.jsonl, wherever it is read: log line, report, curves.png.

    Attributes:
        name: in metrics.jsonl.
        title: of its curve in the report; "" where it is not drawn.
        note: what the curve says beside its title.
        label: its column's title on the console, unit included, at most 7 characters; "" where it has no column: a log
            line has no more than 80.
        pattern: how a value is written.
        ratio: how it comes from sums; None where it is the mean, over steps and ranks, of the statistic of its name.
        is_logarithmic: whether a few large values at the start would hide what follows.
        panel: title of its picture in curves.png; "" where it has none.
    """

    name: str
    title: str = ""
    note: str = ""
    label: str = ""
    pattern: str = ""
    ratio: Ratio | Length | Cosine | None = None
    is_logarithmic: bool = False
    panel: str = ""
