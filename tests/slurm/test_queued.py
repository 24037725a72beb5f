"""`diffcse-scale status` of a run whose job waits."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.command_line import diffcse_scale
from tests.support.local_cluster import Cluster

pytestmark = pytest.mark.slurm


@pytest.mark.parametrize("words", [["--output", "run"], ["--output=run"], []])
def test_a_job_in_the_queue_is_not_started_yet(
    cluster: Cluster, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    job = cluster.submit("--hold", "train.sbatch", "--recipe", "quickstart", *words, cwd=tmp_path)
    run = "run" if words else f"runs/diffcse-{job.number}"
    said = diffcse_scale("status", run, cwd=tmp_path)
    start = f"{run}: not started yet; step 0 of ?; last checkpoint: none; job {job.number}; SLURM says pending ("
    assert said.stdout.startswith(start)
    assert "has no status.json" in diffcse_scale("status", "another", cwd=tmp_path).stderr
    job.cancel()
    assert "has no status.json" in diffcse_scale("status", run, cwd=tmp_path).stderr
