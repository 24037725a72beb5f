"""A chart for every number in metrics.jsonl, all runs in each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from diffcse_scale.report.charts import MINUS, Axis, Point, axis, path, readout, steps_axis, thinned, tick_label
from diffcse_scale.report.runs import Run
from diffcse_scale.training.metrics import CHECKPOINTS, CONSOLE, EVALUATION, TRAINING, WAITING

# pixels of a chart, and of the part that the lines are in
WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 42, 352, 10, 166

# what is drawn, and in which order; a number that is not here is drawn after these under its own name
DEVELOPMENT = "dev_spearman"
TITLES = {
    DEVELOPMENT: ("Development Spearman x 100", "evaluations"),
    "loss": ("Loss", "InfoNCE + lambda x RTD"),
    "contrastive": ("Contrastive loss", "InfoNCE"),
    "rtd": ("RTD loss", "replaced-token detection"),
    "positive_cosine": ("Cosine of positives", "the two views of a sentence"),
    "negative_cosine": ("Cosine of negatives", "different sentences"),
    "rtd_recall_replaced": ("RTD recall, replaced tokens", ""),
    "rtd_recall_kept": ("RTD recall, kept tokens", ""),
    "replaced_share": ("Replaced tokens", "share of real tokens"),
    "gradient_norm": ("Gradient norm", "before clipping"),
    "learning_rate": ("Learning rate", ""),
    "sentences_per_second": ("Sentences per second", "all devices; without evaluations"),
    "real_tokens_per_second": ("Real tokens per second", "all devices; without evaluations"),
    "padding_share": ("Padding", "share of positions"),
    "peak_memory_gb": ("Peak memory, GB", "largest of all ranks, since the start"),
}
# shown as the timing breakdown, or measured once
NOT_DRAWN = {"step", TRAINING, WAITING, CHECKPOINTS, EVALUATION, "dev_spearman_cls", "dev_spearman_mean"}
OF_DETECTION = {"rtd", "rtd_recall_replaced", "rtd_recall_kept", "replaced_share"}
# a few large values at the start would hide what follows
LOGARITHMIC = {"loss", "contrastive", "rtd", "gradient_norm"}
LARGE_RATIO = 30


@dataclass(frozen=True)
class Line:
    """One run's line of a chart.

    Attributes:
        run: its number on the page.
        points: step and value, as drawn.
        last: the last value as it is printed.
        readout: as `charts.readout` gives it.
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
        name: in metrics.jsonl.
        evaluations: whether its values are of evaluations, not means over the steps of a log line.
        ticks: pixel and text of each mark of the axes.
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
    """A chart for each number that a row of any run has, in the order of `TITLES`."""
    found = dict.fromkeys(name for run in runs for row in run.rows for name in row)
    names = [*TITLES, *(name for name in found if name not in TITLES)]
    last = max((run.step for run in runs), default=0)
    drawn = [_chart(name, runs, last) for name in names if name in found and name not in NOT_DRAWN]
    return [chart for chart in drawn if chart is not None]


def printed(name: str) -> Callable[[float], str]:
    """How values of a metric are written: as in the console's log line, but for the unit."""
    default = "{:.2f}" if name.startswith("dev_") else "{:.4g}"
    pattern = CONSOLE[name][1].split()[0] if name in CONSOLE else default  # the title has the unit
    return lambda value: pattern.format(value).replace("-", MINUS)


def _chart(name: str, runs: Sequence[Run], last: int) -> Chart | None:
    points = {number: _points(name, run) for number, run in enumerate(runs)}
    values = [value for line in points.values() for _, value in line if value is not None]
    if not values:
        return None
    log = name in LOGARITHMIC and min(values) > 0 and max(values) / min(values) > LARGE_RATIO
    x, y = steps_axis(last, LEFT, RIGHT), axis(values, BOTTOM, TOP, log=log)
    lines = []
    for number, line in points.items():
        known = [value for _, value in line if value is not None]
        if known:
            drawn, text = thinned(line), printed(name)
            lines.append(Line(number, drawn, path(drawn, x, y), text(known[-1]), readout(drawn, x, y, text)))
    title, note = TITLES.get(name, (name, ""))
    percent = name in CONSOLE and CONSOLE[name][1].endswith("%}")
    return Chart(
        name=name,
        title=title,
        note=note,
        evaluations=name.startswith("dev_"),
        log=log,
        lines=lines,
        x_ticks=_ticks(x, percent=False),
        y_ticks=_ticks(y, percent),
        thinned=any(len(line.points) < len(points[line.run]) for line in lines),
    )


def _points(name: str, run: Run) -> list[Point]:
    if name in OF_DETECTION and run.recipe.objective.rtd_weight == 0:
        return []  # zeros that mean nothing
    return [(row["step"], row[name]) for row in run.rows if name in row]


def _ticks(marks: Axis, percent: bool) -> list[tuple[float, str]]:
    def label(tick: float) -> str:
        return f"{tick:g}".replace("-", MINUS) if marks.log else tick_label(tick, marks.ticks, percent)

    return [(marks.place(tick), label(tick)) for tick in marks.ticks]
