"""Which evaluation counts as the best; who may keep it; and that nothing but what was kept then becomes `model/`."""

from __future__ import annotations

import errno
from math import nan
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from diffcse_scale.foundation.errors import InputError, RunEnded
from diffcse_scale.foundation.exit_codes import ExitCode
from diffcse_scale.recipe_file import load_recipe
from diffcse_scale.runs.directory import RunDirectory
from diffcse_scale.runs.metrics_file import MetricsFile
from diffcse_scale.training.best_model import BestModel, digests, improves
from diffcse_scale.training.curves_png import draw_curves
from tests.support.file_events import FileEvents, fail
from tests.support.files import contents, write_files

FILES = {"model.safetensors": b"weights", "modules.json": b"[]", "1_Pooling/config.json": b"{}"}


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
    monkeypatch.setattr(model, "_export", lambda place: {})
    model.keep({"step": 8}, lambda doing: None)
    write_files(older.best(8), {"weights": b"of the older"})
    model.place({})
    older.finish(steps=12)
    assert [(place / "weights").read_bytes() for place in theirs] == [f"of {place.name}".encode() for place in theirs]
    assert not (older.path / "result.json").exists()
    with pytest.raises(RunEnded) as end:
        older.check_owned()  # which the trainer does last
    assert end.value.exit_code == ExitCode.SUPERSEDED


def resumed(run: Path, state) -> BestModel:
    """As of a checkpoint with this state."""
    model = BestModel(load_recipe("quickstart"), None, None, RunDirectory(run), None)
    model.restore(state)
    return model


@pytest.fixture
def state(tmp_path):
    """Of a checkpoint of `tmp_path`, in which the best is that of step 8."""
    best = RunDirectory(tmp_path).best(8)
    write_files(best, {**FILES, "projection.safetensors": b"projection"})
    return {"best": {"step": 8, "dev_spearman": 50.0}, "best_files": digests(best)}


def test_the_best_becomes_the_model_and_what_a_kill_left_beside_it_does_not(tmp_path, state):
    write_files(RunDirectory(tmp_path).best(8), {".permissions.77": b"", "model.safetensors.tmp": b"half"})
    write_files(tmp_path, {"model/of an earlier end": b"", "model.partial/half": b""})
    resumed(tmp_path, state).place({})
    assert contents(tmp_path / "model") == FILES
    assert (tmp_path / "projection.safetensors").read_bytes() == b"projection"
    assert not (tmp_path / "model.partial").exists()


@pytest.mark.parametrize("moment", ["resume", "end"])
@pytest.mark.parametrize("damage", ["emptied", "zeroed", "gone", "all gone"])
@pytest.mark.parametrize("name", ["model.safetensors", "1_Pooling/config.json", "projection.safetensors"])
def test_damaged_weights_are_named_and_never_become_the_model(tmp_path, state, name, damage, moment):
    best = RunDirectory(tmp_path).best(8)
    model = resumed(tmp_path, state)
    if damage == "all gone":
        best.rename(tmp_path / "elsewhere")
    elif damage == "gone":
        (best / name).unlink()
    else:
        (best / name).write_bytes(bytes(0 if damage == "emptied" else (best / name).stat().st_size))
    said = r"The best encoder so far cannot be used: .*step-00000008.* is gone.*; restore .*step-00000008"
    with pytest.raises(InputError, match=said):
        model.place({}) if moment == "end" else resumed(tmp_path, state)
    assert not (tmp_path / "model").exists() and not (tmp_path / "projection.safetensors").exists()


def test_a_checkpoint_of_an_earlier_version_does_not_know_the_files(tmp_path, state):
    resumed(tmp_path, {"best": state["best"]}).place({})
    assert contents(tmp_path / "model") == FILES


def test_a_picture_that_cannot_be_drawn_ends_no_run(tmp_path, caplog):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.write({"step": 1, "dev_spearman": 40.0})
    (tmp_path / "curves.png").write_bytes(b"of before")
    with FileEvents([tmp_path], fail(1, errno.EDQUOT), only="rename"):
        draw_curves(metrics, tmp_path / "curves.png")
    assert caplog.text.count("No curves.png: ") == 1 and "Disk quota exceeded" in caplog.text
    draw_curves(MetricsFile(tmp_path / "none"), tmp_path / "curves.png")  # nothing to draw
    assert caplog.text.count("No curves.png: ") == 2
    assert (tmp_path / "curves.png").read_bytes() == b"of before"
