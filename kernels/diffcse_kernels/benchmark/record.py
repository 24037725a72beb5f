"""The rows of the CSV, and how their figures are computed from the measurements."""

from __future__ import annotations

import csv
import datetime
import importlib.metadata
import platform
import subprocess
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path

import numpy as np
import torch

from .measure import Measured, Rates
from .workload import DTYPES, Cell, Outcome

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Environment:
    """The device, versions, commit and date that each row records."""

    device: str
    torch: str
    triton: str
    commit: str
    date: str


@dataclass(frozen=True)
class Row:
    """One line of the CSV; None for a figure that does not exist. Fractions are of the rates of the same run."""

    kernel: str
    implementation: str
    passes: str
    rows: int
    columns: int
    width: int
    dtype: str
    status: str
    """"ok", or why there are no figures."""
    device: str
    torch: str
    triton: str
    commit: str
    date: str
    median_ms: float | None = None
    p20_ms: float | None = None
    p80_ms: float | None = None
    floor_ms: float | None = None
    """Time of the least work at the measured rates."""
    tflops: float | None = None
    """The least work divided by the median time."""
    matmul_fraction: float | None = None
    gbps: float | None = None
    """The least traffic divided by the median time."""
    copy_fraction: float | None = None
    matmul_tflops: float | None = None
    copy_gbps: float | None = None
    peak_mib: float | None = None
    """Peak memory beyond the inputs, including the gradients."""
    error: float | None = None
    gradient_error: float | None = None


PROGRAM = "diffcse_kernels.benchmark"  # written into the metadata of its pictures
COLUMNS = tuple(field.name for field in fields(Row))


def environment_here(device: torch.device) -> Environment:
    return Environment(
        device=device_name(device),
        torch=torch.__version__,
        triton=_version("triton"),
        commit=_commit(),
        date=datetime.date.today().isoformat(),
    )


def empty_row(cell: Cell, status: str, environment: Environment) -> Row:
    """A row without figures; its status says why."""
    return Row(
        kernel=cell.workload.name,
        implementation=cell.implementation.name,
        passes=cell.passes,
        dtype=DTYPE_NAMES[cell.dtype],
        status=status,
        **cell.shape._asdict(),
        **asdict(environment),
    )


def measured_row(cell: Cell, measured: Measured, rates: Rates, truth: Outcome | None, environment: Environment) -> Row:
    workload, shape = cell.workload, cell.shape
    p20, median, p80 = np.quantile(measured.milliseconds, (0.2, 0.5, 0.8))
    flop, traffic = workload.flop(shape, cell.passes), workload.traffic(shape, cell.dtype, cell.passes)
    figures: dict[str, float | None] = {
        "median_ms": median,
        "p20_ms": p20,
        "p80_ms": p80,
        "floor_ms": floor_ms(flop if workload.counts_flop else 0, traffic, rates),
        "gbps": traffic / median / 1e6,
        "copy_fraction": traffic / median * 1e3 / rates.bytes,
        "copy_gbps": rates.bytes / 1e9,
    }
    if workload.counts_flop:
        figures |= {
            "tflops": flop / median / 1e9,
            "matmul_fraction": flop / median * 1e3 / rates.flop,
            "matmul_tflops": rates.flop / 1e12,
        }
    if measured.peak_bytes is not None:
        figures["peak_mib"] = measured.peak_bytes / 2**20
    if truth is not None and cell.implementation.comparable:
        figures["error"], figures["gradient_error"] = workload.errors(measured.outcome, truth)
    described = asdict(empty_row(cell, "ok", environment))
    rounded = {name: None if value is None else float(f"{value:.6g}") for name, value in figures.items()}
    return Row(**described | rounded)


def floor_ms(flop: int, traffic: int, rates: Rates) -> float:
    """Lower bound on a call's time: its products at a large product's rate, or its traffic at a large copy's rate."""
    return 1e3 * max(flop / rates.flop, traffic / rates.bytes)


def append(path: Path, row: Row) -> None:
    """Append one line, which is on disk when this returns."""
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(asdict(row))


def is_picture(path: Path) -> bool:
    """Whether `plot` may have drawn this file. Earlier versions left Matplotlib's own name in the metadata."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(512)
    return PROGRAM.encode() in head or b"Matplotlib" in head


def read(path: Path) -> list[Row]:
    """Read the rows. Raises ValueError if `append` did not write the file."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{path} is not a CSV of this benchmark: its columns differ")
        return [_parsed(record) for record in reader]


def _parsed(record: dict[str, str]) -> Row:
    values: dict[str, object] = {}
    for field in fields(Row):
        text = record[field.name]
        if field.type == "str":
            values[field.name] = text
        elif field.type == "int":
            values[field.name] = int(text)
        else:
            values[field.name] = float(text) if text else None
    return Row(**values)  # type: ignore[arg-type]


@cache
def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model, cpuinfo = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{model}, {torch.get_num_threads()} threads"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _commit() -> str:
    """The commit of the checkout that tracks this file; empty if there is none."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", __file__], capture_output=True, check=True)
        described = subprocess.run(
            [*git, "describe", "--always", "--dirty", "--exclude=*"], capture_output=True, check=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return described.stdout.strip()
