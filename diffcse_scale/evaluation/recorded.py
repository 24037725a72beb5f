"""The evaluations that are stored in a run, one file for each suite and data.

    evaluation/SUITE.json               a whole suite, on its standard data
    evaluation/SUITE-<digits>.json      on other data; the digits are a fingerprint of the data

An evaluation therefore replaces only an earlier one on the same data.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

from diffcse_scale.evaluation.suites import SUITES
from diffcse_scale.evaluation.tasks import HUB
from diffcse_scale.foundation import run_files
from diffcse_scale.foundation.objects import read_object
from diffcse_scale.foundation.ownership import WRITTEN_BY, Known, check_file, json_of, write_file
from diffcse_scale.foundation.strict_json import to_json
from diffcse_scale.text.cache import fingerprint

log = logging.getLogger(__name__)

COMMAND = "diffcse-scale evaluate"


def may_record(run: Path) -> bool:
    """Whether this user may store results in a run. Log it if not: somebody else's run can be measured all the same."""
    kept = run / run_files.EVALUATIONS
    allowed = os.access(kept if kept.exists() else run, os.W_OK)
    if not allowed:
        log.warning("Results are not kept in %s, because you may not write there; --json keeps them in a file.", run)
    return allowed


def check_recordable(run: Path, suite: str, data: str, overwrite: bool = False) -> None:
    """Check that an evaluation can be stored. Call this before the work starts.

    Args:
        data: the fingerprint of the suite's data.

    Raises:
        InputError: a file of the same name exists and is not a result of this suite.
    """
    for file in (_file(run, suite), _file(run, suite, data)):
        check_file(file, f"a result of {COMMAND}", _known(suite), overwrite)


def record(run: Path, report: dict[str, Any], data: str) -> Path:
    """Write a report, replacing an earlier one on the same data. Returns the file."""
    suite = report["suite"]
    if not is_whole(report):
        file = _file(run, suite, data)
    else:
        file = _file(run, suite)
        if _known(suite)(file) and not is_whole(earlier := _read(file)):  # old versions had one file for all data
            with suppress(FileNotFoundError):  # another evaluation has just renamed it
                os.replace(file, _file(run, suite, fingerprint(earlier["data"], earlier["tasks"])))
    write_file(file, as_text({WRITTEN_BY: COMMAND, **report}))
    return file


def evaluations(run: Path) -> dict[str, dict[str, Any]]:
    """The reports stored in a run, by file name without the suffix."""
    reports = {file.stem: _read(file) for file in sorted((run / run_files.EVALUATIONS).glob("*.json"))}
    return {name: report for name, report in reports.items() if report.keys() >= {"suite", "tasks", "data", "date"}}


def standard_results(run: Path, suite: str) -> Iterator[dict[str, Any]]:
    """Reports on standard data, those with most tasks first. A task is only kept in the first report that has it."""
    reports = [report for report in evaluations(run).values() if report.get("suite") == suite and is_standard(report)]
    shown: set[tuple[str, str]] = set()
    for report in sorted(reports, key=lambda report: (len(report["tasks"]), report["date"]), reverse=True):
        tasks = [task for task in report["tasks"] if (task["name"], task["measure"]) not in shown]
        shown |= {(task["name"], task["measure"]) for task in tasks}
        if tasks:
            yield {**report, "tasks": tasks, "means": report["means"] if tasks == report["tasks"] else []}


def is_standard(report: dict[str, Any]) -> bool:
    """Whether all tasks of a report were measured on their published standard data."""
    suite = SUITES.get(report["suite"])  # the report may come from a version with more suites
    return suite is not None and suite.is_standard(report)


def is_whole(report: dict[str, Any]) -> bool:
    """Whether a report covers all standard data of its suite. Never true for a collection."""
    return is_standard(report) and not SUITES[report["suite"]].collection and not report.get("not_measured")


def data_name(report: dict[str, Any]) -> str:
    """A short name of a report's data without folders, such as "on pairs.tsv"; empty for standard data."""
    return "" if is_standard(report) or report["data"] == HUB else f"on {Path(report['data']).name}"


def as_text(content: dict[str, Any]) -> str:
    """Indented strict JSON."""
    return to_json(content, indent=2) + "\n"


def _file(run: Path, suite: str, data: str | None = None) -> Path:
    return run / run_files.EVALUATIONS / (f"{suite}.json" if data is None else f"{suite}-{data}.json")


def _known(suite: str) -> Known:
    known = json_of(COMMAND, "suite", "tasks", "means", "environment")
    return lambda file: known(file) and _read(file)["suite"] == suite


_Number = Annotated[float, Field(ge=-1e100, le=1e100)]  # the range that a chart can show


class _Score(BaseModel):
    """A report's entry for a task or for a mean over tasks."""

    name: str
    measure: str
    value: _Number | None
    interval: tuple[_Number, _Number] | None = None
    remark: str | None = None


class _Task(_Score):
    group: str
    count: int


class _Histogram(BaseModel):
    bands: dict[str, list[int]]


class _Details(BaseModel):
    histograms: dict[str, _Histogram] = {}


class _Report(BaseModel):
    """The parts of a report that are read again."""

    suite: str
    tasks: list[_Task]
    data: str
    date: str
    means: list[_Score] = []
    details: _Details | None = None


def _read(file: Path) -> dict[str, Any]:
    """Read a validated report, or any other JSON object as it is."""
    content = read_object(file)
    return read_object(file, _Report) if content.keys() >= {"suite", "tasks", "data", "date"} else content
