"""`train.py --push-to-hub`, against a Hub of our own: asked before the run begins, given the model when it is done."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.training.sweep import sweep
from tests.support.launch import ROOT, environment
from tests.support.own_hub import TOKEN, Hub, own_hub


def train(hub: Hub, toy_world: Path, folder: Path, repo: str) -> tuple[int, str]:
    """Exit code and output of a run of two steps."""
    arguments = ("--recipe", str(toy_world / "toy.yaml"), "max_steps=2", "--output", str(folder / "run"))
    variables = {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN}
    command = [sys.executable, str(ROOT / "train.py"), *arguments, "--push-to-hub", repo]
    done = subprocess.run(command, env={**environment(), **variables}, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("refuse", [False, True])
def test_a_finished_run_is_uploaded_and_a_refused_upload_does_not_fail_it(
    toy_world: Path, tmp_path: Path, refuse: bool
) -> None:
    with own_hub() as hub:
        hub.refuse_commits = refuse
        code, said = train(hub, toy_world, tmp_path, "alice/mine")
    assert code == 0, said
    assert (tmp_path / "run" / "result.json").is_file()
    assert ("model.safetensors" in hub.committed) is not refuse
    run = tmp_path / "run"
    again = f"to upload it: diffcse-scale export --model {run} --output mine --push-to-hub alice/mine --private"
    assert (again in said) is refuse and (f"On the Hub: {hub.address}/alice/mine" in said) is not refuse


@pytest.mark.slow
def test_somebody_elses_name_is_refused_before_anything_is_written(toy_world: Path, tmp_path: Path) -> None:
    with own_hub() as hub:
        code, said = train(hub, toy_world, tmp_path, "bob/mine")
    assert code == 2 and "error: --push-to-hub bob/mine: you are logged in as alice" in said
    assert not (tmp_path / "run").exists() and hub.created == []


def test_a_sweep_does_not_upload() -> None:
    with pytest.raises(InputError, match="--push-to-hub is for one run"):
        sweep(["seed=1,2", "--", "--recipe", "quickstart", "--push-to-hub", "me/mine"], None)
