"""Mean and deviation over seeds, against values worked by hand."""

from __future__ import annotations

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


def test_mean_and_sample_deviation_are_printed(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    print_summary_of(runs)
    printed = capsys.readouterr().out
    scores = [line.split("│")[1:-1] for line in printed.splitlines() if "best.dev_spearman" in line]
    # (70 + 73) / 2, and sqrt((1.5 ** 2 + 1.5 ** 2) / 1); a single run has no deviation
    assert [cell.strip() for cell in scores[0]] == ["best.dev_spearman", "2", "71.500", "2.121"]
    assert [cell.strip() for cell in scores[1]] == ["best.dev_spearman", "1", "60.000", ""]
    assert "objective.rtd_weight=0.1; seeds 1, 2" in printed


def test_an_unfinished_run_is_named_and_left_out(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert summarize(runs).unfinished == [runs[3]]
    print_summary_of(runs)
    assert f"not finished, left out: {runs[3]}" in capsys.readouterr().out


def test_nothing_finished_is_a_mistake(runs: list[Path]) -> None:
    with pytest.raises(InputError, match=r"No finished run to sum up in .*d;"):
        summarize(runs[3:])
