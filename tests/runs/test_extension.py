"""A run that is given more steps: as if it had been begun with them, or a sentence that says what to do instead."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.recorded_recipe import check_recipe
from diffcse_scale.recipe_file import load_recipe
from diffcse_scale.runs.directory import RunDirectory
from diffcse_scale.training.train_arguments import parse_arguments
from tests.support.launch import launch, metrics
from tests.support.toy_world import write_toy_world

FACTS = {"data_fingerprint": "a", "development_fingerprint": "b", "models_fingerprint": "c", "precision": "float32"}
CONSTANT = ("optimizer.schedule=constant", "optimizer.warmup=0", "max_steps=12")


def finished(folder: Path, *overrides: str) -> Path:
    """The folder of a run of 12 steps, of which an epoch has 20."""
    recipe = load_recipe("quickstart", overrides)
    run = RunDirectory.open(str(folder), recipe, "new")
    run.describe(recipe, **FACTS, plan={"steps": recipe.steps(20), "steps_per_epoch": 20})
    run.finish(steps=12)
    return folder


def asked(folder: Path, *words: str) -> RunDirectory:
    """What train.py opens for `--output FOLDER WORDS`."""
    found = parse_arguments(None, ["--output", str(folder), *words])
    return RunDirectory.open(found.output, found.recipe, found.start)


def test_a_run_is_continued_with_its_own_recipe(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = load_recipe("quickstart", ["objective.rtd_weight=0", "seed=5"])
    RunDirectory.open(str(tmp_path / "run"), recipe, "new").describe(recipe, **FACTS)
    found = parse_arguments(None, ["--output", str(tmp_path / "run"), "--auto-resume", "log_every=3"])
    assert found.recipe == load_recipe("quickstart", ["objective.rtd_weight=0", "seed=5", "log_every=3"])
    with caplog.at_level("INFO"):
        assert asked(tmp_path / "run", "--resume", "log_every=3").begun
    assert "log_every: 3, not 20" in caplog.text
    with pytest.raises(InputError, match=r"another recipe.*seed: 6, not 5"):
        asked(tmp_path / "run", "--resume", "seed=6")


def test_a_name_is_that_of_the_folder_whose_recipe_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, seed in (("quickstart", 5), ("foo", 6)):
        recipe = load_recipe("quickstart", [f"name={name}", f"seed={seed}"])
        RunDirectory.open(None, recipe, "new").describe(recipe, **FACTS)
    words = {"quickstart": [], "foo": ["name=foo"], "bar": ["name=bar"]}
    found = {name: parse_arguments(None, ["--auto-resume", *given]).recipe for name, given in words.items()}
    usual = load_recipe("quickstart").seed
    assert {name: recipe.seed for name, recipe in found.items()} == {"quickstart": 5, "foo": 6, "bar": usual}


@pytest.mark.parametrize(
    ("schedule", "words", "said"),
    [
        (
            "linear",
            [],
            "finished; its model is in .*; to train further, start another run with model.encoder=.*/model and",
        ),
        (
            "linear",
            ["max_steps=20"],
            r"cannot be extended: .*\(schedule linear, warmup 0.1\); to train further, start another",
        ),
        ("constant", [], "a larger max_steps or epochs extends it"),
        ("constant", ["max_steps=12"], "a larger max_steps or epochs extends it"),
        ("constant", ["max_steps=5"], r"has 12 steps, and this recipe gives it 5 \(20 per epoch\); raise max_steps or"),
        ("constant", ["epochs=9"], "has 12 steps, and this recipe gives it 12"),
        ("constant", ["max_steps=99", "epochs=0.5"], "has 12 steps, and this recipe gives it 10"),
    ],
)
def test_what_cannot_be_extended_is_told_with_what_to_do(
    tmp_path: Path, schedule: str, words: list[str], said: str
) -> None:
    warmup = "optimizer.warmup=0.1" if schedule == "linear" else "optimizer.warmup=0"
    run = finished(tmp_path / "run", f"optimizer.schedule={schedule}", warmup, "max_steps=12")
    before = {file.name: file.read_bytes() for file in run.iterdir()}
    with pytest.raises(InputError, match=said):
        asked(run, "--resume", *words)
    assert {file.name: file.read_bytes() for file in run.iterdir()} == before


def test_an_extended_run_has_the_new_length_and_keeps_what_was_measured_before(tmp_path: Path) -> None:
    folder = finished(tmp_path / "run", *CONSTANT)
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "sts.json").write_text("{}")
    run = asked(folder, "--resume", "max_steps=15", "log_every=3")
    earlier = (folder / "recipe.yaml").read_text()
    run.describe(load_recipe("quickstart", [*CONSTANT, "max_steps=15"]), **FACTS, plan={"steps": 15})
    del run
    assert not (folder / "result.json").exists()
    assert json.loads((folder / "run.json").read_text())["plan"] == {"steps": 15, "steps_per_epoch": 20}
    assert [path.name for path in folder.glob("evaluation*/*")] == ["sts.json"] and not (folder / "evaluation").exists()
    again = parse_arguments(None, ["--output", str(folder), "--resume"]).recipe
    assert again == load_recipe("quickstart", [*CONSTANT, "max_steps=15"])
    # killed between the record and the recipe, the earlier one is still the run's, which can be extended again
    (folder / "recipe.yaml").write_text(earlier)
    check_recipe(folder)
    assert asked(folder, "--resume", "max_steps=15").extended
    (folder / "recipe.yaml").write_text(earlier.replace("max_steps: 12", "max_steps: 13"))
    with pytest.raises(InputError, match="has changed since the run began"):
        check_recipe(folder)


@pytest.mark.slow
def test_an_extended_run_is_the_one_that_was_longer_from_the_start(tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(json.dumps(write_toy_world(tmp_path)))
    common = ("--recipe", str(tmp_path / "toy.yaml"), *CONSTANT[:2])
    for name, steps in (("extended", 9), ("longer", 18)):
        done = launch(*common, "--output", str(tmp_path / name), f"max_steps={steps}", ranks=1)
        assert done.returncode == 0, done.stdout
    more = launch("--output", str(tmp_path / "extended"), "--resume", "max_steps=18", ranks=1)
    assert more.returncode == 0, more.stdout
    assert "max_steps: 18, not 9" in more.stdout and "Resuming after step 6 of 18" in more.stdout
    assert metrics(tmp_path / "extended") == metrics(tmp_path / "longer")
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("extended", "longer")]
    assert results[0] == results[1]
    models = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("extended", "longer")]
    assert models[0] == models[1]
