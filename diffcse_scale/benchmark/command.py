"""`diffcse-scale benchmark step`: the grid, its rows and its table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from diffcse_scale.benchmark.cells import check
from diffcse_scale.benchmark.grid import Cell
from diffcse_scale.benchmark.phases import PHASES
from diffcse_scale.benchmark.step_cell import is_trace, measure
from diffcse_scale.foundation.environment import environment
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.ownership import check_file
from diffcse_scale.foundation.strict_json import to_json

Row = dict[str, Any]


def benchmark_step(
    cells: Sequence[Cell],
    steps: int,
    json_file: Path | None = None,
    trace: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Measure cells one after another, print a table, and append each row to a file when it is measured.

    Args:
        steps: number of steps to measure in each cell, after one warm-up step.
        trace: file for a Chrome trace of one step; only for a single cell.
        overwrite: replace the file of the trace, whatever it is.

    Raises:
        InputError: a trace of several cells is requested, or a file cannot be written.
    """
    if trace is not None and len(cells) > 1:
        raise InputError(
            f"--profile writes the trace of one step, but {len(cells)} cells were requested; give each option once."
        )
    for path in (json_file, trace):
        if path is not None and not path.parent.is_dir():
            raise InputError(f"{path} cannot be written; give the name of a file in a folder that exists.")
    if trace is not None:
        check_file(trace, "a trace of diffcse-scale benchmark", is_trace, overwrite)
    if json_file is not None:
        check_rows(json_file)
    check(cells)
    console = Console()
    rows = []
    for number, cell in enumerate(cells, start=1):
        console.print(f"{number}/{len(cells)}  {describe(cell)}", highlight=False)
        row = {**measure(cell, steps, trace=trace), "environment": environment()}
        rows.append(row)
        if json_file is not None:
            with json_file.open("a", encoding="utf-8") as file:
                file.write(to_json(row) + "\n")
    print_rows(rows, console)


def check_rows(file: Path) -> None:
    """Raise InputError if rows cannot be appended to a file, or if it holds anything else."""

    def known(file: Path) -> bool:
        with file.open("rb") as rows:
            first = rows.readline(2**20)
        try:
            return {"implementation", "backbone", "sentences"} <= json.loads(first).keys()
        except (ValueError, AttributeError):
            return False

    check_file(file, "a file of such rows", known, overwrite=None)


def describe(cell: Cell) -> str:
    """Describe a cell in one line."""
    kind = "real text of at most" if cell.text else "sentences of"
    parts = [cell.implementation, cell.backbone, f"{cell.sentences:,} {kind} {cell.length} tokens", cell.precision]
    if cell.chunk:
        parts.append(f"chunks of {cell.chunk}")
    if cell.ours and cell.zero_stage != Cell.zero_stage:
        parts.append(f"ZeRO-{cell.zero_stage}")
    if cell.ours and cell.compiled:
        parts.append("compiled")
    if cell.ranks > 1:
        parts.append(f"{cell.ranks} ranks")
    if cell.rtd_weight == 0:
        parts.append("contrastive part alone")
    return ", ".join(parts)


def print_rows(rows: Sequence[Row], console: Console) -> None:
    """Print two tables: rates, and how the time is spent."""
    console.width = max(console.width, 140)  # a log file has no width
    rates, times = (Table(box=box.SIMPLE) for _ in range(2))
    for table, headers in (
        (rates, ["step", "sentences/s", "real tokens/s", "of matmul rate", "peak memory"]),
        (times, PHASES),
    ):
        table.add_column("", max_width=60)
        for header in headers:
            table.add_column(header, justify="right", no_wrap=True)
    names = Cell.__dataclass_fields__
    for row in rows:
        name = describe(Cell(**{field: row[field] for field in names}))
        rates.add_row(
            name,
            f"{row['step_seconds']:.3g} s",
            f"{row['sentences_per_second']:,.3g}",
            f"{row['real_tokens_per_second']:,.0f}",
            f"{row['utilisation']:.0%}",
            f"{row['peak_memory_gb']:.2f} GB",
        )
        total = sum(row["phases"].values())
        times.add_row(name, *(f"{row['phases'][phase] / total:.1%}" for phase in PHASES))
    console.print(rates)
    console.print(times)
