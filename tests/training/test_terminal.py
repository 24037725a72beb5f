"""A terminal of 80 columns: nothing is wider, nothing is a library's, and what takes long moves."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffcse_scale.embedded.grammar import graded_pairs
from tests.support.launch import environment
from tests.support.terminal import COLUMNS, PROMPT, Terminal

pytestmark = pytest.mark.slow
RECIPE = (
    "epochs=10",
    "max_steps=60",
    "log_every=20",
    "evaluation.every=60",
    "data.limit=2000",
    "checkpoint_every=1000",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("w")
    pairs = [f"{score}\t{first}\t{second}" for score, first, second in graded_pairs(200, seed=1)]
    (found / "pairs.tsv").write_text("\n".join(pairs))
    return found


@pytest.fixture
def terminal(folder: Path) -> Iterator[Terminal]:
    with _at(folder) as found:
        yield found


@pytest.fixture(scope="module")
def training_lines(folder: Path) -> list[str]:
    """What a run in the folder `run` has shown."""
    with _at(folder) as terminal:
        return told(terminal, f"train --processes 1 --output run {' '.join(RECIPE)}")


def _at(folder: Path) -> Terminal:
    own = {**environment(), "DIFFCSE_CACHE": str(folder / "cache")}
    own.pop("COLUMNS", None)
    return Terminal(own, folder)


def told(terminal: Terminal, arguments: str) -> list[str]:
    """All that a command shows, whether it stays or is written over."""
    terminal.run(f"{Path(sys.executable).parent}/diffcse-scale {arguments}")
    terminal.wait_for(lambda: terminal.said().endswith(PROMPT), 180)
    lines = re.split(r"[\r\n]+", terminal.said())[1:-1]  # without what was typed
    assert terminal.exit_code() == 0, "\n".join(lines)
    return lines


def assert_quiet(lines: list[str]) -> None:
    for line in lines:
        assert len(line) <= COLUMNS, line
        assert not re.search(r"\[(INFO|WARNING)\]|LOAD REPORT|\x1b", line), line


def test_a_run_is_quiet_narrow_and_moves_between_its_log_lines(training_lines: list[str]):
    lines = training_lines
    assert_quiet(lines)
    first, second = (next(n for n, line in enumerate(lines) if line.startswith(f"{step}/60 ")) for step in (20, 40))
    assert "left" in next(line for line in reversed(lines[:first]) if line.startswith(" step"))
    between = {found[1] for line in lines[first:second] if (found := re.search(r"(\d+)/60 \[", line))}
    assert len(between) > 2, lines[first:second]
    assert any(line.startswith("evaluating, ") for line in lines)


@pytest.mark.parametrize("command", ["status run", "evaluate --model run --data pairs.tsv", "plan", "summarize run"])
@pytest.mark.usefixtures("training_lines")
def test_what_is_told_afterwards_is_as_narrow(terminal: Terminal, command: str):
    assert_quiet(told(terminal, command))
