"""Training jobs on two nodes: preempted, cancelled, out of time, cut off, and in the end the same numbers."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.launch import metrics
from tests.support.local_cluster import Cluster, Job

pytestmark = pytest.mark.slurm

# longer than any start of a rank and any of these runs takes on a busy machine
LONG = 300.0
TWO_NODES = ("--nodes=2", "--cpus-per-task=1", "train.sbatch")
ONE_RANK = ("--nodes=1", "--cpus-per-task=1", "train.sbatch")
QUICKSTART = ("--recipe", "quickstart", "max_steps=40", "evaluation.every=10", "log_every=5", "data.limit=6000")


def _status(run: Path) -> dict[str, Any]:
    try:
        status: dict[str, Any] = json.loads((run / "status.json").read_text())
    except FileNotFoundError:
        return {"state": "not there yet", "step": 0}
    return status


def _result(run: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((run / "result.json").read_text())
    return result


def _incarnations(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "incarnations.jsonl").read_text().splitlines()]


def _until(job: Job, run: Path, state: str, step: int = 1) -> None:
    """Wait until the run does `state`, at `step` or later."""

    def reached() -> bool:
        status = _status(run)
        return status["state"] == state and status["step"] >= step

    job.until(f"{state} at step {step}", reached, LONG)


def _restarted(job: Job, times: int) -> None:
    job.until(f"restart {times}", lambda: job.fact("Restarts") == str(times), LONG)


def _stops(job: Job, signal: str = "signal USR1") -> list[int]:
    """After which steps the job says that it was stopped."""
    return [int(step) for step in re.findall(rf"Stopped by {signal} after step (\d+) of", job.log)]


@pytest.fixture(scope="module")
def uninterrupted(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart over two nodes, whose only job has run to its end."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    job = cluster.submit(*TWO_NODES, *QUICKSTART, "--output", "run", cwd=folder).end(LONG)
    assert job.fact("Restarts") == "0"
    return folder / "run"


def test_the_quickstart_trains_over_two_nodes(uninterrupted: Path):
    assert _result(uninterrupted)["steps"] == 40
    assert (uninterrupted / "model" / "modules.json").is_file()
    assert _status(uninterrupted)["state"] == "finished"


def test_a_preempted_job_ends_with_the_numbers_of_an_uninterrupted_one(
    cluster: Cluster, uninterrupted: Path, tmp_path: Path
):
    run = tmp_path / "run"
    job = cluster.submit(*TWO_NODES, *QUICKSTART, "--output", "run", cwd=tmp_path)
    _until(job, run, "training", step=3)
    job.signal()
    _restarted(job, 1)
    _until(job, run, "evaluating", step=20)
    job.signal()
    _restarted(job, 2)
    job.end(LONG)

    in_training, in_evaluation = _stops(job)
    # a request is acted upon within some two seconds: by then the evaluation may be over
    assert 3 <= in_training < 20 <= in_evaluation <= 31
    assert job.log.count("queues itself again") == 2
    expected = _result(uninterrupted)
    assert _result(run)["best"]["step"] == expected["best"]["step"]
    assert _result(run)["best"] == pytest.approx(expected["best"], abs=1e-5)
    assert _result(run)["before"] == pytest.approx(expected["before"], abs=1e-5)
    rows, expected_rows = metrics(run), metrics(uninterrupted)
    assert [(row["step"], sorted(row)) for row in rows] == [(row["step"], sorted(row)) for row in expected_rows]
    for row, expected_row in zip(rows, expected_rows, strict=True):
        assert row == pytest.approx(expected_row, abs=1e-5)


def test_a_corpus_is_prepared_and_a_model_measured(
    cluster: Cluster, uninterrupted: Path, toy_world: Path, tmp_path: Path
):
    prepare = ("--cpus-per-task=1", "prepare.sbatch", "--recipe", str(toy_world / "toy.yaml"), "data.limit=500")
    evaluate = ("--cpus-per-task=1", "evaluate.sbatch", "--model", str(uninterrupted / "model"))
    prepared = cluster.submit(*prepare, cwd=tmp_path, script="prepare.sbatch")
    evaluated = cluster.submit(
        *(*evaluate, "--data", str(toy_world / "pairs.tsv")), cwd=tmp_path, script="evaluate.sbatch"
    )
    assert "500 sentences are ready" in prepared.end(LONG).log
    assert "OWN FILE" in evaluated.end(LONG).log


def test_a_cancelled_job_checkpoints_stays_cancelled_and_is_continued(
    cluster: Cluster, toy_world: Path, tmp_path: Path
):
    run = tmp_path / "run"
    arguments = (*TWO_NODES, "--recipe", str(toy_world / "toy.yaml"), "epochs=20", "max_steps=400", "--output", "run")
    job = cluster.submit(*arguments, cwd=tmp_path)
    _until(job, run, "training", step=20)
    job.cancel()
    job.end(60, "CANCELLED")
    (stopped,) = _stops(job, "signal TERM")
    assert _status(run)["state"] == "stopped" and job.fact("Restarts") == "0"
    assert not (run / "result.json").exists()

    again = cluster.submit(*arguments, cwd=tmp_path).end(LONG)
    assert f"Resuming after step {stopped} of 400" in again.log
    assert [row["step"] for row in metrics(run) if "loss" in row] == list(range(1, 401))


def test_ranks_of_deepspeeds_launcher_are_preempted_through_the_stop_file(
    cluster: Cluster, toy_world: Path, tmp_path: Path
):
    run = tmp_path / "run"
    toy = ("--recipe", str(toy_world / "toy.yaml"), "epochs=20", "max_steps=400", "--output", "run")
    job = cluster.submit(*TWO_NODES, *toy, cwd=tmp_path, LAUNCHER="deepspeed")
    _until(job, run, "training", step=20)
    job.signal()
    _restarted(job, 1)
    job.end(LONG)
    (stopped,) = _stops(job, ".*")
    assert f"Resuming after step {stopped} of 400" in job.log
    assert not (run / "stop").exists()
    assert [row["step"] for row in metrics(run) if "loss" in row] == list(range(1, 401))


def test_a_job_whose_node_is_cut_off_goes_on_elsewhere_and_the_older_one_stops(
    cluster: Cluster, toy_world: Path, tmp_path: Path
):
    run = tmp_path / "run"
    toy = ("--recipe", str(toy_world / "toy.yaml"), "epochs=20", "max_steps=400", "checkpoint_every=50")
    job = cluster.submit(*ONE_RANK, *toy, "--output", "run", cwd=tmp_path)
    _until(job, run, "training", step=60)
    node = job.fact("NodeList")
    cluster.manage("kill-node", node.removeprefix("node"))
    older = _incarnations(run)[0]["process"]
    # SLURM takes its time to give up a node: the older one waits for it, so as not to be done before
    os.kill(older, signal.SIGSTOP)
    try:
        job.until("a second incarnation", lambda: len(_incarnations(run)) == 2, LONG)
        os.kill(older, signal.SIGCONT)
        job.end(LONG)
        assert job.fact("NodeList") != node
    finally:
        cluster.manage("start-node", node.removeprefix("node"))
    assert [(entry["host"] == node, entry["restart"]) for entry in _incarnations(run)] == [(True, 0), (False, 1)]
    assert _incarnations(run)[1]["step"] >= 50
    # srun has gone with the node, so nobody heard the older one's last words; and srun's own exit code was 0
    assert f"({older}) exited with exit code 76" in cluster.node_log(node)
    assert "the step ended with exit code 0, but run has no result.json" in job.log
    assert [row["step"] for row in metrics(run) if "loss" in row] == list(range(1, 401))


@pytest.mark.slow
def test_a_job_that_runs_out_of_time_goes_on_until_it_is_done(cluster: Cluster, toy_world: Path, tmp_path: Path):
    toy = ("--recipe", str(toy_world / "toy.yaml"), "epochs=1000", "max_steps=2000", "evaluation.every=2000")
    limit = ("--time=1", "--signal=B:USR1@10")
    job = cluster.submit(*limit, *ONE_RANK, *toy, "checkpoint_every=500", "--output", "run", cwd=tmp_path).end(900)
    # on a busy machine an allocation may end before its run has taken a step
    assert int(job.fact("Restarts")) >= len(_stops(job)) >= 1
    assert [row["step"] for row in metrics(tmp_path / "run") if "loss" in row] == list(range(1, 2001))


def test_a_sweep_runs_every_combination_and_sums_up(cluster: Cluster, toy_world: Path, tmp_path: Path):
    axes = ("seed=1,2", "objective.rtd_weight=0.1,0.5")
    toy = ("--recipe", str(toy_world / "toy.yaml"), "max_steps=4", "--output", "sweep")
    printed = cluster.ask(
        "bash",
        f"{cluster.environment['DIFFCSE_HOME']}/slurm/sweep.sbatch",
        *("--cpus-per-task=1", "--array=%2", *axes, "--", *toy),
        cwd=tmp_path,
    )
    number = re.search(r"job (\d+) sums them up", printed)
    assert number, printed
    summary = Job(cluster, number[1], tmp_path).end(LONG)
    assert {folder.name for folder in (tmp_path / "sweep").iterdir()} == {
        f"seed={seed},objective.rtd_weight={weight}" for seed in (1, 2) for weight in (0.1, 0.5)
    }
    rows = re.findall(r"│ objective\.rtd_weight=(\S+) +│ 1, 2 +│", summary.log)  # nothing of it is cut or folded
    assert sorted(rows) == ["0.1", "0.5"], summary.log
    scores = [
        _result(tmp_path / "sweep" / f"seed={seed},objective.rtd_weight=0.1")["best"]["dev_spearman"] for seed in (1, 2)
    ]
    assert f"{sum(scores) / 2:.3f}" in summary.log


def test_a_rank_that_is_stopped_ends_the_job_with_its_name_and_leaves_no_process(
    cluster: Cluster, toy_world: Path, tmp_path: Path
):
    run = tmp_path / "run"
    toy = ("--recipe", str(toy_world / "toy.yaml"), "epochs=20", "max_steps=2000", "--hang-timeout", "4")
    job = cluster.submit(*TWO_NODES, *toy, "--output", "run", cwd=tmp_path, SLURM_WAIT="5", REQUEUE_ON="75")
    _until(job, run, "training", step=20)
    (silent,) = (process for process in _processes(run) if process.environ().get("RANK") == "1")
    silent.suspend()
    job.end(120, "FAILED")
    assert job.fact("ExitCode") == "77:0"
    assert re.search(r"Rank 1 on \S+ has not responded for", job.log)
    assert _status(run)["state"] == "failed" and "Rank 1" in _status(run)["message"]
    assert "in _train_step" in (run / "hang" / "rank-0.txt").read_text()
    assert not _processes(run)


def _processes(run: Path) -> list[psutil.Process]:
    """Those of a run's ranks that live."""
    return [
        process
        for process in psutil.process_iter(["cmdline", "cwd"])
        if process.info["cwd"] == str(run.parent) and "train.py" in " ".join(process.info["cmdline"] or [])
    ]
