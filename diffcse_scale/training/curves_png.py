"""One plot of a run: losses and development score against steps."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from diffcse_scale.foundation.durable import TEMPORARY, publish
from diffcse_scale.foundation.errors import one_line
from diffcse_scale.runs.metric_table import METRICS, OF_EVALUATIONS
from diffcse_scale.runs.metrics_file import MetricsFile, Series

log = logging.getLogger(__name__)


def draw_curves(metrics: MetricsFile, file: Path) -> None:
    """Plot the numbers of `metrics.jsonl` as a PNG; a failure is only logged."""
    try:
        _draw(metrics.series(), file)
    except ImportError:
        log.warning("No %s: matplotlib is not installed (pip install 'diffcse-scale[plot]').", file.name)
    except Exception as error:  # a missing plot must not fail the run
        log.warning("No %s: %s.", file.name, one_line(error))


def _draw(series: Mapping[str, Series], file: Path) -> None:
    from matplotlib.figure import Figure

    drawn = sorted((metric for metric in METRICS.values() if metric.panel), key=lambda metric: _is_score(metric.name))
    panels = [metric for metric in drawn if metric.name in series and series[metric.name].known.values.any()]
    figure = Figure(figsize=(4.5 * len(panels), 3.2), layout="constrained")
    for axes, metric in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        axes.plot(*series[metric.name].known, marker="o" if _is_score(metric.name) else None, markersize=3)
        axes.set(title=metric.panel, xlabel="step")
        axes.grid(alpha=0.3)
    fresh = file.with_name(file.name + TEMPORARY)
    figure.savefig(fresh, dpi=150, format="png")
    publish(fresh, file)


def _is_score(name: str) -> bool:
    return name.startswith(OF_EVALUATIONS)
