"""A real SLURM of two nodes on this machine, and whole jobs on it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.local_cluster import Cluster

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two nodes, started for the session."""
    path = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
    missing = [program for program in PROGRAMS if shutil.which(program, path=path) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)} here: tests/support/local_cluster.sh install")
    if os.getuid() != 0:
        pytest.skip("a SLURM of one's own needs root")
    # munged wants its socket to be where every user can get, which pytest's folders are not
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        cluster = Cluster(Path(folder))
        try:
            cluster.manage("start")
            yield cluster
        finally:
            cluster.manage("stop")
