"""`make gpu-check`: its commands are such as the programs take, and one that fails stops no other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffcse_kernels.benchmark.command import _parser

from diffcse_scale.benchmark import command as benchmark
from diffcse_scale.benchmark.grid import Cell
from diffcse_scale.doctor import command as doctor
from diffcse_scale.doctor.doctor_options import DoctorOptions
from diffcse_scale.training.train_arguments import parse_arguments
from studies import gpu_check
from studies.gpu_check import Step, check, steps
from tests.support.command_line import diffcse_scale
from tests.support.devices import ON_GPU

PYTHON = "-c"


def arguments_of(name: str, folder: Path) -> tuple[str, ...]:
    """What the program of a step is given."""
    (step,) = (step for step in steps(2, folder) if step.name == name)
    return step.arguments[2:]


@pytest.mark.skipif(ON_GPU, reason="there is a GPU here")
def test_without_a_gpu_one_sentence_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: gpu-check needs a GPU") and "diffcse-scale doctor" in line


def test_a_step_that_fails_or_hangs_stops_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sleeps = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    chosen = [
        Step("breaks", (PYTHON, "print('why'); exit(3)")),
        Step("hangs", (PYTHON, sleeps)),
        Step("works", ("-V",)),
    ]
    assert check(chosen, tmp_path / "check", longest=2.0) == 2
    printed = capsys.readouterr().out.splitlines()
    for line, words in zip(
        printed, ["failed, exit code 3", "not done within 2 s", " ok", "1 ok, 2 failed"], strict=True
    ):
        assert words in line
    assert (tmp_path / "check" / "01-breaks.log").read_text() == "why\n"
    summary = json.loads((tmp_path / "check" / "summary.json").read_text())
    assert [step["exit_code"] for step in summary["steps"]] == [3, 124, 0]
    assert summary["environment"]["packages"]["torch"] == torch.__version__


def test_every_stage_is_trained_chunked_and_not(tmp_path: Path) -> None:
    seen = set()
    for step in steps(2, tmp_path):
        if step.name.startswith("train"):
            command, processes, count, *rest = step.arguments[2:]
            assert (command, processes, count) == ("train", "--processes", "2")
            given = parse_arguments(None, rest)
            seen.add((given.deepspeed_config["zero_optimization"]["stage"], given.recipe.batch.chunk))
            assert given.recipe.max_steps == 20 and given.recipe.batch.sentences == 2 * 2 * 8
    assert seen == {(stage, chunk) for stage in range(4) for chunk in (None, 8)}


def test_the_step_is_measured_with_and_without_compiling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[list[Cell]] = []
    monkeypatch.setattr(benchmark, "benchmark_step", lambda cells, *rest: measured.append(cells))
    for name in ("step", "step-compiled"):
        assert diffcse_scale(*arguments_of(name, tmp_path)).returncode == 0
    plain, compiled = measured
    assert [cell.compiled for cell in (*plain, *compiled)] == [False, False, True, True]
    assert {cell.precision for cell in (*plain, *compiled)} == {"bf16"}


def test_doctor_and_crossovers_take_what_they_are_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(doctor, "examine", seen.append)
    diffcse_scale(*arguments_of("doctor", tmp_path))
    assert seen == [DoctorOptions(ranks=2, json=tmp_path / "doctor.json")]
    assert _parser().parse_args(arguments_of("crossovers", tmp_path))
