"""Every example runs as its first lines say, and improves its encoder."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer

from tests.support.launch import ROOT, environment

pytestmark = pytest.mark.slow


def run(name: str, *arguments: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *arguments],
        env={**environment(), **variables},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def assert_improved(output: str) -> None:
    before, after = (float(score) for score in re.findall(r"Spearman x 100 (?:before|after): +([\d.]+)", output))
    assert after > before + 1, output


def test_plain_pytorch():
    assert_improved(run("plain_pytorch.py"))


def test_sentence_transformers_trainer(tmp_path: Path):
    assert_improved(run("sentence_transformers_trainer.py", str(tmp_path / "model")))
    SentenceTransformer(str(tmp_path / "model"), device="cpu")


def test_notebook_and_the_same_call_again(tmp_path: Path):
    arguments = ("notebook.py", str(tmp_path / "run"))
    first = run(*arguments, DIFFCSE_CACHE=str(tmp_path / "cache"))
    assert "step 40/40" in first
    again = run(*arguments, DIFFCSE_CACHE=str(tmp_path / "cache"))
    assert "step" not in again.split("has finished")[1] and "has finished" in again
    assert first.splitlines()[-1] == again.splitlines()[-1]


def test_hook(tmp_path: Path):
    """The hook lies beside the example, which is no folder of the package: the process that trains has to find it."""
    printed = run("hook.py", str(tmp_path / "run"), DIFFCSE_CACHE=str(tmp_path / "cache"))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    assert f"largest gradient norm: {max(row['gradient_norm'] for row in rows):.3f}" in printed


def test_there_is_a_test_for_every_example():
    names = {file.stem for file in (ROOT / "examples").glob("*.py")}
    assert names == {"plain_pytorch", "sentence_transformers_trainer", "notebook", "hook"}
