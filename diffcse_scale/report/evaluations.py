"""The results of `diffcse-scale evaluate` that are stored in the runs: tables, and dots with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from diffcse_scale.evaluation.recorded import data_name
from diffcse_scale.evaluation.suites import SUITES
from diffcse_scale.report.charts import MINUS, Axis, axis, tick_label
from diffcse_scale.runs.read import Run


@dataclass(frozen=True)
class Interval:
    """One measured value of one run.

    Attributes:
        low, value, high: pixels; low and high equal `value` if no interval was measured.
        text, interval: the value and its interval, as printed.
    """

    run: int
    text: str
    interval: str
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Measured:
    """A line of an evaluation: a task or a mean over tasks, with the values of all runs."""

    name: str
    measure: str
    group: str
    count: str
    remark: str
    mean: bool
    values: list[Interval]


@dataclass(frozen=True)
class Suite:
    """An evaluation of all runs.

    Attributes:
        about: run number, and how the run was measured.
        measure: the measure of all rows; empty if there are several.
        ticks: pixel and text of the ticks of the common axis; empty if there are several measures.
    """

    name: str
    about: list[tuple[int, str]]
    measure: str
    rows: list[Measured]
    ticks: list[tuple[float, str]]

    @property
    def intervals(self) -> bool:
        """Whether any value has an interval."""
        return any(value.interval for row in self.rows for value in row.values)


# pixels of the dots and intervals beside a table
DOTS_LEFT, DOTS_RIGHT = 14, 166


def suites(runs: Sequence[Run]) -> list[Suite]:
    """A table for each suite and data that any run has been evaluated on."""
    found = {name: report["suite"] for run in runs for name, report in run.evaluations.items()}
    order = [*sorted(SUITES, key=lambda name: SUITES[name].descriptive), *found.values()]
    names = sorted(found, key=lambda name: (order.index(found[name]), name))
    return [_suite(found[name], [run.evaluations.get(name, {}) for run in runs]) for name in names]


def _suite(name: str, evaluations: Sequence[dict[str, Any]]) -> Suite:
    found = [{(entry["name"], entry["measure"]): entry for entry in _entries(each)} for each in evaluations]
    rows = dict.fromkeys(key for each in found for key in each)
    one_measure = len({measure for _, measure in rows}) == 1
    numbers = [n for each in found for entry in each.values() for n in (entry["value"], *(entry.get("interval") or ()))]
    x = axis([number for number in numbers if number is not None] or [0.0], DOTS_LEFT, DOTS_RIGHT, ticks=3)
    about = [
        (number, f"{each.get('pooling')}, at most {each.get('max_length')} tokens, {each['data']}, {each['date'][:10]}")
        for number, each in enumerate(evaluations)
        if each
    ]
    data = data_name(next(filter(None, evaluations)))
    return Suite(
        name=" ".join(filter(None, (SUITES[name].title if name in SUITES else name, data))),
        about=about,
        measure=next(iter(rows))[1] if one_measure else "",
        rows=[_measured([each.get(row) for each in found], x) for row in rows],
        ticks=[(x.place(tick), tick_label(tick, x.ticks)) for tick in x.ticks] if one_measure else [],
    )


def _entries(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    means = [{**mean, "mean": True} for mean in evaluation.get("means") or []]
    return [*(evaluation.get("tasks") or []), *means]


def _measured(entries: Sequence[dict[str, Any] | None], x: Axis) -> Measured:
    first = next(entry for entry in entries if entry is not None)
    return Measured(
        name=first["name"],
        measure=first["measure"],
        group=first.get("group", ""),
        count=f"{first['count']:,}" if first.get("count") else "",
        remark="; ".join(dict.fromkeys(entry["remark"] for entry in entries if entry and entry.get("remark"))),
        mean=bool(first.get("mean")),
        values=[_interval(number, entry, x) for number, entry in enumerate(entries) if entry is not None],
    )


def _interval(number: int, entry: dict[str, Any], x: Axis) -> Interval:
    value, ends = entry["value"], entry.get("interval")
    if value is None:
        return Interval(number, "undefined", "", None, None, None)
    text = _number(value)
    if ends is None:
        return Interval(number, text, "", x.place(value), x.place(value), x.place(value))
    interval = f"{_number(ends[0])} to {_number(ends[1])}"
    return Interval(number, text, interval, x.place(value), x.place(ends[0]), x.place(ends[1]))


def _number(value: float) -> str:
    return (f"{value:.2f}" if abs(value) >= 10 else f"{value:.3f}").replace("-", MINUS)
