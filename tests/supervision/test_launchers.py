"""What a launcher does to its ranks' environment, and what is put right."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from diffcse_scale.supervision.launchers import see_the_jobs_devices
from tests.support.launch import ROOT

FAKE = """#!/usr/bin/env bash
# as DeepSpeed's launcher: ranks see the devices 0 and 1, whatever it has been told
CUDA_VISIBLE_DEVICES=0,1 env >"$SAID"
"""


def _node(folder: Path, **variables: str) -> tuple[subprocess.CompletedProcess[str], dict[str, str]]:
    """How slurm/node.sh ends where two ranks are to start, and the variables that the ranks begin with."""
    python, said = folder / "python", folder / "said"
    python.write_text(FAKE)
    python.chmod(0o755)
    hosts = "node1 slots=2\nnode2 slots=2"
    job = {"DIFFCSE_HOSTS": hosts, "SLURM_NODEID": "0", "MASTER_ADDR": "node1", "MASTER_PORT": "20000"}
    done = subprocess.run(
        [ROOT / "slurm" / "node.sh", python, ROOT / "train.py"],
        env={"PATH": "/usr/bin:/bin", "SAID": str(said), **job, **variables},
        capture_output=True,
        text=True,
    )
    lines = said.read_text().splitlines() if said.exists() else []
    return done, dict(line.split("=", 1) for line in lines if "=" in line)


@pytest.mark.parametrize("devices", ["4,5", "4,5,7", "MIG-2f1c,MIG-81aa", "", "-1", "NoDevFiles"])
def test_on_a_shared_node_the_ranks_of_deepspeeds_launcher_see_their_jobs_devices(tmp_path: Path, devices: str) -> None:
    _, found = _node(tmp_path, CUDA_VISIBLE_DEVICES=devices)
    see_the_jobs_devices(found)
    assert found["CUDA_VISIBLE_DEVICES"] == devices


def test_fewer_devices_than_ranks_are_refused_before_anything_starts(tmp_path: Path) -> None:
    done, found = _node(tmp_path, CUDA_VISIBLE_DEVICES="3")
    assert (done.returncode, found) == (2, {})
    assert "too few devices for 2 ranks (CUDA_VISIBLE_DEVICES is 3); give sbatch --gpus-per-node=2" in done.stderr


@pytest.mark.parametrize("variables", [{}, {"CUDA_VISIBLE_DEVICES": "3", "DS_ACCELERATOR": "cpu"}], ids=str)
def test_on_cpus_as_many_ranks_start_as_were_asked_for(tmp_path: Path, variables: dict[str, str]) -> None:
    done, found = _node(tmp_path, **variables)
    assert done.returncode == 0 and found, done.stderr


def test_without_a_job_nothing_changes() -> None:
    found = {"CUDA_VISIBLE_DEVICES": "0"}
    see_the_jobs_devices(found)
    assert found == {"CUDA_VISIBLE_DEVICES": "0"}
