"""Summary of several finished runs: means over the seeds of each setting, the best setting first."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from diffcse_scale.foundation import run_files
from diffcse_scale.foundation.errors import InputError, nearest, quoted
from diffcse_scale.foundation.objects import read_object, read_yaml_object
from diffcse_scale.foundation.ownership import WRITTEN_BY, check_file, json_of, write_file
from diffcse_scale.foundation.paths import given_path
from diffcse_scale.foundation.recorded_recipe import check_recipe
from diffcse_scale.foundation.strict_json import to_json
from diffcse_scale.recipe import completed, flatten

# fields in which runs of one group may differ
FREE = ("name", "seed")
COMMAND = "diffcse-scale summarize"
SHOWN = ("best.dev_spearman", "dev_rtd_auroc", "dev_rtd_z_gain")
KEPT_WHOLE = 36  # longest line of a setting that leaves room for three results on a terminal of 80 columns
CSV_COLUMNS = ("seeds", "result", "runs", "mean", "deviation", "low", "high")


@dataclass(frozen=True)
class Group:
    """Finished runs whose recipes differ only in the seed.

    Attributes:
        distinction: the fields in which the groups differ, with this group's values.
        results: every number of `result.json` by its dotted name, one value per run, in the order of `runs`.
    """

    distinction: dict[str, Any]
    runs: list[Path]
    seeds: list[Any]
    results: dict[str, list[float]]

    @property
    def setting(self) -> str:
        """This group's values of the fields in which groups differ, one per line."""
        return ",\n".join(f"{name}={value}" for name, value in self.distinction.items()) or "all"


@dataclass(frozen=True)
class Summary:
    """Result of `summarize`: the groups in the order of their first runs, and the unfinished runs."""

    groups: list[Group]
    unfinished: list[Path]


def summarize(runs: Sequence[Path]) -> Summary:
    """Group finished runs by their recipes without the seed.

    Args:
        runs: folders of runs, each counted once; those without a `result.json` are left out.

    Raises:
        InputError: no run has finished, or a run's file is damaged.
    """
    places: dict[Path, Path] = {}
    for run in runs:
        places.setdefault(given_path(run).resolve(), run)
    runs = list(places.values())
    finished = [run for run in runs if (run / run_files.RESULT).is_file() and (run / run_files.RECIPE).is_file()]
    if not finished:
        folders = ", ".join(map(str, runs)) or "no folder"
        raise InputError(
            f"No finished run to summarize in {folders}; `diffcse-scale status RUN` shows how far a run is."
        )
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


@dataclass(frozen=True)
class Statistic:
    """A result over the runs of a group.

    Attributes:
        deviation: the sample standard deviation; None for a single run.
        interval: 95% interval of the mean by Student's t, which assumes normally distributed results; None for a
            single run.
    """

    mean: float
    deviation: float | None
    interval: tuple[float, float] | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Statistic:
        """Compute the statistic from at least one value."""
        mean, count = statistics.fmean(values), len(values)
        if count < 2:
            return cls(mean, None, None)
        from scipy.stats import t  # takes a second

        deviation = statistics.stdev(values)
        half = float(t.ppf(0.975, count - 1)) * deviation / math.sqrt(count)
        return cls(mean, deviation, (mean - half, mean + half))


def print_summary_of(
    runs: Sequence[Path],
    results: Sequence[str] = (),
    json_file: Path | None = None,
    csv_file: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Print one table of all settings among `runs`, write it to files, and name the unfinished runs.

    Args:
        results: dotted names of the results to show; settings are sorted by the first. Default: those of `SHOWN`
            that exist, or the first result.
        json_file, csv_file: files for all results; None writes none.
        overwrite: replace these files, whatever they hold.

    Raises:
        InputError: no run has finished, no run has one of the results, or a file cannot be written.
    """
    if json_file is not None:
        check_file(json_file, f"a summary of {COMMAND}", json_of(COMMAND), overwrite, runs)
    if csv_file is not None:
        check_file(csv_file, f"a table of {COMMAND}", _is_table, overwrite, runs)
    summary, console = summarize(runs), Console()
    shown = _chosen(summary, results)
    groups = sorted(summary.groups, key=lambda group: _rank(group, shown[0])) if shown else summary.groups
    console.print(as_table(groups, shown))
    for run in summary.unfinished:
        console.print(f"not finished, left out: {run}", soft_wrap=True)
    if json_file is not None:
        write_file(json_file, to_json(as_json(groups), indent=1) + "\n")
    if csv_file is not None:
        write_file(csv_file, as_csv(groups))


def as_table(groups: Sequence[Group], shown: Sequence[str]) -> Table:
    """A table with one row per setting: its seeds, and the mean of each result with its interval."""
    table = Table(title_justify="left", caption_justify="left")
    table.caption = "mean over seeds, [ ]: 95% interval of the mean (Student's t)"
    longest = max(len(line) for group in groups for line in group.setting.splitlines())
    table.add_column("setting", overflow="fold", no_wrap=longest <= KEPT_WHOLE)
    table.add_column("seeds", overflow="fold")
    for name in shown:
        table.add_column(name, justify="right", overflow="fold")
    for group in groups:
        cells = [_cell(group.results[name]) if name in group.results else "" for name in shown]
        table.add_row(Text(group.setting), ", ".join(map(str, group.seeds)), *map(Text, cells))
    return table


def as_json(groups: Sequence[Group]) -> dict[str, Any]:
    """Every result of every group, with its value for each run."""
    return {
        WRITTEN_BY: COMMAND,
        "settings": [
            {
                "setting": group.distinction,
                "runs": list(map(str, group.runs)),
                "seeds": group.seeds,
                "results": {
                    name: {"values": values, **asdict(Statistic.of(values))} for name, values in group.results.items()
                },
            }
            for group in groups
        ],
    }


def as_csv(groups: Sequence[Group]) -> str:
    """A row for each result of each group; a column for each field that the groups differ in."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*groups[0].distinction, *CSV_COLUMNS])
    for group in groups:
        for name, values in group.results.items():
            found = Statistic.of(values)
            numbers = [found.mean, found.deviation, *(found.interval or (None, None))]
            writer.writerow([*group.distinction.values(), " ".join(map(str, group.seeds)), name, len(values), *numbers])
    return file.getvalue()


def _is_table(file: Path) -> bool:
    with file.open(encoding="utf-8", errors="replace") as opened:
        return opened.readline().rstrip("\n").endswith(",".join(CSV_COLUMNS))


def _chosen(summary: Summary, asked: Sequence[str]) -> list[str]:
    """The results to show.

    Raises:
        InputError: no run has a requested result.
    """
    there = list(dict.fromkeys(name for group in summary.groups for name in group.results))
    for name in asked:
        if name not in there:
            raise InputError(f"No run has a result {quoted(name)}{nearest(name, there)}; there are {', '.join(there)}.")
    return list(asked) or [name for name in SHOWN if name in there] or there[:1]


def _rank(group: Group, name: str) -> tuple[bool, float]:
    """Sort key: the largest mean first, groups without the result last."""
    values = group.results.get(name)
    return values is None, -statistics.fmean(values or [0.0])


def _cell(values: Sequence[float]) -> str:
    found = Statistic.of(values)
    if found.interval is None:
        return f"{found.mean:.3f}"
    return f"{found.mean:.3f} [{found.interval[0]:.3f}, {found.interval[1]:.3f}]"


def _recipe(run: Path) -> dict[str, Any]:
    check_recipe(run)
    return dict(flatten(completed(read_yaml_object(run / run_files.RECIPE))))


def _results(runs: list[Path]) -> dict[str, list[float]]:
    """The numbers of all runs by name, the best development score first. Undefined values are left out."""
    results: dict[str, list[float]] = {"best.dev_spearman": []}
    for run in runs:
        for name, value in flatten(read_object(run / run_files.RESULT)):
            if isinstance(value, int | float) and not isinstance(value, bool):
                results.setdefault(name, []).append(float(value))
    return {name: values for name, values in results.items() if values}


def _differing(recipes: list[dict[str, Any]]) -> list[str]:
    """Names of the fields that do not have the same value in all recipes."""
    names = dict.fromkeys(name for recipe in recipes for name in recipe if name not in FREE)
    return [name for name in names if any(recipe.get(name) != recipes[0].get(name) for recipe in recipes)]
