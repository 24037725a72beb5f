"""The command line of the benchmark."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import torch

from . import record
from .crossover import crossovers
from .record import device_name
from .suite import WIDTHS, WORKLOADS, DeviceFailed, Plan, cells, left_out, run
from .workload import DTYPES, PASSES, Workload

CSV_NAME = "kernels.csv"


class Mistake(Exception):
    """A user's mistake, described in one sentence."""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Mistake(message)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. A user's mistake prints one sentence and exits with code 2; Ctrl-C keeps the rows so far."""
    try:
        options = _parser().parse_args(arguments)
        options.command(options)
    except Mistake as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _parser() -> Parser:
    parser = Parser(prog="python -m diffcse_kernels.benchmark", description=__doc__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for workload in WORKLOADS:
        name = workload.name.replace("_", "-")
        _add_run(commands, name, (workload,), f"Measure {workload.name} and its alternatives.")
    _add_run(commands, "all", WORKLOADS, "Measure all functions.")

    row = commands.add_parser("crossovers", help="Print this device's row for diffcse_kernels/crossovers.py.")
    seconds = "Seconds to time each size (default: %(default)s)."
    row.add_argument("--seconds", type=_positive_number, default=0.3, help=seconds)
    row.set_defaults(command=_crossovers)

    plot = commands.add_parser("plot", help="Draw the rows of a CSV file.")
    plot.add_argument("csv", type=Path, help="The CSV file.")
    plot.add_argument("--output", type=Path, help="Folder of the PNG files (default: the folder of the CSV file).")
    plot.set_defaults(command=_plot)
    return parser


def _add_run(
    commands: argparse._SubParsersAction[Parser], name: str, workloads: tuple[Workload, ...], text: str
) -> None:
    parser = commands.add_parser(name, help=text, description=text)
    add = parser.add_argument
    add(
        "--sizes",
        type=_positive_integer,
        nargs="+",
        metavar="N",
        help="Numbers of queries or tokens (default: by device).",
    )
    widths = "Embedding widths (default: 384 768 1024 4096; on a CPU 768)."
    add("--widths", type=_positive_integer, nargs="+", metavar="D", help=widths)
    add("--dtypes", choices=DTYPES, nargs="+", help="Dtypes (default: all; on a CPU fp32).")
    add("--passes", choices=PASSES, nargs="+", default=PASSES, help="Passes to measure (default: both).")
    add("--only", nargs="+", metavar="NAME", help=f"Measure only these of {', '.join(_names(workloads))}.")
    vocabulary = "Vocabulary size of sample_tokens (default: %(default)s)."
    add("--vocabulary", type=_positive_integer, default=30_522, help=vocabulary)
    add("--device", choices=("cpu", "cuda"), help="Device (default: cuda where there is one).")
    add("--seconds", type=_positive_number, default=1.0, help="Seconds to time each row (default: %(default)s).")
    longest = "Skip larger sizes once a call would take more than this many seconds (default: %(default)s)."
    add("--longest", type=_positive_number, default=30.0, help=longest)
    output = "Folder of the CSV and PNG files (default: %(default)s)."
    add("--output", type=Path, default=Path("runs/kernels"), help=output)
    parser.set_defaults(command=_run, workloads=workloads)


def _run(options: argparse.Namespace) -> None:
    if find_spec("rich") is None:
        raise Mistake("the tables need the package rich: pip install rich")
    from .table import line, print_tables

    plan = _plan(options)
    path = _csv_to_append_to(options.output)
    print(f"{device_name(plan.device)}; torch {torch.__version__}")
    if plan.device.type != "cuda":
        print("Triton needs a GPU: only the reference and the baselines are measured.")
    for name, reason in left_out(plan).items():
        print(f"left out: {name} ({reason})")
    total, rows = len(cells(plan)), []
    try:
        for count, (_, row) in enumerate(run(plan), start=1):
            if row is not None:
                record.append(path, row)
                rows.append(row)
                print(f"[{count}/{total}] {line(row)}", flush=True)
    except DeviceFailed as error:
        raise Mistake(f"the device stopped responding ({error}); the rows so far are kept") from None
    finally:
        print_tables(rows)
        print(f"rows: {path}")
    if find_spec("matplotlib") is None:
        print("no PNGs: matplotlib is not installed (pip install matplotlib, then draw them with the command plot)")
    else:
        _draw(path, options.output)


def _plan(options: argparse.Namespace) -> Plan:
    if options.device == "cuda" and not torch.cuda.is_available():
        raise Mistake("--device cuda: torch finds no GPU here")
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    known = _names(options.workloads)
    for name in options.only or ():
        if name not in known:
            hint = "".join(f" (did you mean {near}?)" for near in difflib.get_close_matches(name, known, n=1))
            raise Mistake(f"--only {name}: no such implementation{hint}; there are {', '.join(known)}")
    plan = Plan(
        workloads=options.workloads,
        device=device,
        sizes=tuple(options.sizes) if options.sizes else None,
        widths=tuple(options.widths or WIDTHS[device.type]),
        dtypes=tuple(DTYPES[name] for name in options.dtypes or (DTYPES if device.type == "cuda" else ("fp32",))),
        passes=tuple(options.passes),
        only=tuple(options.only) if options.only else None,
        vocabulary=options.vocabulary,
        seconds=options.seconds,
        longest=options.longest,
    )
    if not any(passes in workload.passes for workload in plan.workloads for passes in plan.passes):
        raise Mistake("--passes forward+backward: sample_tokens has no backward pass")
    if not cells(plan):
        raise Mistake("nothing to measure: " + "; ".join(f"{name} {reason}" for name, reason in left_out(plan).items()))
    return plan


def _csv_to_append_to(folder: Path) -> Path:
    """The CSV file in the folder. Rows of earlier runs are kept, and a file with other columns is not touched."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Mistake(f"--output {folder}: {error.strerror}") from None
    path = folder / CSV_NAME
    if path.exists():
        _rows(path)
    _check_pictures(folder)
    return path


def _check_pictures(folder: Path) -> None:
    """Refuse to overwrite pictures that this program did not draw; pictures of earlier runs may be drawn again."""
    for workload in WORKLOADS:
        for picture in folder.glob(f"{workload.name}_*.png"):
            if not record.is_picture(picture):
                raise Mistake(
                    f"{picture} is in the way of a picture and was not drawn by this program; give another --output"
                )


def _rows(path: Path) -> list[record.Row]:
    try:
        return record.read(path)
    except FileNotFoundError:
        raise Mistake(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise Mistake(str(error)) from None


def _crossovers(options: argparse.Namespace) -> None:
    if not torch.cuda.is_available():
        raise Mistake("crossovers compares Triton with the reference and needs a GPU; torch finds none here")
    row = crossovers(torch.device("cuda"), options.seconds, print)
    print(f"put this row into MEASURED of diffcse_kernels/crossovers.py:\n    {row}")


def _plot(options: argparse.Namespace) -> None:
    if find_spec("matplotlib") is None:
        raise Mistake("plot needs the package matplotlib: pip install matplotlib")
    folder = options.output or options.csv.parent
    _rows(options.csv)
    folder.mkdir(parents=True, exist_ok=True)
    _check_pictures(folder)
    _draw(options.csv, folder)


def _draw(path: Path, folder: Path) -> None:
    from .plot import plot

    for picture in plot(_rows(path), folder):
        print(f"picture: {picture}")


def _names(workloads: Sequence[Workload]) -> list[str]:
    return list(dict.fromkeys(each.name for workload in workloads for each in workload.implementations))


def _positive_integer(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def _positive_number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return number
