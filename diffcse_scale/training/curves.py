"""One picture of a run: losses and development score against steps."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

PANELS = (("contrastive", "InfoNCE"), ("rtd", "RTD loss"), ("dev_spearman", "development Spearman x 100"))


def draw_curves(rows: list[dict[str, Any]], file: Path) -> None:
    """Draw the rows of `metrics.jsonl` into a PNG; without matplotlib (extra `plot`) say so and go on."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        log.warning("No %s: matplotlib is not installed (pip install 'diffcse-scale[plot]').", file.name)
        return
    panels = [(name, title) for name, title in PANELS if any(row.get(name) for row in rows)]
    figure = Figure(figsize=(4.5 * len(panels), 3.2), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        axes.plot(*zip(*points, strict=True), marker="o" if name.startswith("dev") else None, markersize=3)
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=150)
