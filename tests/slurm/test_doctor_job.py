"""`slurm/doctor.sbatch` on two nodes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.local_cluster import Cluster

pytestmark = pytest.mark.slurm


def test_each_node_of_a_job_is_looked_at_and_both_are_measured_together(cluster: Cluster, tmp_path: Path) -> None:
    wide = ("--nodes=2", "--cpus-per-task=1", "doctor.sbatch", "--json", "doctor.json")
    job = cluster.submit(*wide, cwd=tmp_path, script="doctor.sbatch").end(120)
    written = json.loads((tmp_path / "doctor.json").read_text())
    assert sorted(written["nodes"]) == ["node1", "node2"]
    assert [row["check"] for row in written["ranks"]] == ["shared folder", "all-reduce, gloo"]
    assert "all 2 nodes" in job.log and "0 will not work" in job.log
