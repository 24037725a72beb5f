"""Ctrl-C, and a terminal that is closed, as a person does it at a pseudo-terminal, with and without a launcher.

One line, a whole checkpoint, and nothing is left, within ten seconds on a quiet machine and thirty on a busy one. What
DeepSpeed's launcher prints itself is its own.
"""

from __future__ import annotations

import json
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from diffcse_scale.foundation.exit_codes import ExitCode
from diffcse_scale.foundation.signals import TOGETHER
from diffcse_scale.rendezvous import free_port
from tests.support.launch import PROGRAMS, ROOT, Ranks, environment
from tests.support.terminal import Terminal

pytestmark = pytest.mark.slow
PYTHON, DEEPSPEED = "python", "deepspeed"
INTERRUPTED = 130
GONE = 30.0  # seconds; docs/results/failures.md has those of a quiet machine


class _Session:
    """A terminal with a run that is much longer than a test."""

    def __init__(self, terminal: Terminal, folder: Path, toy_world: Path) -> None:
        self.terminal, self.run = terminal, folder / "run"
        self._recipe = folder / "long.yaml"
        long = yaml.safe_load((toy_world / "toy.yaml").read_text()) | {"epochs": 10_000, "max_steps": 100_000}
        long |= {"checkpoint_every": 100_000, "log_every": 1000}
        long["evaluation"]["every"] = 100_000
        self._recipe.write_text(yaml.safe_dump(long))

    def start(self, launcher: str, *before: str, after: Sequence[str] = (), pipe: str = "") -> None:
        program = {
            PYTHON: [sys.executable],
            DEEPSPEED: [str(Path(sys.executable).parent / DEEPSPEED), "--num_gpus=2", f"--master_port={free_port()}"],
        }
        arguments = [str(ROOT / "train.py"), "--recipe", str(self._recipe), "--output", str(self.run)]
        self.terminal.run(" ".join([*before, shlex.join([*program[launcher], *arguments, *after]), pipe]))

    def status(self) -> dict[str, Any]:
        file = self.run / "status.json"
        found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        return found

    def until_it_trains(self) -> None:
        self.terminal.wait_for(lambda: (self.status().get("step") or 0) > 2, 180)

    def assert_saved(self, by: str) -> None:
        status = self.status()
        step = status["step"]
        assert (status["state"], status["exit_code"]) == ("stopped", ExitCode.STOPPED)
        assert status["message"] == (
            f"Stopped by signal {by} after step {step} of 100000; checkpoint step-{step:08d} is complete; continue "
            "with --auto-resume."
        )
        assert (self.run / "checkpoints" / "latest").read_text().strip() == f"step-{step:08d}"


@pytest.fixture
def session(toy_world: Path, tmp_path: Path) -> Iterator[_Session]:
    with Terminal(environment(), tmp_path) as terminal:
        yield _Session(terminal, tmp_path, toy_world)


@pytest.mark.parametrize("launcher", [PYTHON, DEEPSPEED])
def test_ctrl_c_is_one_line_a_checkpoint_and_an_end(session: _Session, launcher: str) -> None:
    session.start(launcher)
    session.until_it_trains()
    before = len(session.terminal.said())
    session.terminal.type("\x03")
    session.terminal.wait_for(lambda: not session.terminal.processes(), GONE)
    # DeepSpeed's main launcher does not wait for the others
    assert session.terminal.exit_code() == {PYTHON: ExitCode.STOPPED, DEEPSPEED: INTERRUPTED}[launcher]
    session.assert_saved("INT")
    said = session.terminal.said()[before:]
    assert said.count(session.status()["message"]) == 1
    if launcher == PYTHON:
        lines = [line for line in said.splitlines() if line.strip() and "step/s" not in line]  # but for the bar's
        assert lines[:2] == ["^C", session.status()["message"]]
    assert "train.py" not in said  # as in a traceback


@pytest.mark.parametrize("launcher", [PYTHON, DEEPSPEED])
def test_a_run_whose_terminal_is_closed_checkpoints_and_leaves(session: _Session, launcher: str) -> None:
    session.start(launcher)
    session.until_it_trains()
    session.terminal.hang_up()
    session.terminal.wait_for(lambda: not session.terminal.processes(), GONE)
    session.assert_saved("HUP")


def test_under_nohup_a_run_outlives_its_terminal(session: _Session) -> None:
    session.start(PYTHON, "nohup")
    session.until_it_trains()
    session.terminal.hang_up()
    time.sleep(3)
    step = session.status()["step"]
    session.terminal.wait_for(lambda: session.status()["step"] > step, 30)
    assert session.status()["state"] == "training"


@pytest.mark.parametrize("seconds", [0.3, 1.0, 2.0, 4.0])
def test_ctrl_c_during_the_start_is_one_line(session: _Session, seconds: float) -> None:
    session.start(PYTHON)
    time.sleep(seconds)
    session.terminal.type("\x03")
    session.terminal.wait_for(lambda: not session.terminal.processes(), GONE)
    code = session.terminal.exit_code()
    lines = session.terminal.said().split("^C")[1].splitlines()
    ends = {
        INTERRUPTED: "Interrupted before the run began.",
        ExitCode.STOPPED: "Stopped by signal INT before training began; continue with --auto-resume.",
    }
    assert next(filter(None, lines)) == ends[code] and "Traceback" not in session.terminal.said()


def test_ranks_that_wait_for_one_that_never_comes_are_ended_by_ctrl_c(session: _Session) -> None:
    alone = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    variables = [f"{name}={value}" for name, value in (*alone.items(), ("MASTER_PORT", str(free_port())))]
    session.start(PYTHON, "env", *variables)
    time.sleep(12)  # of which it waits most, in C
    session.terminal.type("\x03")
    session.terminal.wait_for(lambda: not session.terminal.processes(), GONE)
    assert session.terminal.exit_code() == INTERRUPTED
    assert "^CInterrupted before the run began.\n" in session.terminal.said()


@pytest.mark.parametrize("launcher", [PYTHON, DEEPSPEED])
def test_a_run_goes_on_when_nobody_reads_its_output(session: _Session, launcher: str) -> None:
    session.start(launcher, "set -o pipefail;", after=["max_steps=4"], pipe="2>&1 | head -n 1")
    session.terminal.wait_for(lambda: session.status().get("state") == "finished", 180)
    session.terminal.wait_for(lambda: not session.terminal.processes(), 60)
    assert session.terminal.exit_code() == 0 and (session.run / "result.json").is_file()


@pytest.mark.parametrize("later", [False, True])
def test_ctrl_c_counts_as_one_within_two_seconds_and_later_it_ends_the_run_at_once(
    toy_world: Path, tmp_path: Path, later: bool
) -> None:
    run, held = tmp_path / "run", tmp_path / "held"
    arguments = ("--recipe", str(toy_world / "toy.yaml"), "--output", str(run))
    place = {"HOLD": "training:5", "HELD": str(held)}
    with Ranks(tmp_path / "outputs", *arguments, program=PROGRAMS / "held_program.py", **place) as ranks:
        ranks.wait_for(held.exists)

        def interrupt() -> None:
            for process in ranks.processes:
                process.send_signal(signal.SIGINT)

        interrupt()
        time.sleep(TOGETHER + 0.5 if later else 0.3)
        interrupt()  # the main rank is held, and rank 1 waits for it in C
        if not later:
            held.unlink()
        assert ranks.wait(30) == [INTERRUPTED if later else ExitCode.STOPPED] * 2, ranks.output()
        assert ranks.output().count("Interrupted again: ended without a new checkpoint") == later
        assert "Traceback" not in ranks.output()
    assert (run / "checkpoints" / "latest").read_text().strip() == ("none" if later else "step-00000006")
