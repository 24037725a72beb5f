"""A run that is stopped from outside leaves a whole checkpoint and a telling exit code, and goes on bit for bit.

The truth is the run that was not stopped. Two ranks, ZeRO-2, dropout on; one rank alone is told, at a place where the
main rank has been held.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from diffcse_scale.foundation.environment import host_name
from diffcse_scale.foundation.exit_codes import ExitCode
from diffcse_scale.rendezvous import free_port
from tests.support.launch import PROGRAMS, ROOT, Ranks, environment, metrics

HELD_PROGRAM = PROGRAMS / "held_program.py"


def slow(*values: object) -> object:
    """Parameters of a case that the default tests leave out."""
    return pytest.param(*values, marks=pytest.mark.slow)


DONE = [ExitCode.FINISHED] * 2


def started(toy_world: Path, run: Path, *more: str, hold: str = "", **variables: str) -> Ranks:
    """The toy run, which waits at `hold`. Its log lines are means over steps before and after a stop."""
    arguments = ["--recipe", str(toy_world / "toy.yaml"), "--output", str(run), "--auto-resume", "log_every=4", *more]
    folder = run.with_name(run.name + "-output")
    held = {"HOLD": hold, "HELD": str(run.with_name(run.name + "-held"))}
    return Ranks(folder, *arguments, program=HELD_PROGRAM, **held, **variables)


def held(run: Path) -> Path:
    return run.with_name(run.name + "-held")


def status(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "status.json").read_text())
    return found


@pytest.fixture(scope="module")
def truth(toy_world, tmp_path_factory):
    """A run that nobody stopped."""
    run = tmp_path_factory.mktemp("truth") / "run"
    with started(toy_world, run) as ranks:
        assert ranks.wait() == DONE, ranks.output()
    return run


def assert_goes_on(toy_world: Path, run: Path, truth: Path) -> None:
    """Continue `run`; it ends as if it had never stopped."""
    with started(toy_world, run) as ranks:
        assert ranks.wait() == DONE, ranks.output()
    assert metrics(run) == metrics(truth)
    assert json.loads((run / "result.json").read_text()) == json.loads((truth / "result.json").read_text())


@pytest.mark.parametrize(
    ("place", "number", "code", "row"),
    [
        ("training:5", signal.SIGUSR1, ExitCode.PREEMPTED, True),
        # where a checkpoint is being written as it is
        slow("training:6", signal.SIGTERM, ExitCode.STOPPED, True),
        slow("evaluating:8", signal.SIGUSR1, ExitCode.PREEMPTED, False),
        # the first measured encoder is the best so far on every machine
        slow("exporting:4", signal.SIGUSR1, ExitCode.PREEMPTED, False),
        # after the last step
        slow("evaluating:12", signal.SIGTERM, ExitCode.STOPPED, False),
    ],
)
def test_one_signalled_rank_stops_all_after_a_checkpoint(toy_world, tmp_path, truth, place, number, code, row):
    run, (doing, number_of_step) = tmp_path / "run", place.split(":")
    # in training all ranks learn of it a step later
    step = int(number_of_step) + (doing == "training")
    with started(toy_world, run, hold=place) as ranks:
        ranks.wait_for(held(run).exists)
        ranks.processes[0].send_signal(number)
        held(run).unlink()
        assert ranks.wait() == [code, code], ranks.output()
        assert f"after step {step} of 12; checkpoint step-{step:08d} is complete" in ranks.output()
    assert status(run)["state"] == "stopped" and status(run)["last_checkpoint"] == f"step-{step:08d}"
    assert (run / "checkpoints" / "latest").read_text().strip() == f"step-{step:08d}"
    # an evaluation that was stopped is repeated, and leaves no row twice
    assert any(entry["step"] == step and "dev_spearman" in entry for entry in metrics(run)) is (row and step % 4 == 0)
    assert_goes_on(toy_world, run, truth)


@pytest.mark.slow
def test_it_may_be_any_rank(toy_world, tmp_path, truth):
    run = tmp_path / "run"
    with started(toy_world, run, hold="training:5") as ranks:
        ranks.wait_for(held(run).exists)
        ranks.processes[1].send_signal(signal.SIGUSR1)
        held(run).unlink()
        assert ranks.wait() == [ExitCode.PREEMPTED] * 2, ranks.output()
    # it may have waited for the main rank already, with what it knew before
    assert status(run)["last_checkpoint"] in ("step-00000006", "step-00000007")
    assert_goes_on(toy_world, run, truth)


@pytest.mark.slow
@pytest.mark.parametrize(("text", "code"), [("requeue\n", ExitCode.PREEMPTED), ("", ExitCode.STOPPED)])
def test_a_stop_file_does_as_a_signal_does_and_is_taken_away(toy_world, tmp_path, truth, text, code):
    run = tmp_path / "run"
    # between two log lines: the window of the next one is a part of what is saved
    with started(toy_world, run, hold="training:4") as ranks:
        ranks.wait_for(held(run).exists)
        (run / "stop").write_text(text)
        held(run).unlink()
        assert ranks.wait() == [code, code], ranks.output()
    assert not (run / "stop").exists()
    assert_goes_on(toy_world, run, truth)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, 75), slow(signal.SIGTERM, 74)])
def test_before_training_all_ranks_leave_within_seconds_of_a_signal_to_one(toy_world, tmp_path, number, code):
    run = tmp_path / "run"
    with started(toy_world, run, f"data.cache_dir={tmp_path}", hold="preparing") as ranks:
        ranks.wait_for(held(run).exists)
        ranks.processes[1].send_signal(number)  # whichever of the two tokenizes, the other waits for it
        start = time.monotonic()
        assert ranks.wait(50) == [code, code], ranks.output()
        assert time.monotonic() - start < 40  # the place holds for 60
        assert "before training began; continue with --auto-resume" in ranks.output()
    with started(toy_world, run, f"data.cache_dir={tmp_path}", "max_steps=2") as ranks:
        assert ranks.wait() == DONE, ranks.output()


@pytest.mark.slow
@pytest.mark.parametrize("everybody", [False, True], ids=["the rank", "its workers too"])
@pytest.mark.parametrize(
    ("place", "number", "code"),
    [
        ("cleaning", signal.SIGTERM, ExitCode.STOPPED),
        ("tokenizing", signal.SIGUSR1, ExitCode.PREEMPTED),
        ("tokenizing", signal.SIGINT, ExitCode.STOPPED),
    ],
)
def test_while_two_workers_prepare_it_is_the_same(toy_world, tmp_path, place, number, code, everybody):
    run, two = tmp_path / "run", (f"data.cache_dir={tmp_path}", "data.workers=2")
    with started(toy_world, run, *two, hold=place) as ranks:
        ranks.wait_for(held(run).exists)
        busy = next(process.pid for process in ranks.processes if psutil.Process(process.pid).children())
        workers = psutil.Process(busy).children(recursive=True)
        assert len(workers) >= 2
        (os.killpg if everybody else os.kill)(busy, number)  # a rank of this test has a group of its own
        assert ranks.wait(50) == [code, code], ranks.output()
        assert ranks.output().count("before training began; continue with --auto-resume") == 1
        assert "TimeoutError" not in ranks.output() and "abruptly" not in ranks.output()
        assert not psutil.wait_procs(workers, 5)[1]


@pytest.mark.slow
def test_an_older_incarnation_stops_at_its_next_step_and_writes_nothing_more(toy_world, tmp_path, truth):
    run, job = tmp_path / "run", {"SLURM_JOB_ID": "7"}
    with started(toy_world, run, hold="training:8", SLURM_RESTART_COUNT="0", **job) as older:
        older.wait_for(held(run).exists)
        with Ranks(
            tmp_path / "newer",
            *("--recipe", str(toy_world / "toy.yaml"), "--output", str(run), "--auto-resume", "log_every=4"),
            SLURM_RESTART_COUNT="1",
            **job,
        ) as newer:
            assert newer.wait() == DONE, newer.output()
        before = {file: file.stat().st_mtime_ns for file in run.rglob("*") if file.is_file()}
        held(run).unlink()
        assert older.wait() == [ExitCode.SUPERSEDED] * 2, older.output()
        assert "A later incarnation has taken over" in older.output()
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*") if file.is_file()} == before
    assert metrics(run) == metrics(truth)
    assert "Resuming after step 6 of 12" in newer.output()
    # the same once more has nothing to do
    with started(toy_world, run) as again:
        assert again.wait() == DONE and f"The run in {run} has finished" in again.output()


@pytest.mark.slow
@pytest.mark.parametrize("silent", [0, 1])
def test_a_stopped_process_is_named_and_the_stacks_of_those_that_wait_are_kept(toy_world, tmp_path, silent):
    run = tmp_path / "run"
    with started(toy_world, run, "--hang-timeout", "3", hold="training:5") as ranks:
        ranks.wait_for(held(run).exists)
        ranks.processes[silent].send_signal(signal.SIGSTOP)
        start = time.monotonic()
        held(run).unlink()
        assert ranks.processes[1 - silent].wait(60) == ExitCode.HUNG, ranks.output()
        assert time.monotonic() - start < 3 + 20  # a busy machine; gloo itself would wait for half an hour
        assert f"Rank {silent} on {host_name()} has not responded for" in ranks.output()
    stacks = (run / "hang" / f"rank-{1 - silent}.txt").read_text()
    assert "_train_step" in stacks or "tick" in stacks
    assert (
        status(run)["state"] == "failed"
        and f"Rank {silent} on {host_name()} has not responded" in status(run)["message"]
    )


def _launched(run: Path) -> list[psutil.Process]:
    return [process for process in psutil.process_iter() if str(run) in _words(process)]


def _words(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())  # a zombie has none
    except psutil.Error:  # it has just ended
        return ""


def _by_the_launcher(toy_world: Path, run: Path, ranks: int) -> subprocess.Popen[bytes]:
    """The `deepspeed` launcher of so many ranks, which wait after the fifth step."""
    command = [sys.executable, str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", str(ranks)]
    command += ["--master_port", str(free_port()), str(HELD_PROGRAM), "--recipe", str(toy_world / "toy.yaml")]
    variables = {**environment(), "HOLD": "training:5", "HELD": str(held(run))}
    with run.with_name("log").open("w") as log:
        return subprocess.Popen(
            [*command, "--output", str(run), "log_every=4"],
            cwd=ROOT,
            env=variables,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def _wait_until_held(run: Path) -> None:
    deadline = time.monotonic() + 120
    while not held(run).exists() and time.monotonic() < deadline:
        time.sleep(0.05)


@pytest.mark.slow
def test_the_launcher_leaves_with_the_code_of_a_run_that_was_signalled(toy_world, tmp_path):
    run = tmp_path / "run"
    launcher = _by_the_launcher(toy_world, run, 1)
    try:
        _wait_until_held(run)
        rank = next(process for process in _launched(run) if "--local_rank=0" in _words(process).split())
        rank.send_signal(signal.SIGUSR1)
        held(run).unlink()
        assert launcher.wait(60) == ExitCode.PREEMPTED, (tmp_path / "log").read_text()
    finally:
        for process in _launched(run):
            process.kill()
        launcher.wait()
    assert status(run)["state"] == "stopped" and status(run)["last_checkpoint"] == "step-00000006"


@pytest.mark.slow
@pytest.mark.parametrize("part", ["deepspeed.launcher.launch", "bin/deepspeed"])
def test_when_its_launcher_dies_a_run_checkpoints_and_nothing_is_left(toy_world, tmp_path, truth, part):
    run = tmp_path / "run"
    launcher = _by_the_launcher(toy_world, run, 2)
    try:
        _wait_until_held(run)
        (victim,) = [process for process in _launched(run) if part in _words(process)]
        victim.kill()
        time.sleep(1.5)
        held(run).unlink()
        deadline = time.monotonic() + 30
        while _launched(run) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not _launched(run)
    finally:
        for process in _launched(run):
            process.kill()
        launcher.wait()
    assert (run / "checkpoints" / "latest").read_text().strip() == "step-00000006"
    assert "Stopped by the end of its launcher after step 6" in status(run)["message"]
    assert_goes_on(toy_world, run, truth)
