"""`diffcse-scale plan`: will a run fit, and how much will it communicate?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from diffcse_scale.engine.config_file import load_deepspeed_config, named
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.ownership import WRITTEN_BY, check_file, json_of, write_file
from diffcse_scale.foundation.paths import given_path
from diffcse_scale.foundation.strict_json import to_json
from diffcse_scale.foundation.working import Working
from diffcse_scale.planning.communication import BETWEEN_NODES, WITHIN
from diffcse_scale.planning.fit import RESERVE, Planner, as_json
from diffcse_scale.planning.hours import estimate, reached_speeds
from diffcse_scale.planning.sharding import read_sharding
from diffcse_scale.recipe import Recipe
from diffcse_scale.recipe_file import load_recipe
from diffcse_scale.text.sources import find_sources

COMMAND = "diffcse-scale plan"
GIB = 2**30


def plan(
    recipe_name: str,
    deepspeed_config: str | Path | None,
    overrides: Sequence[str] = (),
    nodes: int = 1,
    devices_per_node: int = 1,
    device_memory: float = 80.0,
    on_cpu: bool = False,
    json_file: Path | None = None,
    overwrite: bool = False,
    device: str | None = None,
    tflops: float | None = None,
    network_gbs: float | None = None,
) -> dict[str, Any]:
    """Plan a run, print the tables and write the JSON report.

    Args:
        recipe_name, overrides: as for `train.py`.
        deepspeed_config: a DeepSpeed JSON file; None uses the shipped zero2.json.
        device_memory: GiB per device, or per rank on a CPU.
        on_cpu: whether the devices are processes on CPUs.
        overwrite: replace `json_file`, whatever it holds.
        device: a name in `hours.DEVICES`, to estimate hours; None gives no estimate.
        tflops, network_gbs: measured speeds of the device, if known (`hours.reached_speeds`).

    Raises:
        InputError: speeds are given without a device, training would refuse the run before it loads weights, or the
            report file cannot be used.
    """
    if device is None and (tflops is not None or network_gbs is not None):
        raise InputError(
            "--tflops and --network-gbs are speeds of a device; name the device too, such as --device h100."
        )
    if json_file is not None:
        known = json_of(COMMAND, "recipe", "nodes", "stage", "memory", "stages", "largest_chunk")
        check_file(json_file, f"a plan of {COMMAND}", known, overwrite, [recipe_name, deepspeed_config or recipe_name])
    recipe = asked(recipe_name, overrides)
    config, devices = load_deepspeed_config(deepspeed_config), nodes * devices_per_node
    sharding = read_sharding(config, recipe, devices, on_cpu, named(deepspeed_config), devices_per_node)
    budget = device_memory * GIB
    with Working(f"rehearsing steps of {recipe.name} without numbers"):
        planner = Planner(recipe, sharding, budget if on_cpu else budget * (1 - RESERVE))
        report = {"recipe": recipe.name, "nodes": nodes, "stage": sharding.stage, **as_json(planner, budget)}
        if device is not None:
            speeds = reached_speeds(device, tflops, network_gbs)
            report["estimate"] = {"device": device, **estimate(planner, planner.stage(sharding.stage), speeds)}
    _print(report, Console())
    if json_file is not None:
        write_file(json_file, to_json({WRITTEN_BY: COMMAND, **report}, indent=1) + "\n")
    return report


def asked(name: str, overrides: Sequence[str]) -> Recipe:
    """The recipe with its corpus's columns, if the corpus is on this machine: a hard negative adds a third row."""
    recipe = load_recipe(name, overrides)
    if recipe.data.columns is not None or not all(given_path(file).is_file() for file in recipe.data.files):
        return recipe
    names = find_sources(recipe.data)[0].columns(None)
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"columns": list(names)})})


def _print(report: dict[str, Any], console: Console) -> None:
    chunk = "all at once" if report["chunk"] is None else f"{report['chunk']:,} at once"
    console.print(
        f"{report['recipe']}: {report['devices']} devices of {_gib(report['device_bytes'])}, "
        f"{report['share']:,} sentences per device, {chunk}, ZeRO-{report['stage']}"
    )
    table = Table("parameters", "millions", title="Networks", title_justify="left")
    for part, elements in report["parameters"].items():
        table.add_row(part, f"{elements / 1e6:,.1f}")
    console.print(_right(table))
    memory = report["memory"]
    title = f"Memory per device, highest in '{memory['when']}'"
    table = Table("", "at the peak", "at its own highest", title=title, title_justify="left")
    for line, size in memory["largest"].items():
        table.add_row(line, _gib(memory["at_peak"].get(line, 0.0)), _gib(size))
    table.add_row("in all", _gib(memory["peak"]), "", style="bold")
    if memory["reserved"] > memory["peak"]:
        table.add_row("reserved with it", _gib(memory["reserved"]), "")
    console.print(_right(table))
    if memory["host"]:
        console.print(f"Host memory per device: {_gib(memory['host'])}")
    ways = (WITHIN, BETWEEN_NODES) if report["nodes"] > 1 else ()
    table = Table(
        "ZeRO",
        "peak",
        "sent a step",
        *ways,
        "fits",
        title=f"Stages (configured: {report['stage']})",
        title_justify="left",
    )
    for stage in report["stages"]:
        by_way = [_gib(stage["sent_by_link"][way]) for way in ways]
        table.add_row(
            str(stage["stage"]), _gib(stage["peak"]), _gib(stage["sent"]), *by_way, "yes" if stage["fits"] else "no"
        )
    console.print(_right(table))
    if "estimate" in report:
        _print_estimate(report["estimate"], console)
    console.print(_verdict(report))


def _print_estimate(found: dict[str, Any], console: Console) -> None:
    console.print(f"A step on {found['device']}, estimated and not measured, by cause:")
    table = Table("", "seconds")
    for what, seconds in found["seconds"].items():
        table.add_row(what, f"{seconds:,.4f}", style="bold" if what == found["limit"] else None)
    console.print(_right(table))
    console.print(f"Most of it: {found['limit']}. A step: {_between(found['step'])} s.")
    if found["hours"]:
        console.print(f"The run: {_between(found['hours'])} h.")
        console.print(f"Device hours: {_between(found['device_hours'])}.")


def _between(ways: dict[str, float]) -> str:
    return " (all overlaps) to ".join(f"{value:,.3g}" for value in ways.values()) + " (nothing does)"


def _verdict(report: dict[str, Any]) -> str:
    lines = ["It fits." if report["fits"] else "It does not fit."]
    if report["cheapest_stage"] is None:
        lines.append("No ZeRO stage fits with these sizes.")
    else:
        lines.append(f"Of the stages that fit, ZeRO-{report['cheapest_stage']} sends least.")
    if report["largest_chunk"] is None:
        lines.append("Not even a chunk of one sentence fits.")
    else:
        lines.append(f"The largest chunk that fits with this batch: {report['largest_chunk']:,} sentences.")
    if report["largest_batch"] is not None:
        largest = f"{report['largest_batch']:,}" if report["largest_batch"] else "none"
        lines.append(f"The largest batch.sentences that fits otherwise unchanged: {largest}.")
    return "\n".join(lines)


def _gib(size: float) -> str:
    return f"{size / GIB:,.2f} GiB"


def _right(table: Table) -> Table:
    for column in table.columns[1:]:
        column.justify = "right"
    return table
