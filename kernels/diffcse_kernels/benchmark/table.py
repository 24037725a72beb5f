"""Print the rows as tables in a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from rich import box
from rich.console import Console
from rich.table import Table

from .record import Row

HEADERS = ("rows", "ms", "p20 .. p80", "TFLOP/s", "GB/s", "MiB", "error", "of gradients")


def print_tables(rows: Iterable[Row]) -> None:
    """Print a table for each kernel, dtype, width and pass; percentages are of the rates measured in the same run."""
    console = Console()
    console.width = max(console.width, 120)  # a log file has no width of its own
    for (kernel, dtype, width, passes), members in groupby(sorted(rows, key=_group), _group):
        table = Table(title=f"{kernel}, {passes}, {dtype}, width {width}", title_justify="left", box=box.SIMPLE)
        table.add_column("implementation")
        for header in HEADERS:
            table.add_column(header, justify="right", no_wrap=True)
        for row in members:
            table.add_row(row.implementation, f"{row.rows:,}", *_figures(row))
        console.print(table)


def line(row: Row) -> str:
    """One row as a line of text, printed during the run."""
    shape = f"{row.rows} x {row.columns} x {row.width}"
    figures = row.status if row.median_ms is None else f"{row.median_ms:.3f} ms"
    return f"{row.kernel:18} {row.passes:16} {row.dtype}  {shape:24} {row.implementation:15} {figures}"


def _group(row: Row) -> tuple[str, str, int, str]:
    return row.kernel, row.dtype, row.width, row.passes


def _figures(row: Row) -> list[str]:
    if row.median_ms is None:
        return [row.status.partition(":")[0]]
    return [
        f"{row.median_ms:.3f}",
        f"{row.p20_ms:.3f} .. {row.p80_ms:.3f}",
        _with_share(row.tflops, row.matmul_fraction),
        _with_share(row.gbps, row.copy_fraction),
        "" if row.peak_mib is None else f"{row.peak_mib:,.1f}",
        "" if row.error is None else f"{row.error:.1e}",
        "" if row.gradient_error is None else f"{row.gradient_error:.1e}",
    ]


def _with_share(rate: float | None, fraction: float | None) -> str:
    return "" if rate is None else f"{rate:.3g} ({fraction:.0%})"
