"""Several finished runs in a few numbers: mean and deviation over the seeds of each recipe among them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from diffcse_scale.foundation import run_files
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.objects import read_object, read_yaml_object
from diffcse_scale.foundation.recorded_recipe import check_recipe
from diffcse_scale.foundation.strict_json import to_json
from diffcse_scale.recipe import flatten

# fields in which the runs of one group may differ
FREE = ("name", "seed")


@dataclass(frozen=True)
class Group:
    """Finished runs whose recipes differ in nothing but the seed.

    Attributes:
        distinction: the fields in which the groups differ, with this group's values.
        results: every number of `result.json` by its dotted name, one value a run, in the order of `runs`.
    """

    distinction: dict[str, Any]
    runs: list[Path]
    seeds: list[Any]
    results: dict[str, list[float]]


@dataclass(frozen=True)
class Summary:
    """What `summarize` found: the groups in the order of their first runs, and the runs that have not finished."""

    groups: list[Group]
    unfinished: list[Path]


def summarize(runs: Sequence[Path]) -> Summary:
    """Group finished runs by their recipes without the seed.

    Args:
        runs: folders of runs; those without a `result.json` are left out.

    Raises:
        InputError: none has finished, or a file of one is damaged.
    """
    finished = [run for run in runs if (run / run_files.RESULT).is_file() and (run / run_files.RECIPE).is_file()]
    if not finished:
        folders = ", ".join(map(str, runs)) or "no folder"
        raise InputError(f"No finished run to sum up in {folders}; `diffcse-scale status RUN` tells how far a run is.")
    recipes = {run: _recipe(run) for run in finished}
    members: dict[str, list[Path]] = {}
    for run, recipe in recipes.items():
        key = to_json({name: value for name, value in recipe.items() if name not in FREE}, sort_keys=True)
        members.setdefault(key, []).append(run)
    differing = _differing([recipes[of_group[0]] for of_group in members.values()])
    groups = [
        Group(
            distinction={name: recipes[of_group[0]].get(name) for name in differing},
            runs=of_group,
            seeds=[recipes[run].get("seed") for run in of_group],
            results=_results(of_group),
        )
        for of_group in members.values()
    ]
    return Summary(groups, [run for run in runs if run not in recipes])


def print_summary_of(runs: Sequence[Path]) -> None:
    """Print a table for each recipe among `runs`, and which of them have not finished.

    Raises:
        InputError: none has finished.
    """
    summary, console = summarize(runs), Console()
    for group in summary.groups:
        console.print(as_table(group))
    for run in summary.unfinished:
        console.print(f"not finished, left out: {run}", soft_wrap=True)


def as_table(group: Group) -> Table:
    """A row a result: how many runs have it, their mean and sample standard deviation."""
    distinction = ", ".join(f"{name}={value}" for name, value in group.distinction.items())
    seeds = f"seed{'s' if len(group.seeds) > 1 else ''} {', '.join(map(str, group.seeds))}"
    table = Table(title="; ".join(filter(None, (distinction, seeds))), title_justify="left")
    table.add_column("result", no_wrap=True)
    for column in ("runs", "mean", "deviation"):
        table.add_column(column, justify="right")
    for name, values in group.results.items():
        deviation = f"{statistics.stdev(values):.3f}" if len(values) > 1 else ""
        table.add_row(name, str(len(values)), f"{statistics.fmean(values):.3f}", deviation)
    return table


def _recipe(run: Path) -> dict[str, Any]:
    check_recipe(run)
    return dict(flatten(read_yaml_object(run / run_files.RECIPE)))


def _results(runs: list[Path]) -> dict[str, list[float]]:
    """The numbers of all runs, the best development score first; those that are undefined are left out."""
    results: dict[str, list[float]] = {"best.dev_spearman": []}
    for run in runs:
        for name, value in flatten(read_object(run / run_files.RESULT)):
            if isinstance(value, int | float) and not isinstance(value, bool):
                results.setdefault(name, []).append(float(value))
    return {name: values for name, values in results.items() if values}


def _differing(recipes: list[dict[str, Any]]) -> list[str]:
    """The fields that do not have the same value in all of them."""
    names = dict.fromkeys(name for recipe in recipes for name in recipe if name not in FREE)
    return [name for name in names if any(recipe.get(name) != recipes[0].get(name) for recipe in recipes)]
