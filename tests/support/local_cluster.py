"""The commands of a SLURM on this machine (`local_cluster.sh`), and jobs on it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from diffcse_scale.rendezvous import free_port

ROOT = Path(__file__).parents[2]


ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


class Cluster:
    """The cluster's commands, with an environment in which jobs find this checkout and this Python."""

    def __init__(self, folder: Path) -> None:
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))},
            "LOCAL_CLUSTER": str(folder),
            "LOCAL_CLUSTER_PORT": str(free_port()),
            "SLURM_CONF": str(folder / "etc" / "slurm.conf"),
            "DIFFCSE_HOME": str(ROOT),
            "DIFFCSE_CACHE": str(folder / "cache"),
            "PYTHON": sys.executable,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]),
            "DS_ACCELERATOR": "cpu",
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }

    def node_log(self, node: str) -> str:
        """What the node's daemons have logged; each task's exit code is there, whoever listens to the task."""
        return (Path(self.environment["LOCAL_CLUSTER"]) / "log" / f"slurmd.{node}.log").read_text()

    def manage(self, *arguments: str) -> None:
        """`local_cluster.sh ARGUMENTS`."""
        # its output is not captured: the daemons keep what they inherit open
        subprocess.run([ROOT / "tests/support/local_cluster.sh", *arguments], env=self.environment, check=True)

    def ask(self, *command: str, cwd: Path = ROOT, **environment: str) -> str:
        """Output of one of SLURM's commands."""
        done = subprocess.run(
            command, cwd=cwd, env={**self.environment, **environment}, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, *arguments: str, cwd: Path, script: str = "train.sbatch", **environment: str) -> Job:
        """`sbatch ARGUMENTS`, where `script` stands for itself in `slurm/`, from folder `cwd`."""
        full = [str(ROOT / "slurm" / script) if argument == script else argument for argument in arguments]
        return Job(self, self.ask("sbatch", "--parsable", *full, cwd=cwd, **environment).strip(), cwd)


class Job:
    """A job that was submitted from folder `cwd`, where its log is."""

    def __init__(self, cluster: Cluster, number: str, cwd: Path) -> None:
        self.cluster, self.number, self.cwd = cluster, number, cwd

    @property
    def log(self) -> str:
        """All that the job and its restarts have printed."""
        printed = "\n".join(file.read_text(errors="replace") for file in self.cwd.glob(f"*-{self.number}*.log"))
        # a progress bar draws itself again and again
        return "\n".join(line for line in printed.splitlines() if line.strip() and "%|" not in line)

    def fact(self, name: str) -> str:
        """A field of `scontrol show job`: JobState, ExitCode, Restarts, NodeList, ..."""
        text = self.cluster.ask("scontrol", "show", "job", "--oneliner", self.number)
        found = re.search(rf"(?:^| ){name}=(\S*)", text)
        assert found, f"no {name} in {text}"
        return found[1]

    def signal(self) -> None:
        """USR1 to the batch script, as before the time limit and on preemption."""
        self.cluster.ask("scancel", "--batch", "--signal=USR1", self.number)

    def cancel(self) -> None:
        self.cluster.ask("scancel", self.number)

    def until(self, what: str, condition: Callable[[], bool], seconds: float) -> None:
        """Wait for `condition`; fails with the job's log after `seconds`, or when the job has ended."""
        end = time.monotonic() + seconds
        while not condition():
            ended = self.fact("JobState") in ENDED
            if ended and condition():  # it may have come true with the job's end
                return
            if ended or time.monotonic() > end:
                self.cluster.ask("scancel", self.number)
                pytest.fail(f"job {self.number}, {self.fact('JobState')}, before {what}; its log:\n{self.log}")
            time.sleep(0.1)

    def end(self, seconds: float, state: str = "COMPLETED") -> Job:
        """Wait for its end, in `state`."""
        self.until("its end", lambda: self.fact("JobState") in ENDED, seconds)
        assert self.fact("JobState") == state, self.log
        return self
