"""`diffcse-scale doctor`: one table about this machine, or about every node of a job."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from huggingface_hub.constants import HF_HUB_CACHE
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from diffcse_scale.distributed import gather_objects, is_main, local_rank
from diffcse_scale.doctor import device_checks, host_checks
from diffcse_scale.doctor.doctor_options import DoctorOptions
from diffcse_scale.doctor.exchange import MEETING, measure, measure_here, meet, shared_folder
from diffcse_scale.doctor.machine import look
from diffcse_scale.doctor.verdict import Row, Verdict
from diffcse_scale.foundation.environment import host_name
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.exit_codes import ExitCode
from diffcse_scale.foundation.ownership import WRITTEN_BY, check_file, json_of, write_file
from diffcse_scale.foundation.strict_json import to_json
from diffcse_scale.rendezvous import leave
from diffcse_scale.text.cache import chosen_folder

COMMAND = "diffcse-scale doctor"
CHECKS = (*host_checks.CHECKS[:1], *device_checks.CHECKS, *host_checks.CHECKS[1:])
COLOURS = {Verdict.OK: "green", Verdict.SLOWER: "yellow", Verdict.BROKEN: "bold red"}
Tables = Mapping[str, Sequence[Row]]


def examine(options: DoctorOptions) -> ExitCode:
    """Check this machine, or as one of several ranks every node of the job, and print the table.

    Returns:
        0, or 2 if something will not work.

    Raises:
        InputError: a file cannot be written, or ranks cannot be started here.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if options.ranks and several:
        raise InputError("--ranks starts processes itself, but this is already one of several; leave it out.")
    if options.json_file is not None:
        check_file(options.json_file, f"a table of {COMMAND}", json_of(COMMAND), options.overwrite)
    on_devices = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"
    if options.ranks and on_devices and options.ranks > torch.cuda.device_count():
        raise InputError(
            f"--ranks {options.ranks}: every rank needs a device, but there are {torch.cuda.device_count()}."
        )
    # only one rank per node looks: contexts of all ranks on all devices would take memory that the table then misses
    rows = own_rows(options.output) if local_rank() == 0 else []
    if several:
        return _examine_job(rows, options, on_devices)
    between = measure_here(options.ranks, options.seconds, on_devices) if options.ranks else []
    return _report({host_name(): rows}, between, options)


def own_rows(output: Path) -> list[Row]:
    """The rows of all checks of this machine, in the order of the table."""
    machine = look(output, cache=chosen_folder(), models=Path(HF_HUB_CACHE))
    return [check(machine) for check in CHECKS]


def _examine_job(rows: list[Row], options: DoctorOptions, on_devices: bool) -> ExitCode:
    """Check as one of several ranks. Rank 0 prints. If the ranks do not meet, the first rank of every node prints."""

    def alone(told: list[Row]) -> None:
        if local_rank() == 0:
            _report({host_name(): rows}, told, options if is_main() else options.model_copy(update={"json_file": None}))

    try:
        meet(options.seconds, on_devices, alone)
    except InputError as error:
        alone([Row("ranks", str(error), Verdict.BROKEN, MEETING)])
        return ExitCode.MISTAKE
    tables = {host: found for host, found in gather_objects((host_name(), rows)) if found}

    def together(told: list[Row]) -> None:
        if is_main():
            _report(tables, told, options)

    told = [shared_folder(_existing(options.output))]
    told += measure(options.seconds, on_devices, lambda more: together([*told, *more]))
    together(told)
    leave()
    return _exit_code([*told, *(row for found in tables.values() for row in found)])


def _existing(folder: Path) -> Path:
    path = folder.absolute()
    return next(parent for parent in (path, *path.parents) if parent.is_dir())


def _exit_code(rows: Sequence[Row]) -> ExitCode:
    return ExitCode.MISTAKE if any(row.verdict is Verdict.BROKEN for row in rows) else ExitCode.FINISHED


def _report(tables: Tables, between: Sequence[Row], options: DoctorOptions) -> ExitCode:
    """Print the table, and write the JSON file if requested."""
    lines = [*merged(tables), *(("between them" if len(tables) > 1 else "", row) for row in between)]
    print_rows(", ".join(tables), lines, Console())
    if options.json_file is not None:
        nodes = {host: [asdict(row) for row in rows] for host, rows in tables.items()}
        report = {WRITTEN_BY: COMMAND, "nodes": nodes, "ranks": [asdict(row) for row in between]}
        write_file(options.json_file, to_json(report, indent=1) + "\n")
    return _exit_code([row for _, row in lines])


def merged(tables: Tables) -> list[tuple[str, Row]]:
    """The rows of all nodes, each with its nodes. A row that is the same on several nodes appears once."""
    places: dict[Row, list[str]] = {}
    for row_of_each in zip(*tables.values(), strict=True):
        for host, row in zip(tables, row_of_each, strict=True):
            places.setdefault(row, []).append(host)
    everywhere = f"all {len(tables)} nodes" if len(tables) > 1 else ""
    return [(everywhere if len(hosts) == len(tables) else ", ".join(hosts), row) for row, hosts in places.items()]


def print_rows(title: str, lines: Sequence[tuple[str, Row]], console: Console) -> None:
    """Print one table and a line that summarizes it."""
    console.width = max(console.width, 140)  # a log file has no width
    table = Table(box=box.SIMPLE, title=title, title_justify="left")
    several = any(place for place, _ in lines)
    for header in (*(["where"] if several else []), "what", "found", "follows", "what to do"):
        table.add_column(header, overflow="fold")
    for place, row in lines:
        verdict = f"[{COLOURS[row.verdict]}]{row.verdict}[/]"
        table.add_row(*([place] if several else []), row.check, escape(row.found), verdict, escape(row.advice))
    console.print(table)
    counts = [f"{sum(row.verdict is verdict for _, row in lines)} {verdict}" for verdict in Verdict]
    console.print(", ".join(counts), highlight=False)
