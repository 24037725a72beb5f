"""Results for people (a table) and for programs (JSON)."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.table import Table

from diffcse_scale.environment import environment
from diffcse_scale.evaluation.sts import STSResults

HEADINGS = {"dev": "DEV (for choosing)", "test": "TEST", "own": "OWN FILE"}


def as_table(results: STSResults, title: str = "") -> Table:
    """A rich table: each split under its own heading, the mean only under the seven test sets."""
    table = Table(title=title, title_justify="left", caption_justify="left")
    for column in ("split", "task"):
        table.add_column(column, no_wrap=True)
    table.add_column("pairs", justify="right")
    table.add_column("Spearman x 100", justify="right")
    remarked = any(score.remark for score in results.scores)
    if remarked:
        table.add_column("remark")
    for split, heading in HEADINGS.items():
        scores = [score for score in results.scores if score.split == split]
        for score in scores:
            remark = [score.remark] if remarked else []
            table.add_row(heading, score.name, f"{score.pairs:,}", _number(score.spearman), *remark)
        if split == "test" and results.mean_of_seven is not None:
            table.add_section()
            table.add_row(heading, "mean of the seven", "", _number(results.mean_of_seven))
        table.add_section()
    if results.missing and any(score.split != "own" for score in results.scores):
        table.caption = f"NOT MEASURED, not in the data: {', '.join(results.missing)}"
    return table


def as_json(results: STSResults, **about: Any) -> dict[str, Any]:
    """Everything measured, what it was measured with and when; `about` is added (model, data, pooling ...).

    Undefined correlations are null, so that the result is strict JSON.
    """
    return {
        **about,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "measure": "Spearman x 100 of cosine similarity and human score; subsets of a task concatenated",
        "tasks": [
            {
                "name": score.name,
                "split": score.split,
                "pairs": score.pairs,
                "spearman": _or_null(score.spearman),
                "remark": score.remark,
            }
            for score in results.scores
        ],
        "mean_of_the_seven_test_sets": _or_null(results.mean_of_seven),
        "not_measured": list(results.missing),
        "environment": environment(),
    }


def write_json(report: dict[str, Any], file: Path) -> None:
    """Write a report, and the folder it goes into if need be."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _number(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:.2f}"


def _or_null(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value
