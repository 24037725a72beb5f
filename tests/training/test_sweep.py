"""A sweep on this machine: each combination once, one after another, and the same command goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.training.sweep import _parted, combinations, sweep
from tests.support.launch import ROOT, environment


def test_combinations_are_those_of_slurm_in_its_order() -> None:
    found = combinations(["seed=1,2", "optimizer.warmup=0,0.1"])
    assert [",".join(values) for values in found] == [
        f"seed={seed},optimizer.warmup={warmup}" for warmup in ("0", "0.1") for seed in (1, 2)
    ]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["seed=1,2"], "-- is missing before"),
        (["--", "--recipe", "quickstart"], "Nothing is not field=value,value"),
        (["seed", "--"], "'seed' is not field=value,value"),
        (["data.files=a/b,a_b", "--"], "'data.files=a/b' and 'data.files=a_b' would be one run folder, runs/sweep-"),
        (["seed=1,2", "seed=3", "--"], "seed is given twice; give all its values at once"),
        (["seed=1,01", "--"], "'seed=1' and 'seed=01' are the same recipe; give values that differ"),
        (["objective.rtd_weight=0,0.0", "--"], "'objective.rtd_weight=0' and 'objective.rtd_weight=0.0' are the same"),
        (["name=a,b", "--"], "'name=a' and 'name=b' are the same recipe"),
        (["seed=1,2", "--", "--dry-run"], "--dry-run is for one run, and a sweep trains"),
        (["seed=1,2", "--", "--resume"], "--resume is for one run; leave it out"),
        (["seed=1,2", "--", "--replay"], "--replay is for one run, and a sweep trains"),
    ],
    ids=str,
)
def test_words_that_cannot_be_read_are_a_sentence(words: list[str], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        sweep(words, 1)


def test_a_combination_that_would_be_refused_is_told_before_the_first_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        sweep(["optimizer.warmup=0,2", "--", "--output", str(tmp_path / "s")], 1)
    assert end.value.code == 2 and "optimizer.warmup" in capsys.readouterr().err and not (tmp_path / "s").exists()


def test_a_home_folder_is_replaced_in_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for words in (["--output", "~/s"], ["--output=~/s"]):
        assert _parted(["seed=1", "--", *words]) == (["seed=1"], [], str(tmp_path / "s"))


@pytest.mark.parametrize(
    ("program", "code"),
    [("kill -KILL $$", 137), ("trap '' TERM; sleep 0.2; kill -TERM $PPID; exit 0", 74)],
    ids=["killed", "stopped as it finished"],
)
def test_a_sweep_leaves_with_a_documented_code(
    program: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell in the place of the interpreter ends as a run may."""
    shell = tmp_path / "run"
    shell.write_text(f"#!/bin/bash\n{program}\n")
    shell.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(shell))
    assert sweep(["seed=1", "--", "--output", str(tmp_path / "s")], 1) == code


@pytest.mark.slow
def test_runs_are_trained_summed_up_and_not_trained_again(toy_world: Path, tmp_path: Path) -> None:
    words = ["seed=1,2", "--", "--recipe", str(toy_world / "toy.yaml"), f"--output={tmp_path / 'sweep'}"]
    command = [sys.executable, "-m", "diffcse_scale", "sweep", "--processes", "1", *words]

    def run() -> str:
        done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    first = run()
    results = sorted((tmp_path / "sweep").glob("seed=*/result.json"))
    scores = [json.loads(file.read_text())["best"]["dev_spearman"] for file in results]
    assert len(scores) == 2 and "1, 2" in first and f"{sum(scores) / 2:.3f}" in first
    times = [file.stat().st_mtime_ns for file in results]
    assert "has finished" in run() and [file.stat().st_mtime_ns for file in results] == times
