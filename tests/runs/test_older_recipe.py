"""A run whose recipe is older than a field goes on as it began, or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from diffcse_scale.foundation.errors import InputError, RunEnded
from diffcse_scale.foundation.recorded_recipe import digest_of
from diffcse_scale.recipe_file import load_recipe
from diffcse_scale.runs.directory import RunDirectory
from diffcse_scale.runs.read import read_runs
from diffcse_scale.runs.replay import replay_arguments
from diffcse_scale.training.train_arguments import parse_arguments

RECIPE = load_recipe("quickstart")
AS_IT_BEGAN = ["objective.false_negatives=keep", "objective.loss_precision=float32"]
FACTS = {name: "abc" for name in ("data_fingerprint", "development_fingerprint", "models_fingerprint", "precision")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a run as an earlier version has begun it."""
    folder = tmp_path / "run"
    RunDirectory.open(str(folder), RECIPE, start="new").describe(RECIPE, **FACTS, deepspeed_config={})
    recipe, record = folder / "recipe.yaml", folder / "run.json"
    lines = recipe.read_text().splitlines(keepends=True)
    recipe.write_text("".join(line for line in lines if not any(name in line for name in ("false_neg", "loss_prec"))))
    assert len(recipe.read_text().splitlines()) == len(lines) - 2
    record.write_text(json.dumps({**json.loads(record.read_text()), **digest_of(recipe.read_text())}))
    return folder


def test_a_resume_with_what_is_new_is_told_what_to_add(folder):
    with pytest.raises(InputError) as told:
        RunDirectory.open(str(folder), RECIPE, "auto")
    assert str(told.value) == (
        f"{folder} was begun by an earlier version; to continue it as it began, add {' '.join(AS_IT_BEGAN)}, or leave "
        "--recipe out."
    )
    with pytest.raises(InputError, match=r"run of another recipe.*seed: 7"):
        RunDirectory.open(str(folder), load_recipe("quickstart", ["seed=7"]), "auto")


def test_one_that_has_finished_has_finished(folder):
    (folder / "result.json").write_text("{}")
    for start, kind in (("auto", RunEnded), ("resume", InputError)):
        with pytest.raises(kind, match="has finished; its model is in"):
            RunDirectory.open(str(folder), RECIPE, start)


def test_with_what_it_began_with_it_is_resumed(folder):
    assert RunDirectory.open(str(folder), load_recipe("quickstart", AS_IT_BEGAN), "auto").begun


def test_report_and_replay_know_what_it_did(folder):
    (run,) = read_runs([folder])
    assert run.recipe == load_recipe("quickstart", AS_IT_BEGAN)
    (folder / "nonfinite").mkdir()
    assert parse_arguments(None, replay_arguments(folder)).recipe == run.recipe


def test_its_own_recipe_is_what_it_did(folder):
    again = parse_arguments(None, ["--output", str(folder), "--resume", "--deepspeed_config", "zero2"]).recipe
    assert again == load_recipe("quickstart", AS_IT_BEGAN)
    assert RunDirectory.open(str(folder), again, "resume").begun
