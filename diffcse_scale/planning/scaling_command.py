"""`diffcse-scale plan --scaling`: how long would a step take on many devices, and what would limit it?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from diffcse_scale.engine.config_file import load_deepspeed_config, named
from diffcse_scale.foundation.ownership import WRITTEN_BY, check_file, json_of, write_file
from diffcse_scale.foundation.strict_json import to_json
from diffcse_scale.foundation.working import Working
from diffcse_scale.planning.command import asked
from diffcse_scale.planning.scaling import Assumptions, Scaling, read_ways
from diffcse_scale.planning.shape_networks import load_networks
from diffcse_scale.planning.sharding import read_sharding

COMMAND = "diffcse-scale plan --scaling"
TITLES = {"weak": "{share:,} sentences per device", "strong": "{sentences:,} sentences on all devices"}


def plan_scaling(
    recipe_name: str,
    deepspeed_config: str | Path | None,
    overrides: Sequence[str] = (),
    nodes: int = 1,
    devices_per_node: int = 1,
    assume: Sequence[str] = (),
    json_file: Path | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Simulate steps on 1 to 512 nodes, print the tables and write the JSON report.

    Args:
        recipe_name, overrides: as for `train.py`.
        deepspeed_config: a DeepSpeed JSON file; None uses the shipped zero2.json.
        nodes, devices_per_node: the recipe's batch is divided over these devices. Weak scaling keeps this share on
            every number of nodes.
        assume: `name=value` for fields of `Assumptions`.
        overwrite: replace `json_file`, whatever it holds.

    Raises:
        InputError: training would refuse the run before it loads weights, an assumption is unknown, or the report
            file cannot be used.
    """
    if json_file is not None:
        known = json_of(COMMAND, "recipe", "assumptions", "devices_per_node", *TITLES)
        check_file(
            json_file, f"a simulation of {COMMAND}", known, overwrite, [recipe_name, deepspeed_config or recipe_name]
        )
    assumptions, recipe = Assumptions.changed(assume), asked(recipe_name, overrides)
    config, devices = load_deepspeed_config(deepspeed_config), nodes * devices_per_node
    sharding = read_sharding(config, recipe, devices, False, named(deepspeed_config))
    share = -(-recipe.batch.sentences // devices)
    with Working(f"simulating steps of {recipe.name}"):
        scaling = Scaling(recipe, sharding, load_networks(recipe), devices_per_node, assumptions, read_ways(config))
        points = {"weak": scaling.weak(share), "strong": scaling.strong(recipe.batch.sentences)}
    report = {"recipe": recipe.name, "stage": sharding.stage, "share": share, "sentences": recipe.batch.sentences}
    report |= {"assumptions": assumptions.model_dump(), "devices_per_node": devices_per_node}
    report |= {way: [point.as_json() for point in found] for way, found in points.items()}
    _print(report, Console())
    if json_file is not None:
        write_file(json_file, to_json({WRITTEN_BY: COMMAND, **report}, indent=1) + "\n")
    return report


def _print(report: dict[str, Any], console: Console) -> None:
    console.print(
        f"{report['recipe']}, ZeRO-{report['stage']}, nodes of {report['devices_per_node']} devices. "
        "This is a simulation: nothing is measured."
    )
    for way, title in TITLES.items():
        table = Table(title=title.format(**report), title_justify="left")
        for name in ("devices", "sentences a device", "ms a step", "busy", "waits most for"):
            table.add_column(name, justify="left" if name == "waits most for" else "right")
        for point in report[way]:
            busy, limit = f"{point['efficiency']:.0%}", point["limit"] or "nothing"
            numbers = f"{point['devices']:,}", f"{point['share']:,}", f"{point['seconds'] * 1e3:,.1f}"
            table.add_row(*numbers, busy, f"{limit}, {point['waits'].get(limit, 0.0) * 1e3:,.1f} ms")
        console.print(table)
    console.print(
        "busy: the part of a step in which a device computes. Memory is not computed here: use plan without --scaling."
    )
