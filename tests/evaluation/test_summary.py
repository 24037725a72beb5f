"""Mean and deviation over seeds, against values worked by hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml

from diffcse_scale.evaluation.summary import print_summary_of, summarize
from diffcse_scale.foundation.errors import InputError


def _run(folder: Path, seed: int, weight: float, score: float | None) -> Path:
    folder.mkdir()
    recipe = {"name": folder.name, "seed": seed, "objective": {"rtd_weight": weight}, "data": {"limit": None}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    if score is not None:
        result = {"steps": 10, "best": {"step": 8, "dev_spearman": score}, "rtd_accuracy": None}
        (folder / "result.json").write_text(json.dumps(result))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [
        _run(tmp_path / "a", seed=1, weight=0.1, score=70.0),
        _run(tmp_path / "b", seed=1, weight=0.5, score=60.0),
        _run(tmp_path / "c", seed=2, weight=0.1, score=73.0),
        _run(tmp_path / "d", seed=3, weight=0.1, score=None),
    ]


def test_runs_are_grouped_by_what_differs_beside_the_seed(runs: list[Path]) -> None:
    first, second = summarize(runs).groups
    assert (first.distinction, first.seeds) == ({"objective.rtd_weight": 0.1}, [1, 2])
    assert (second.distinction, second.seeds) == ({"objective.rtd_weight": 0.5}, [1])
    assert first.results["best.dev_spearman"] == [70.0, 73.0]
    assert "rtd_accuracy" not in first.results


def test_a_run_that_is_given_twice_counts_once(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs[0].parent)
    Path("link").symlink_to("a")
    (group,) = summarize([Path("a"), Path("b/../a"), runs[0], Path("link")]).groups
    assert (group.runs, group.results["best.dev_spearman"]) == ([Path("a")], [70.0])


def test_what_an_earlier_version_did_without_a_field_is_no_difference(runs: list[Path]) -> None:
    recipe = yaml.safe_load((runs[0] / "recipe.yaml").read_text())
    recipe["objective"] |= {"false_negatives": "keep", "loss_precision": "float32"}
    (runs[0] / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert [group.distinction for group in summarize(runs).groups] == [
        {"objective.rtd_weight": 0.1},
        {"objective.rtd_weight": 0.5},
    ]


def test_one_table_has_the_best_setting_first_with_the_interval_of_its_mean(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    better = _run(tmp_path / "e", seed=1, weight=0.9, score=80.0)
    print_summary_of([*runs, better], csv_file=tmp_path / "s.csv", json_file=tmp_path / "s.json")
    printed = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if "rtd_weight=" in line]
    # (70 + 73) / 2 +- 12.7062 * 2.1213 / sqrt(2), the quantile of one degree of freedom; a single run has no interval
    assert rows == [
        ["objective.rtd_weight=0.9", "1", "80.000"],
        ["objective.rtd_weight=0.1", "1, 2", "71.500 [52.441, 90.559]"],
        ["objective.rtd_weight=0.5", "1", "60.000"],
    ]
    assert max(map(len, printed.splitlines()[: len(rows) + 5])) <= 80
    with (tmp_path / "s.csv").open() as file:
        table = [row for row in csv.DictReader(file) if row["result"] == "best.dev_spearman"]
    assert [row["objective.rtd_weight"] for row in table] == ["0.9", "0.1", "0.5"]
    of_two = table[1]
    assert (of_two["seeds"], of_two["runs"], float(of_two["mean"])) == ("1 2", "2", 71.5)
    assert [float(of_two[name]) for name in ("deviation", "low", "high")] == pytest.approx(
        [2.12132, 52.4407, 90.5593], abs=1e-4
    )
    first, second, _ = json.loads((tmp_path / "s.json").read_text())["settings"]
    assert first["results"]["best.dev_spearman"]["interval"] is None
    assert second["results"]["best.dev_spearman"]["values"] == [70.0, 73.0]


def test_another_result_sorts_and_one_that_is_none_is_refused(
    runs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    print_summary_of(runs, ["steps"])
    assert "steps" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"No run has a result 'step' \(did you mean steps\?\)"):
        print_summary_of(runs, ["step"])


def test_other_files_are_not_replaced(runs: list[Path], tmp_path: Path) -> None:
    for name in ("s.csv", "s.json"):
        file = tmp_path / name
        file.write_text("a,b\n1,2\n")
        asked = {f"{file.suffix[1:]}_file": file}
        with pytest.raises(InputError, match=f"{name} .*--overwrite"):
            print_summary_of(runs, **asked)
        print_summary_of(runs, **asked, overwrite=True)
        print_summary_of(runs, **asked)  # its own


def test_an_unfinished_run_is_named_and_left_out(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert summarize(runs).unfinished == [runs[3]]
    print_summary_of(runs)
    assert f"not finished, left out: {runs[3]}" in capsys.readouterr().out


def test_nothing_finished_is_a_mistake(runs: list[Path]) -> None:
    with pytest.raises(InputError, match=r"No finished run to summarize in .*d;"):
        summarize(runs[3:])
