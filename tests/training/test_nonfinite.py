"""Steps whose numbers are not finite: skipped as if they had not been; too many in a row are looked into.

The truth of a skipped step is its effect: none. What follows it is the same at every ZeRO stage, because all of them
skip it (absolute tolerance of losses of about 10: 1e-4).
"""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from diffcse_scale.foundation.exit_codes import ExitCode
from diffcse_scale.training.nonfinite import Buffers
from tests.support.command_line import diffcse_scale
from tests.support.launch import PROGRAMS, ROOT, launch, metrics

PROGRAM = PROGRAMS / "poisoned_program.py"


def train(toy_world, run: Path, steps: str, *more: str, stage: int = 2, monkeypatch):
    monkeypatch.setenv("POISON", steps)
    config = str(ROOT / "ds_configs" / f"zero{stage}.json")
    recipe = str(toy_world / "toy.yaml")
    arguments = ["--deepspeed_config", config, "--recipe", recipe, "--output", str(run), "max_skipped_steps=3", *more]
    return launch(*arguments, program=PROGRAM)


def replay(run: Path, monkeypatch):
    """`diffcse-scale replay RUN`: what it has the launcher do."""
    words: list[str] = []
    monkeypatch.setattr(os, "execve", lambda program, arguments, _: sys.exit(words.extend(arguments)))
    diffcse_scale("replay", run)
    assert words[:3] == [sys.executable, "-m", "deepspeed.launcher.runner"]
    program = words.index(str(ROOT / "train.py"))
    return launch(*words[program + 1 :], ranks=int(words[words.index("--num_gpus") + 1]))


@pytest.mark.slow
@pytest.mark.parametrize("stage", range(4))
def test_isolated_steps_are_skipped_and_leave_weights_and_statistics_as_they_were(
    toy_world, tmp_path, stage, monkeypatch
):
    result = train(toy_world, tmp_path / "run", "3,4,7", stage=stage, monkeypatch=monkeypatch)
    assert result.returncode == 0, result.stdout
    for step in (4, 5, 8):
        assert f"Step {step} is skipped: its loss or gradient is not finite." in result.stdout
    losses = {row["step"]: row["loss"] for row in metrics(tmp_path / "run") if "loss" in row}
    assert sorted(losses) == [1, 2, 3, 6, 7, 9, 10, 11, 12] and all(map(math.isfinite, losses.values()))
    for file in (tmp_path / "run" / "checkpoints").glob("step-*/*model_states.pt"):
        module = torch.load(file, weights_only=False)["module"]
        statistics = [value for name, value in module.items() if "running" in name]
        assert statistics and all(value.isfinite().all() for value in statistics)
    reference = tmp_path.parent / "skipped-losses.json"  # of whichever stage ran first
    if not reference.exists():
        reference.write_text(json.dumps(losses))
    for step, loss in json.loads(reference.read_text()).items():
        assert losses[int(step)] == pytest.approx(loss, abs=1e-4)


def test_too_many_in_a_row_stop_the_run_with_what_is_needed_to_replay_them(toy_world, tmp_path, monkeypatch):
    run = tmp_path / "run"
    result = train(toy_world, run, "3,4,7,8,9,10", "log_every=5", monkeypatch=monkeypatch)
    assert result.returncode == ExitCode.NOT_FINITE, result.stdout
    assert "Loss or gradient is not finite from step 8 on, on rank 0, 1" in result.stdout
    assert f"recompute the step with `diffcse-scale replay {run}`" in result.stdout
    # the weights that step 8 met, and nothing later
    assert (run / "checkpoints" / "latest").read_text().strip() == "step-00000007"
    dump = json.loads((run / "nonfinite" / "step-00000008.json").read_text())
    assert dump["step"] == 8 and len(set(dump["sentences"])) == 16
    assert [one["loss"] for one in dump["ranks"]] == ["nan", "nan"]
    assert dump["ranks"][0]["first_module"] == "encoder"
    assert all(isinstance(weight["norm"], float) for weight in dump["weights"].values())
    assert {weight["group"] for weight in dump["weights"].values()} == {"decayed", "kept"}
    assert dump["ranks"][0]["gradient_norms"]["encoder.backbone.embeddings.word_embeddings.weight"] == "nan"
    state = json.loads((run / "status.json").read_text())
    assert state["state"] == "failed" and "not finite from step 8" in state["message"]

    replayed = replay(run, monkeypatch)
    # nothing poisons these processes
    assert "Step 8 was not finite during training but is finite when recomputed" in replayed.stdout, replayed.stdout
    again = json.loads((run / "nonfinite" / "replay-step-00000008.json").read_text())
    assert again["sentences"] == dump["sentences"] and again["weights"] == dump["weights"]

    # after the cause is mended the run goes on from before the bad steps
    monkeypatch.setenv("POISON", "")
    resumed = train(toy_world, run, "", "log_every=5", "--resume", monkeypatch=monkeypatch)
    assert resumed.returncode == 0 and "Resuming after step 7 of 12" in resumed.stdout, resumed.stdout


@pytest.mark.slow
def test_a_learning_rate_that_is_far_too_large_is_told_by_the_same_words(toy_world, tmp_path):
    result = launch(
        *("--recipe", str(toy_world / "toy.yaml"), "--output", str(tmp_path / "run"), "max_skipped_steps=2"),
        *("optimizer.learning_rate=1e30", "evaluation.data=null", "objective.rtd_weight=0"),
    )
    assert result.returncode == ExitCode.NOT_FINITE, result.stdout
    assert "Loss or gradient is not finite from step 2 on" in result.stdout
    assert "then lower optimizer.learning_rate" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("poison", "changes"),
    [
        ("", ["optimizer.learning_rate=1e30"]),  # weights that are finite, of embeddings that are not
        ("", ["optimizer.learning_rate=1e30", "evaluation.data=null", "max_steps=1"]),
        ("", ["optimizer.learning_rate=3e38", "evaluation.data=null", "max_steps=3"]),
        ("0,1,2", ["max_steps=3"]),
        ("0,1,2", ["max_steps=3", "evaluation.data=null"]),
    ],
)
def test_a_run_shorter_than_what_may_be_skipped_never_finishes_with_numbers_that_are_not_finite(
    toy_world, tmp_path, monkeypatch, poison, changes
):
    changes = [*changes, "max_skipped_steps=20"]
    result = train(toy_world, tmp_path / "run", poison, *changes, monkeypatch=monkeypatch)
    assert result.returncode == ExitCode.NOT_FINITE, result.stdout
    assert "Loss or gradient is not finite from step" in result.stdout and "Traceback" not in result.stdout
    assert not (tmp_path / "run" / "model").exists() and not (tmp_path / "run" / "result.json").exists()
    assert json.loads((tmp_path / "run" / "status.json").read_text())["exit_code"] == ExitCode.NOT_FINITE


def test_statistics_are_put_back():
    module = nn.BatchNorm1d(3)
    module(torch.randn(8, 3))
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    buffers = Buffers(module)
    module(torch.full((8, 3), math.nan))
    assert not torch.isfinite(module.running_mean).all()
    buffers.put_back()
    assert all(torch.equal(buffer, before[name]) for name, buffer in module.named_buffers())
