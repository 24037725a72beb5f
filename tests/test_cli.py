"""The `diffcse-scale` program."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def diffcse_scale(*arguments, cwd=ROOT):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}", "COLUMNS": "200"}
    command = [sys.executable, "-m", "diffcse_scale", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def test_help_names_every_command():
    output = diffcse_scale("--help").stdout
    for command in ("train", "evaluate", "encode", "search", "export", "report", "pretrain-generator", "benchmark"):
        assert command in output


def test_every_option_of_pretrain_generator_is_a_documented_field():
    from diffcse_scale.training.pretrain_options import PretrainOptions

    output = diffcse_scale("pretrain-generator", "--help").stdout
    for name in PretrainOptions.model_fields:
        assert f"--{name.replace('_', '-')}" in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evaluate", "--model", "nowhere", "--data", "sts"], "does not exist"),
        (["pretrain-generator", "--files", "a.txt", "--output", "x", "--hidden", "10", "--heads", "3"], "must divide"),
        (["pretrain-generator", "--files", "nowhere.txt", "--output", "x"], "nowhere.txt"),
        (["benchmark", "kernels", "info-nce", "--only", "egar"], "did you mean eager?"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(tmp_path, arguments, words):
    result = diffcse_scale(*arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1].startswith("error: ") and words in result.stderr
    assert "Traceback" not in result.stderr
