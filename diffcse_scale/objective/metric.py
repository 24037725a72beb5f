"""How one number of metrics.jsonl is read and shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Ratio(NamedTuple):
    """A ratio of sums: `part` / (`whole` - `without`), each the name of a statistic."""

    part: str
    whole: str
    without: str | None = None


@dataclass(frozen=True)
class Metric:
    """One number of metrics.jsonl, wherever it is read: log line, report, curves.png.

    Attributes:
        name: in metrics.jsonl.
        title: of its curve in the report; "" where it is not drawn.
        note: what the curve says beside its title.
        label: before the value on the console's log line.
        pattern: how a value is written there, unit included; "" leaves it out of the line.
        ratio: how it comes from statistics; None where it is the mean, over steps and ranks, of the one of its name.
        is_logarithmic: whether a few large values at the start would hide what follows.
        panel: title of its picture in curves.png; "" where it has none.
    """

    name: str
    title: str = ""
    note: str = ""
    label: str = ""
    pattern: str = ""
    ratio: Ratio | None = None
    is_logarithmic: bool = False
    panel: str = ""
