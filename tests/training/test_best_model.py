"""Which evaluation counts as the best, and who may keep it."""

from __future__ import annotations

from math import nan
from types import SimpleNamespace
from typing import Any

import pytest

from diffcse_scale.foundation.errors import RunEnded
from diffcse_scale.foundation.exit_codes import ExitCode
from diffcse_scale.recipe_file import load_recipe
from diffcse_scale.runs.directory import RunDirectory
from diffcse_scale.training.best_model import BestModel, improves
from tests.support.files import write_files


@pytest.mark.parametrize(
    ("score", "best", "expected"),
    [
        (50.0, None, True),
        (50.0, 49.0, True),
        (50.0, 50.0, False),
        (nan, 50.0, False),
        (nan, None, True),
        (1.0, nan, True),
    ],
)
def test_only_a_higher_score_replaces_the_best(score, best, expected):
    assert improves(score, best) is expected


def test_what_a_later_incarnation_has_kept_is_not_deleted_or_replaced(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    recipe, folder = load_recipe("quickstart"), str(tmp_path / "run")
    older = RunDirectory.open(folder, recipe, start="auto")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    newer = RunDirectory.open(folder, recipe, start="auto")
    theirs = [newer.best(4), newer.best(12), newer.model, newer.model.with_suffix(".partial")]
    for place in theirs:
        write_files(place, {"weights": f"of {place.name}".encode()})
    checkpoints: Any = SimpleNamespace(states=list)
    model = BestModel(recipe, Any, Any, older, checkpoints)  # type: ignore[arg-type]
    monkeypatch.setattr(model, "_export", lambda place: None)
    model.keep({"step": 8}, lambda doing: None)
    write_files(older.best(8), {"weights": b"of the older"})
    model.place({})
    older.finish(steps=12)
    assert [(place / "weights").read_bytes() for place in theirs] == [f"of {place.name}".encode() for place in theirs]
    assert not (older.path / "result.json").exists()
    with pytest.raises(RunEnded) as end:
        older.check_owned()  # which the trainer does last
    assert end.value.exit_code == ExitCode.SUPERSEDED
