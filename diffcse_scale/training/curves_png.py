"""One picture of a run: losses and development score against steps."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from diffcse_scale.runs.metric_table import METRICS, OF_EVALUATIONS
from diffcse_scale.runs.metrics_file import Series

log = logging.getLogger(__name__)


def draw_curves(series: Mapping[str, Series], file: Path) -> None:
    """Draw the numbers of `metrics.jsonl` into a PNG; without matplotlib (extra `plot`) say so and go on."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        log.warning("No %s: matplotlib is not installed (pip install 'diffcse-scale[plot]').", file.name)
        return
    drawn = sorted((metric for metric in METRICS.values() if metric.panel), key=lambda metric: _is_score(metric.name))
    panels = [metric for metric in drawn if metric.name in series and series[metric.name].known.values.any()]
    figure = Figure(figsize=(4.5 * len(panels), 3.2), layout="constrained")
    for axes, metric in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        axes.plot(*series[metric.name].known, marker="o" if _is_score(metric.name) else None, markersize=3)
        axes.set(title=metric.panel, xlabel="step")
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=150)


def _is_score(name: str) -> bool:
    return name.startswith(OF_EVALUATIONS)
