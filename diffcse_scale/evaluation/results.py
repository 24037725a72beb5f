"""Results for people (a table) and for programs (JSON)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from diffcse_scale.evaluation.scores import Difference, Results, Score, differences
from diffcse_scale.foundation.environment import environment

BROKEN = 20  # characters that wrapping may save in the columns split and task
WIDE = 1000  # columns of an imaginary terminal on which no table is cut
HEADINGS = {"dev": "DEV (for choosing)", "test": "TEST", "own": "OWN FILE"}


def print_table(results: Sequence[Results], console: Console) -> None:
    """Print one table of a suite. If it is wider than the terminal, print one per model, each beside the first."""
    table = as_table(results)
    needed = console.measure(table, options=console.options.update(width=WIDE)).maximum - BROKEN
    if len(results) < 3 or needed <= console.width:
        console.print(table)
        return
    for index in range(1, len(results)):
        console.print(as_table(results, beside=[index]))


def as_table(results: Sequence[Results], beside: Sequence[int] | None = None) -> Table:
    """A rich table of one suite with a column for each model: A, B ... in their order.

    Args:
        results: the results of all models.
        beside: indices of the models to show beside the first; None for all.

    Each group of tasks has its own section, followed by the means over that group. Every model after the first has a
    second column with its difference from the first and the p-value. With several models an interval stands below
    its value.
    """
    shown = [0, *(range(1, len(results)) if beside is None else beside)]
    table = Table(title=results[0].suite, title_justify="left", caption_justify="left")
    for column in ("split", "task"):
        table.add_column(column, overflow="fold")  # on a narrow terminal words break, but numbers stay whole
    for column in ("items", *_headings(results, shown)):
        table.add_column(column, justify="right", no_wrap=True)
    remarked = any(score.remark for of_model in results for score in of_model.scores)
    if remarked:
        table.add_column("remark")
    changes = {
        index: {change.name: change for change in differences(results[index], results[0])} for index in shown[1:]
    }
    apart = "\n" if changes else " "
    for section in _sections(results[0]):
        for score in section:
            of_models = {index: results[index][score.name] for index in shown}
            cells = [HEADINGS.get(score.group, score.group), score.name, f"{score.count:,}"]
            cells += [score.measure] if len(_measures(results)) > 1 else []
            for index, one in of_models.items():
                cells.append(_value(one, apart))
                if index in changes:
                    cells.append(_difference(score, changes[index].get(score.name), apart))
            remarks = dict.fromkeys(filter(None, (one.remark for one in of_models.values())))
            cells += ["; ".join(remarks)] if remarked else []
            table.add_row(*map(escape, cells))
        table.add_section()
    table.caption = escape("\n".join(_captions(results)))
    return table


def as_json(results: Results, **about: Any) -> dict[str, Any]:
    """All results with date and environment; `about` is added (model, data, pooling ...).

    Undefined values become null, because strict JSON has no NaN.
    """
    return {
        "suite": results.suite,
        **about,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "tasks": [_task_as_json(score) for score in results.scores],
        "means": [_mean_as_json(score) for score in results.means],
        "not_measured": list(results.missing),
        "details": results.details,
        "environment": environment(),
    }


def comparison_as_json(results: Results, baseline: Results, **about: Any) -> dict[str, Any]:
    """Differences `results` - `baseline`, with intervals and p-values; `about` is added (model, against)."""
    found = [vars(difference) for difference in differences(results, baseline)]
    return {"suite": results.suite, **about, "differences": found}


def _task_as_json(score: Score) -> dict[str, Any]:
    return {
        "name": score.name,
        "group": score.group,
        "measure": score.measure,
        "value": None if math.isnan(score.value) else score.value,
        "interval": score.interval,
        "count": score.count,
        "remark": score.remark,
    }


def _mean_as_json(score: Score) -> dict[str, Any]:
    task = _task_as_json(score)
    return {name: task[name] for name in ("name", "measure", "value", "interval")}


def _sections(results: Results) -> list[list[Score]]:
    """Scores group by group. The means of a group follow it in their own section."""
    groups = dict.fromkeys(score.group for score in results.scores)
    kinds = (results.scores, results.means)
    sections = [[score for score in kind if score.group == group] for group in groups for kind in kinds]
    return [section for section in sections if section]


def _headings(results: Sequence[Results], shown: Sequence[int]) -> list[str]:
    """Headings of the value columns. A measure common to all tasks is in the heading, otherwise in its own column."""
    measures = _measures(results)
    common = measures[0] if len(measures) == 1 else "value"
    headings = [common if len(shown) == 1 else f"A: {common}"]
    for index in shown[1:]:
        headings += [_letter(index), f"{_letter(index)} - A"]
    return headings if len(measures) == 1 else ["measure", *headings]


def _measures(results: Sequence[Results]) -> list[str]:
    return list(dict.fromkeys(score.measure for score in results[0].scores))


def _captions(results: Sequence[Results]) -> list[str]:
    captions = []
    if any(score.interval for score in results[0].scores):
        captions.append("[ ]: 95% bootstrap interval over the items")
    if len(results) > 1:
        captions.append("p: paired bootstrap test against A; over the tasks corrected for their number (Holm)")
    if results[0].missing:
        captions.append(f"NOT MEASURED, not in the data: {', '.join(results[0].missing)}")
    return captions


def model_titles(models: Sequence[str]) -> list[str]:
    """Titles of a table's models: with several models, each starts with the letter of its column."""
    return list(models) if len(models) == 1 else [f"{_letter(index)}: {model}" for index, model in enumerate(models)]


def _letter(index: int) -> str:
    return chr(ord("A") + index)


def _value(score: Score, apart: str) -> str:
    """The value and its interval, separated by `apart`."""
    if math.isnan(score.value):
        return "undefined"
    digits = _digits(score)
    if score.interval is None:
        return f"{score.value:.{digits}f}"
    low, high = score.interval
    return f"{score.value:.{digits}f}{apart}[{low:.{digits}f}, {high:.{digits}f}]"


def _difference(score: Score, difference: Difference | None, apart: str) -> str:
    """The difference and its p-value, separated by `apart`."""
    if difference is None:
        return ""
    p = difference.p if difference.corrected is None else difference.corrected
    return f"{difference.value:+.{_digits(score)}f}{apart}(p {p:.3f})"


def _digits(score: Score) -> int:
    return 2 if score.measure.endswith("x 100") else 3
