"""A user's hook: given by name, called at its five moments in this order, refused in one sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.training.hook import load_hooks
from tests.support.launch import launch, metrics

MODULE = """
from diffcse_scale.distributed import rank
from diffcse_scale.training import Hook


class Diary(Hook):
    def __init__(self):
        self.lines = []

    def on_start(self, trainer):
        self.lines.append(["start", trainer.step])

    def after_step(self, trainer):
        self.lines.append(["step", trainer.step])

    def on_row(self, trainer, row):
        self.lines.append(["row", trainer.step, sorted(row)])

    def at_pause(self, trainer):
        self.lines.append(["pause", trainer.step])

    def on_end(self, trainer, result):
        result[f"diary_{rank()}"] = self.lines


class Wants(Hook):
    def __init__(self, something):
        pass


class Misspelt(Hook):
    on_screen = True  # no method

    def on_strat(self, trainer):
        pass


class NoHook:
    pass
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "users_hooks.py").write_text(MODULE)
    (tmp_path / "broken_hooks.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("users_hooks", "names no class; write it as package.module:Class"),
        ("users_hooks:", "names no class"),
        ("absent_hooks:Diary", "ModuleNotFoundError: No module named 'absent_hooks'"),
        ("broken_hooks:Diary", "ZeroDivisionError"),
        ("users_hooks:Dairy", "has no Dairy"),
        ("users_hooks:NoHook", "has a NoHook that is no subclass of Hook"),
        ("users_hooks:MODULE", "has no MODULE"),
        (
            "users_hooks:Misspelt",
            "has a method on_strat (did you mean on_start?), which training does not call",
        ),
        ("users_hooks:Wants", "cannot be created without arguments"),
    ],
)
def test_a_name_that_is_no_hook_is_one_sentence(name: str, words: str, folder: Path) -> None:
    with pytest.raises(InputError) as refused:
        load_hooks([name])
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_the_base_class_is_imported_without_torch() -> None:
    program = "import sys; from diffcse_scale.training import Hook; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_a_hook_is_called_in_order_and_changes_no_number(toy_world: Path, folder: Path) -> None:
    arguments = ("--recipe", str(toy_world / "toy.yaml"), "max_steps=2", "evaluation.every=1", "log_every=2")
    result = launch(*arguments, "--output", "run", "--hook", "users_hooks:Diary", ranks=1, cwd=folder)
    assert result.returncode == 0, result.stdout
    (*_, last) = metrics(folder / "run")
    assert last["step"] == 2
    lines = json.loads((folder / "run" / "result.json").read_text())["diary_0"]
    assert [line[:2] for line in lines] == [
        ["row", 0],  # the untrained encoder is measured before
        ["start", 0],
        ["step", 1],
        ["row", 1],  # a score
        ["pause", 1],
        ["row", 2],  # a log line, which is written before the hook's own turn
        ["step", 2],
        ["row", 2],
        ["pause", 2],
    ]
    assert "gradient_norm" in lines[5][2] and "dev_spearman" in lines[7][2]


def test_a_name_that_cannot_be_imported_is_refused_before_anything_is_written(toy_world: Path, folder: Path) -> None:
    arguments = ("--recipe", str(toy_world / "toy.yaml"), "--output", "run", "--hook", "absent_hooks:Diary")
    result = launch(*arguments, ranks=1, cwd=folder)
    assert result.returncode == 2 and "error: Hook absent_hooks:Diary cannot be imported" in result.stdout
    assert "Traceback" not in result.stdout and not (folder / "run").exists()
