"""An output folder is never written over."""

from __future__ import annotations

import json

import pytest

from diffcse_scale.errors import InputError
from diffcse_scale.recipe import load_recipe
from diffcse_scale.training.metrics import MetricsFile
from diffcse_scale.training.run_directory import RunDirectory

RECIPE = load_recipe("quickstart")
FACTS = {"data_fingerprint": "abc", "precision": "float32"}


def started(path, recipe=RECIPE):
    """A run that has got past its checks."""
    run = RunDirectory.open(path, recipe, resume=False)
    run.describe(recipe, resume=False, **FACTS)
    return run


def test_without_a_name_runs_are_numbered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [started(None) for _ in range(3)]
    names = [run.path.as_posix() for run in runs]
    assert names == ["runs/quickstart", "runs/quickstart-2", "runs/quickstart-3"]


def test_a_folder_with_a_run_is_refused_unless_it_is_resumed(tmp_path):
    folder = str(tmp_path / "run")
    started(folder)
    with pytest.raises(InputError, match="continue it with --resume"):
        RunDirectory.open(folder, RECIPE, resume=False)
    assert str(RunDirectory.open(folder, RECIPE, resume=True).path) == folder


@pytest.mark.parametrize("resume", [True, False])
def test_another_recipes_run_is_refused_and_the_difference_shown(tmp_path, resume):
    folder = str(tmp_path / "run")
    started(folder)
    other = load_recipe("quickstart", ["optimizer.clip=2.0", "log_every=7"])
    with pytest.raises(InputError, match=r"holds a run of another recipe.*optimizer.clip: 2.0, not 1.0\)"):
        RunDirectory.open(folder, other, resume)


def test_what_does_not_touch_the_result_may_change_on_resume(tmp_path):
    folder = str(tmp_path / "run")
    started(folder)
    RunDirectory.open(folder, load_recipe("quickstart", ["log_every=7", "data.workers=1"]), resume=True)


def test_a_start_that_a_mistake_stopped_leaves_the_folder_free(tmp_path):
    folder = str(tmp_path / "run")
    RunDirectory.open(folder, RECIPE, resume=False)
    assert str(RunDirectory.open(folder, load_recipe("quickstart", ["seed=7"]), resume=False).path) == folder


def test_a_folder_in_use_names_its_user(tmp_path):
    folder = str(tmp_path / "run")
    run = RunDirectory.open(folder, RECIPE, resume=False)
    with pytest.raises(InputError, match=r"is being written by process \d+ on "):
        RunDirectory.open(folder, RECIPE, resume=False)
    del run
    RunDirectory.open(folder, RECIPE, resume=False)


@pytest.mark.parametrize("changed", [{"data_fingerprint": "xyz"}, {"precision": "bfloat16"}])
def test_another_corpus_or_precision_is_not_resumed(tmp_path, changed):
    folder = str(tmp_path / "run")
    started(folder)
    run = RunDirectory.open(folder, RECIPE, resume=True)
    with pytest.raises(InputError, match=next(iter(changed)).replace("_", " ")):
        run.describe(RECIPE, resume=True, **{**FACTS, **changed})


def test_each_resume_is_recorded_beside_what_the_run_began_with(tmp_path):
    folder = str(tmp_path / "run")
    started(folder)
    for world_size in (4, 1):
        run = RunDirectory.open(folder, RECIPE, resume=True)
        run.describe(RECIPE, resume=True, **FACTS, plan={"world_size": world_size})
        del run
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert "plan" not in record
    assert [entry["plan"]["world_size"] for entry in record["resumed"]] == [4, 1]


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="is no run of this program"):
        RunDirectory.open(str(tmp_path), RECIPE, resume=False)


def test_resuming_nothing_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no run to resume"):
        RunDirectory.open(str(tmp_path / "absent"), RECIPE, resume=True)


def test_a_finished_run_is_not_resumed(tmp_path):
    run = started(str(tmp_path / "run"))
    run.finish(steps=1)
    with pytest.raises(InputError, match="has finished"):
        RunDirectory.open(str(tmp_path / "run"), RECIPE, resume=True)


def test_rows_of_steps_that_are_repeated_are_forgotten(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    for step in (0, 2, 4, 6):
        file.write({"step": step})
    with file.path.open("a") as raw:
        raw.write('{"step": 8, "lo')  # cut short by a killed process
    file.forget_after(4)
    assert [row["step"] for row in file.rows()] == [0, 2, 4]
