"""The console's log lines: a table of at most 80 columns. All other numbers are in metrics.jsonl."""

from __future__ import annotations

from typing import Any

from diffcse_scale.foundation.working import clock
from diffcse_scale.runs.metric_table import METRICS

WIDTH = 7  # characters of a number, and of its column's title
TITLES_EVERY = 20  # lines


class LogLines:
    """Lines under titles, which are repeated while the table grows.

    Args:
        steps: of the run.

    Example:
        lines = LogLines(steps=100)
        print(lines.add(20, {"loss": 1.5, "sentences_per_second": 153.2}, seconds_left=754.0))
        #   step    loss  sent/s    left
        # 20/100  1.5000     153   12:34
    """

    def __init__(self, steps: int) -> None:
        self._steps, self._lines = steps, 0

    def step(self, step: int) -> str:
        """The first column, which the lines of evaluations have as well."""
        return f"{step:>{len(str(self._steps))}}/{self._steps}".rjust(len("step"))

    def add(self, step: int, row: dict[str, Any], seconds_left: float | None) -> str:
        """The line of a row of metrics.jsonl, after the titles where it is time for them; None is shown as "-"."""
        shown = [metric for metric in METRICS.values() if metric.label and metric.name in row]
        cells = [_cell(row[metric.name], metric.pattern) for metric in shown]
        cells.append("-" if seconds_left is None else clock(seconds_left))
        line = _joined(self.step(step), cells)
        if self._lines % TITLES_EVERY == 0:
            titles = _joined("step".rjust(len(self.step(step))), [*(metric.label for metric in shown), "left"])
            line = f"{titles}\n{line}"
        self._lines += 1
        return line


def _joined(first: str, cells: list[str]) -> str:
    return " ".join([first, *(cell.rjust(WIDTH) for cell in cells)])


def _cell(value: float | None, pattern: str) -> str:
    """At most 7 characters, whatever the value."""
    if value is None:
        return "-"
    texts = (style.format(value) for style in (pattern, "{:.1e}", "{:.0e}"))
    return next(text for text in texts if len(text) <= WIDTH)
