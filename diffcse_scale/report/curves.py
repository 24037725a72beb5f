"""A chart for every number in metrics.jsonl, with all runs in each chart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffcse_scale.objective.metric import Metric
from diffcse_scale.report.charts import MINUS, Axis, Point, axis, path, readout, steps_axis, thinned, tick_label
from diffcse_scale.runs.metric_table import METRICS, OF_EVALUATIONS, is_measured
from diffcse_scale.runs.metrics_file import NOTHING, Series
from diffcse_scale.runs.read import Run

# pixels of a chart, and of its plotting area
WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 42, 352, 10, 166

# ratio above which an axis may be logarithmic, because a few large values at the start would hide the others
LARGE_RATIO = 30


@dataclass(frozen=True)
class Line:
    """One run's line of a chart.

    Attributes:
        run: number of the run on the page.
        points: step and value, as drawn.
        last: the last value, as printed.
        readout: the result of `charts.readout`.
    """

    run: int
    points: list[Point]
    path: str
    last: str
    readout: list[list[Any]]


@dataclass(frozen=True)
class Chart:
    """One metric of all runs.

    Attributes:
        name: name in metrics.jsonl.
        evaluations: whether its values come from evaluations, and are not means over the steps of a log line.
        x_ticks, y_ticks: pixel and text of each tick of the axes.
        thinned: whether a line has more values than are drawn.
    """

    name: str
    title: str
    note: str
    evaluations: bool
    log: bool
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    thinned: bool


def charts(runs: Sequence[Run]) -> list[Chart]:
    """A chart for each number in any run's rows: those of `METRICS` in its order, then unknown ones."""
    found = dict.fromkeys(name for run in runs for name in run.metrics)
    unknown = {name: Metric(name, name) for name in found if name not in METRICS and name != "step"}
    last = max((run.step for run in runs), default=0)
    metrics = [metric for metric in (METRICS | unknown).values() if metric.name in found and metric.title]
    drawn = [_chart(metric, runs, last) for metric in metrics]
    return [chart for chart in drawn if chart is not None]


def printed(name: str) -> Callable[[float], str]:
    """The format of a metric's values: as in the console's log line, without the unit."""
    default = "{:.2f}" if name.startswith(OF_EVALUATIONS) else "{:.4g}"
    pattern = METRICS.get(name, Metric(name)).pattern or default
    return lambda value: pattern.format(value).replace("-", MINUS)


def _chart(metric: Metric, runs: Sequence[Run], last: int) -> Chart | None:
    name = metric.name
    series = {number: _series(name, run) for number, run in enumerate(runs)}
    values = np.concatenate([line.known.values for line in series.values()])
    if not len(values):
        return None
    low, high = float(values.min()), float(values.max())
    log = metric.is_logarithmic and low > 0 and high / low > LARGE_RATIO
    x, y = steps_axis(last, LEFT, RIGHT), axis([low, high], BOTTOM, TOP, log=log)
    lines = []
    for number, line in series.items():
        known = line.known.values
        if len(known):
            drawn, text = thinned(*line), printed(name)
            lines.append(Line(number, drawn, path(drawn, x, y), text(float(known[-1])), readout(drawn, x, y, text)))
    return Chart(
        name=name,
        title=metric.title,
        note=metric.note,
        evaluations=name.startswith(OF_EVALUATIONS),
        log=log,
        lines=lines,
        x_ticks=_ticks(x, percent=False),
        y_ticks=_ticks(y, percent=metric.pattern.endswith("%}")),
        thinned=any(len(line.points) < len(series[line.run].steps) for line in lines),
    )


def _series(name: str, run: Run) -> Series:
    if not is_measured(name, run.recipe.objective):
        return NOTHING  # its values are meaningless zeros
    return run.series(name)


def _ticks(marks: Axis, percent: bool) -> list[tuple[float, str]]:
    def label(tick: float) -> str:
        return f"{tick:g}".replace("-", MINUS) if marks.log else tick_label(tick, marks.ticks, percent)

    return [(marks.place(tick), label(tick)) for tick in marks.ticks]
