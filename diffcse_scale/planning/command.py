"""`diffcse-scale plan`: will it fit, and what will it send?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from diffcse_scale.engine.config_file import load_deepspeed_config, named
from diffcse_scale.foundation.ownership import WRITTEN_BY, check_file, json_of, write_file
from diffcse_scale.foundation.paths import given_path
from diffcse_scale.foundation.strict_json import to_json
from diffcse_scale.planning.fit import RESERVE, Planner, as_json
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
) -> dict[str, Any]:
    """Plan a run, print the tables and write the JSON report.

    Args:
        recipe_name, overrides: as `train.py` takes them.
        deepspeed_config: a DeepSpeed JSON; None for the shipped zero2.json.
        device_memory: GiB of a device, or of a rank on a CPU.
        on_cpu: the devices are processes on CPUs.
        overwrite: replace `json_file` whatever it is.

    Raises:
        InputError: whatever training would refuse before it loads weights; or an unusable report file.
    """
    if json_file is not None:
        known = json_of(COMMAND, "recipe", "nodes", "stage", "memory", "stages", "largest_chunk")
        check_file(json_file, f"a plan of {COMMAND}", known, overwrite, [recipe_name, deepspeed_config or recipe_name])
    recipe = _with_columns(load_recipe(recipe_name, overrides))
    config, devices = load_deepspeed_config(deepspeed_config), nodes * devices_per_node
    sharding = read_sharding(config, recipe, devices, on_cpu, named(deepspeed_config))
    budget = device_memory * GIB
    planner = Planner(recipe, sharding, budget if on_cpu else budget * (1 - RESERVE))
    report = {"recipe": recipe.name, "nodes": nodes, "stage": sharding.stage, **as_json(planner, budget)}
    _print(report, Console())
    if json_file is not None:
        write_file(json_file, to_json({WRITTEN_BY: COMMAND, **report}, indent=1) + "\n")
    return report


def _with_columns(recipe: Recipe) -> Recipe:
    """The recipe with the columns of its corpus, where that is on this machine: a hard negative is a third row."""
    if recipe.data.columns is not None or not all(given_path(file).is_file() for file in recipe.data.files):
        return recipe
    names = find_sources(recipe.data)[0].columns(None)
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"columns": list(names)})})


def _print(report: dict[str, Any], console: Console) -> None:
    chunk = "all at once" if report["chunk"] is None else f"{report['chunk']:,} at once"
    console.print(
        f"{report['recipe']}: {report['devices']} devices of {_gib(report['device_bytes'])}, "
        f"{report['share']:,} sentences a device, {chunk}, ZeRO-{report['stage']}"
    )
    table = Table("parameters", "millions", title="Networks", title_justify="left")
    for part, elements in report["parameters"].items():
        table.add_row(part, f"{elements / 1e6:,.1f}")
    console.print(_right(table))
    memory = report["memory"]
    title = f"Memory of a device, highest in '{memory['when']}'"
    table = Table("", "at the peak", "at its own highest", title=title, title_justify="left")
    for line, size in memory["largest"].items():
        table.add_row(line, _gib(memory["at_peak"].get(line, 0.0)), _gib(size))
    table.add_row("in all", _gib(memory["peak"]), "", style="bold")
    if memory["reserved"] > memory["peak"]:
        table.add_row("reserved with it", _gib(memory["reserved"]), "")
    console.print(_right(table))
    if memory["host"]:
        console.print(f"and in the host's memory, a device: {_gib(memory['host'])}")
    table = Table("ZeRO", "peak", "sent a step", "fits", title="Stages", title_justify="left")
    for stage in report["stages"]:
        name = f"{stage['stage']}{' (configured)' if stage['stage'] == report['stage'] else ''}"
        table.add_row(name, _gib(stage["peak"]), _gib(stage["sent"]), "yes" if stage["fits"] else "no")
    console.print(_right(table))
    console.print(_verdict(report))


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
