"""The log lines on the console: a table at most 80 characters wide. All other numbers are in metrics.jsonl."""

from __future__ import annotations

from typing import Any

from diffcse_scale.foundation.working import clock
from diffcse_scale.runs.metric_table import METRICS

WIDTH = 7  # characters of a number and of its column title
TITLES_EVERY = 20  # lines


class LogLines:
    """A table that grows line by line; its column titles are repeated.

    Args:
        steps: number of steps of the run.

    Example:
        lines = LogLines(steps=100)
        print(lines.add(20, {"loss": 1.5, "sentences_per_second": 153.2}, seconds_left=754.0))
        #   step    loss  sent/s    left
        # 20/100  1.5000     153   12:34
    """

    def __init__(self, steps: int) -> None:
        self._steps, self._lines = steps, 0

    def step(self, step: int) -> str:
        """The first column; the lines of evaluations begin with it too."""
        return f"{step:>{len(str(self._steps))}}/{self._steps}".rjust(len("step"))

    def add(self, step: int, row: dict[str, Any], seconds_left: float | None) -> str:
        """Format a row of metrics.jsonl as a line, under new titles when they are due; None is shown as "-"."""
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
    """Format any value in at most 7 characters."""
    if value is None:
        return "-"
    texts = (style.format(value) for style in (pattern, "{:.1e}", "{:.0e}"))
    return next(text for text in texts if len(text) <= WIDTH)
