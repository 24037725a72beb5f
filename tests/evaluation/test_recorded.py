"""What a run keeps of its evaluations, and what the card and the report make of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from diffcse_scale.evaluation import recorded
from diffcse_scale.evaluation.command import evaluate_models
from diffcse_scale.evaluation.recorded import data_name, evaluations, is_standard, record, standard_results
from diffcse_scale.evaluation.tasks import STS_TASKS
from diffcse_scale.export.command import ExportOptions, export_model
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.ownership import WRITTEN_BY
from tests.support.hand_made_run import write_run

SEVEN = {task.name: task.standard_pairs for task in STS_TASKS}
PAIRS = "4\ta dog runs\ta cat runs\n1\ta dog runs\ta horse sleeps\n"


def report(sizes: dict[str, Any], date: str = "2026-01-02", value: float = 50.0, **more: Any) -> dict[str, Any]:
    """Of the suite sts, as `evaluate` writes it; tasks that are not standard are of somebody's own file."""
    tasks = [
        {"name": name, "group": "test" if name in SEVEN else "own", "measure": "Spearman x 100", "value": value,
         "interval": None, "count": size, "remark": ""}
        for name, size in sizes.items()
    ]  # fmt: skip
    about = {"suite": "sts", "model": "m", "data": "/data/sts", "pooling": "its own pooling", "max_length": 32}
    rest = {"means": [], "not_measured": [name for name in SEVEN if name not in sizes], "details": {}}
    return {**about, "date": date, "tasks": tasks, **rest, "environment": {}, **more}


def test_each_data_has_its_file_and_only_the_whole_standard_suite_has_the_plain_name(tmp_path: Path) -> None:
    whole, part, own = report(SEVEN), report({"STS-B test": 1379}), report({"pairs": 2}, data="/data/pairs.tsv")
    names = [record(tmp_path, each, digits).name for each, digits in ((whole, "a"), (part, "b"), (own, "c"))]
    assert names == ["sts.json", "sts-b.json", "sts-c.json"]
    assert record(tmp_path, report({"pairs": 2}, value=7.0), "c").name == "sts-c.json"
    kept = evaluations(tmp_path)
    assert set(kept) == {"sts", "sts-b", "sts-c"}
    assert (len(kept["sts"]["tasks"]), kept["sts-c"]["tasks"][0]["value"]) == (9, 7.0)
    assert kept["sts"][WRITTEN_BY] == "diffcse-scale evaluate"


def test_results_of_own_pairs_that_an_earlier_version_left_under_the_plain_name_are_kept_too(tmp_path: Path) -> None:
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "sts.json").write_text(json.dumps(report({"pairs": 2})))
    record(tmp_path, report(SEVEN), "a")
    kept = evaluations(tmp_path)
    assert len(kept) == 2 and len(kept["sts"]["tasks"]) == 9


def test_of_two_evaluations_that_end_at_once_neither_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both find a result of an earlier version, which the other has moved when this one comes to it."""
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "sts.json").write_text(json.dumps(report({"pairs": 2})))
    replace = recorded.os.replace

    def after_the_other(source: Path, place: Path) -> None:
        replace(source, place)
        monkeypatch.setattr(recorded.os, "replace", replace)
        replace(source, place)

    monkeypatch.setattr(recorded.os, "replace", after_the_other)
    record(tmp_path, report(SEVEN), "a")
    kept = evaluations(tmp_path)
    assert len(kept) == 2 and len(kept["sts"]["tasks"]) == 9


@pytest.mark.parametrize(
    ("content", "standard", "name"),
    [
        (report(SEVEN), True, ""),
        (report({"SICK-R test": 4906}), True, ""),  # the Hub's copy
        (report({"STS-B dev": 2}), False, "on sts"),
        (report({"pairs": 1500}, data="/data/pairs.tsv"), False, "on pairs.tsv"),
        ({**report({}), "suite": "transfer", "tasks": [{"name": "MRPC F1", "group": "test", "count": 1725}]}, True, ""),
        ({**report({}), "suite": "transfer", "tasks": [{"name": "MR", "group": "test", "count": 40}]}, False, "on sts"),
        ({**report({}), "suite": "mteb", "tasks": [{"name": "Any", "group": "STS", "count": 7}]}, True, ""),
    ],
)
def test_standard_is_what_has_the_standard_names_and_sizes(content, standard, name) -> None:
    assert (is_standard(content), data_name(content)) == (standard, name)


@pytest.mark.parametrize(("count", "standard"), [(1500, True), (4, False)])
def test_geometry_is_standard_on_the_pairs_of_stsb(count: int, standard: bool) -> None:
    histograms = {"STS-B dev": {"bands": {"0-1": [count - 1, 0], "4-5": [0, 1]}}}
    assert is_standard({**report({}), "suite": "geometry", "details": {"histograms": histograms}}) is standard


def test_a_task_is_shown_once_from_the_largest_standard_evaluation_that_has_it(tmp_path: Path) -> None:
    record(tmp_path, report(SEVEN, value=1.0), "a")
    record(tmp_path, report({"STS-B test": 1379}, "2026-03-04", value=2.0), "b")
    record(tmp_path, report({"pairs": 2}, "2026-03-04", value=3.0), "c")
    (shown,) = standard_results(tmp_path, "sts")
    assert {task["value"] for task in shown["tasks"]} == {1.0} and len(shown["tasks"]) == 9


def test_an_evaluation_on_own_pairs_leaves_the_standard_results_and_the_card_as_they_were(tmp_path: Path) -> None:
    run, pairs = write_run(tmp_path / "mine"), tmp_path / "two_own_pairs.tsv"
    pairs.write_text(PAIRS)
    before = (run / "evaluation" / "sts.json").read_bytes()
    export_model(run, tmp_path / "first" / "model", ExportOptions())

    for _ in range(2):
        evaluate_models([run], pairs)
    export_model(run, tmp_path / "second" / "model", ExportOptions())

    assert (run / "evaluation" / "sts.json").read_bytes() == before
    (own,) = [one for one in evaluations(run).values() if one["data"] == str(pairs)]
    assert [task["name"] for task in own["tasks"]] == ["two_own_pairs"]
    cards = [(tmp_path / name / "model" / "README.md").read_text() for name in ("first", "second")]
    assert cards[0] == cards[1] and "two_own_pairs" not in cards[1]


def test_results_of_an_export_that_lies_in_a_run_are_not_the_runs(tmp_path: Path) -> None:
    run, pairs = write_run(tmp_path / "mine"), tmp_path / "pairs.tsv"
    pairs.write_text(PAIRS)
    export_model(run, run / "z", ExportOptions(projection=True))
    before = sorted((run / "evaluation").iterdir())
    evaluate_models([run / "z"], pairs)
    assert sorted((run / "evaluation").iterdir()) == before


def test_the_file_of_json_is_checked_before_anything_is_measured(tmp_path: Path) -> None:
    run, pairs, notes = write_run(tmp_path / "mine"), tmp_path / "pairs.tsv", tmp_path / "notes.json"
    pairs.write_text(PAIRS)
    notes.write_text('{"my": "notes"}')
    before = sorted(tmp_path.rglob("*"))
    for file, message in ((notes, "but another JSON file; .*--overwrite"), (pairs, "is part of the input")):
        with pytest.raises(InputError, match=message):
            evaluate_models([run], pairs, json_file=file)
    assert sorted(tmp_path.rglob("*")) == before and json.loads(notes.read_text()) == {"my": "notes"}

    evaluate_models([run], pairs, json_file=notes, overwrite=True)
    evaluate_models([run], pairs, json_file=notes)  # an earlier report is replaced without a word
    assert json.loads(notes.read_text())[WRITTEN_BY] == "diffcse-scale evaluate"


def test_something_else_in_the_place_of_a_runs_results_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    run, pairs = write_run(tmp_path / "mine"), tmp_path / "pairs.tsv"
    pairs.write_text(PAIRS)
    (run / "evaluation" / "sts.json").write_text("[1, 2]")
    with pytest.raises(InputError, match=r"sts\.json exists and is not a result of diffcse-scale evaluate"):
        evaluate_models([run], pairs)
    assert (run / "evaluation" / "sts.json").read_text() == "[1, 2]"
