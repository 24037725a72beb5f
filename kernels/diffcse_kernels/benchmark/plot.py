"""Log-log plots of time and memory against the number of rows, one PNG for each kernel, pass and dtype."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

from .record import PROGRAM, Row

# An implementation has the same style in every picture. Colour-blind readers can tell the colours apart (Okabe, Ito).
STYLES = {
    "triton": ("#D55E00", "o"),
    "triton-masked": ("#D55E00", "*"),
    "reference": ("#0072B2", "s"),
    "reference-masked": ("#0072B2", "p"),
    "eager": ("#000000", "v"),
    "compiled": ("#009E73", "^"),
    "chunked": ("#E69F00", "D"),
    "gumbel": ("#E69F00", "D"),
    "broadcast": ("#999999", "x"),
    "cce": ("#CC79A7", "P"),
    "cce-unfiltered": ("#CC79A7", "X"),
    "compiled-gumbel": ("#CC79A7", "P"),
    "liger": ("#56B4E9", "<"),
    "inf-cl": ("#8B5A2B", ">"),
}
ROW_NAMES = {"replaced_token_bce": "tokens", "sample_tokens": "tokens"} | dict.fromkeys(
    ("info_nce", "info_nce_cold", "sigmoid_loss"), "queries = keys"
)


def plot(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draw the measured rows; if several rows measure the same thing, only the last is drawn."""
    latest = {
        (row.device, row.kernel, row.passes, row.dtype, row.width, row.implementation, row.rows, row.columns): row
        for row in rows
        if row.median_ms is not None
    }
    ordered = sorted(latest.values(), key=lambda row: (*_picture(row), row.width, row.rows))
    several_devices = len({row.device for row in ordered}) > 1
    paths = []
    for (device, kernel, passes, dtype), members in groupby(ordered, _picture):
        name = f"{kernel}_{passes}_{dtype}" + (f"_{_slug(device)}" if several_devices else "")
        paths.append(folder / f"{name}.png")
        _draw(list(members), f"{kernel}, {passes}, {dtype}\n{device}", paths[-1])
    return paths


def _picture(row: Row) -> tuple[str, str, str, str]:
    return row.device, row.kernel, row.passes, row.dtype


def _draw(rows: list[Row], title: str, path: Path) -> None:
    widths = sorted({row.width for row in rows})
    figure, axes = pyplot.subplots(
        2, len(widths), figsize=(3 + 4 * len(widths), 8), squeeze=False, sharex=True, sharey="row", layout="constrained"
    )
    for column, width in enumerate(widths):
        members = [row for row in rows if row.width == width]
        time, memory = axes[:, column]
        time.set_title(f"width {width}")
        for name in [name for name in STYLES if any(row.implementation == name for row in members)]:
            own = [row for row in members if row.implementation == name]
            _line(time, name, [(row.rows, row.median_ms) for row in own])
            _line(memory, name, [(row.rows, row.peak_mib) for row in own if row.peak_mib])
        floor = {row.rows: row.floor_ms for row in members}
        time.plot(floor.keys(), floor.values(), "--", color="black", linewidth=1, label="floor at the measured rates")
        memory.set_xlabel(ROW_NAMES[rows[0].kernel])
        for each in (time, memory):
            each.set_xscale("log", base=2)
            each.set_yscale("log")
            each.xaxis.set_major_formatter("{x:,.0f}")
            each.tick_params("x", rotation=45)
            each.grid(alpha=0.3)
    axes[0, 0].set_ylabel("median time, ms")
    axes[1, 0].set_ylabel("memory over the inputs, MiB")
    lines = {line.get_label(): line for each in axes[0] for line in each.get_lines()}
    figure.legend(lines.values(), lines.keys(), loc="outside right center")
    figure.suptitle(title, fontsize="medium")
    figure.savefig(path, dpi=120, metadata={"Software": PROGRAM})
    pyplot.close(figure)


def _line(axes: Axes, name: str, points: list[tuple[int, float | None]]) -> None:
    if points:
        colour, marker = STYLES[name]
        axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=4, linewidth=1.2, label=name)


def _slug(text: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in text).strip("-")
