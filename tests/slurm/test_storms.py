"""Jobs that are suspended, signalled in their first moments, or requeued in vain: once each, or $DIFFCSE_STORMS times.

`make storms` does the latter.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from pathlib import Path

import pytest

from tests.support.launch import metrics
from tests.support.local_cluster import ROOT, Cluster, Job

pytestmark = pytest.mark.slurm

TIMES = int(os.environ.get("DIFFCSE_STORMS", "1"))
LONG = 600.0
HANG_TIMEOUT = 4
# a program that takes its time to start and is then told by USR1
STARTS_SLOWLY = 'sleep 1; trap "exit 75" USR1; for n in {1..300}; do sleep 0.2; done; exit 1'
# and one that dies of it: it never opens its run
NEVER_OPENS = "kill -USR1 $$"


def _stand_in(folder: Path, act: str) -> Path:
    """Stands in for Python: the first start of a job does `act`, a later one finishes the run."""
    file = folder / "stand-in"
    finish = 'mkdir -p "${@: -1}" && touch "${@: -1}/result.json"; exit 0'
    file.write_text(f"#!/usr/bin/env bash\nif [ ${{SLURM_RESTART_COUNT:-0}} -gt 0 ]; then {finish}; fi\n{act}\n")
    file.chmod(0o755)
    return file


def _home(folder: Path, seconds: float) -> Path:
    """The job scripts of a site whose modules take so long to load."""
    shutil.copytree(ROOT / "slurm", folder / "slurm")
    with (folder / "slurm" / "site.sh").open("a") as site:
        site.write(f"sleep {seconds}\n")
    return folder


@pytest.mark.parametrize("modules", [0, 3])
def test_usr1_in_the_first_moments_of_a_job_is_served(cluster: Cluster, tmp_path: Path, modules: float):
    home, jobs = _home(tmp_path / "home", modules), []
    for number in range(TIMES):
        folder = tmp_path / str(number)
        folder.mkdir()
        act = {"PYTHON": str(_stand_in(folder, STARTS_SLOWLY)), "DIFFCSE_HOME": str(home)}
        job = cluster.submit(str(home / "slurm/train.sbatch"), "--output", "run", cwd=folder, **act)
        job.until("its start", lambda job=job: job.fact("JobState") == "RUNNING", 60)  # type: ignore[misc]
        time.sleep(random.Random(number).uniform(0, modules or 0.1))
        job.signal()
        jobs.append(job)
    for job in jobs:
        job.end(120)
    assert [job.fact("Restarts") for job in jobs] == ["1"] * TIMES, "".join(job.log for job in jobs)


@pytest.mark.slow
def test_a_job_that_is_suspended_for_longer_than_the_timeout_goes_on(cluster: Cluster, toy_world: Path, tmp_path: Path):
    run, steps = tmp_path / "run", 100 + 150 * TIMES
    toy = ("--recipe", str(toy_world / "toy.yaml"), "epochs=100", f"max_steps={steps}", "evaluation.every=1000")
    job = cluster.submit(
        *("--nodes=2", "--cpus-per-task=1", "train.sbatch", *toy, "checkpoint_every=1000"),
        *("--hang-timeout", str(HANG_TIMEOUT), "--output", "run"),
        cwd=tmp_path,
    )
    for number in range(TIMES):
        _trains_on(job, run)
        cluster.ask("scontrol", "suspend", job.number)
        time.sleep((2 + number % 3) * HANG_TIMEOUT)
        cluster.ask("scontrol", "resume", job.number)
    _trains_on(job, run)
    job.end(LONG)
    assert [row["step"] for row in metrics(run) if "loss" in row] == list(range(1, steps + 1))


def _trains_on(job: Job, run: Path) -> None:
    """Wait until it has taken some steps more."""

    def step() -> int:
        file = run / "status.json"
        status = json.loads(file.read_text()) if file.exists() else {}
        return int(status["step"]) if status.get("state") == "training" else 0

    reached = step() + 10
    job.until(f"step {reached}", lambda: step() >= reached, LONG)


@pytest.mark.slow
def test_a_job_that_never_opens_its_run_ends_with_78_after_as_many_requeues_as_the_site_says(
    cluster: Cluster, tmp_path: Path
):
    for number in range(TIMES):
        folder = tmp_path / str(number)
        folder.mkdir()
        stand_in = _stand_in(folder, "")
        stand_in.write_text(f"#!/usr/bin/env bash\n{NEVER_OPENS}\n")
        script = ("train.sbatch", "--output", "run") if number % 2 == 0 else ("prepare.sbatch", "--recipe", "r")
        requeues = {} if number == 1 else {"REQUEUES": "1"}
        job = cluster.submit(*script, cwd=folder, script=script[0], PYTHON=str(stand_in), **requeues)
        job.end(300, "FAILED")
        expected = requeues.get("REQUEUES", "5")
        assert (job.fact("ExitCode"), job.fact("Restarts")) == ("78:0", expected), job.log
        assert f"was queued again {expected} times in a row" in job.log


@pytest.mark.slow
@pytest.mark.skipif(TIMES == 1, reason="six starts of the whole program: make storms")
def test_a_job_whose_limit_ends_every_start_of_the_program_ends_with_78(
    cluster: Cluster, toy_world: Path, tmp_path: Path
):
    limit = ("--time=1", "--signal=B:USR1@50", "--cpus-per-task=1")
    toy = ("--recipe", str(toy_world / "toy.yaml"), "epochs=1000", "max_steps=100000", "--output", "run")
    job = cluster.submit(*limit, "train.sbatch", *toy, cwd=tmp_path)
    job.end(1500, "FAILED")
    assert (job.fact("ExitCode"), job.fact("Restarts")) == ("78:0", "5"), job.log
