"""Launches of train.py, or of a test's own program, on several ranks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffcse_scale.rendezvous import free_port
from tests.support import devices
from tests.support.forks import Fork, run_program, wait_for_all
from tests.support.ranks import places

ROOT = Path(__file__).parents[2]
PROGRAMS = ROOT / "tests" / "support" / "programs"  # what a test launches in the place of train.py
# numbers that say how fast or large a process was, not what it computed
TIMINGS = {
    "sentences_per_second",
    "real_tokens_per_second",
    "peak_memory_gb",
    "slowest_rank",
    "slowest_ratio",
    "training_seconds",
    "waiting_seconds",
    "checkpoint_seconds",
    "evaluation_seconds",
}


def environment() -> dict[str, str]:
    """For a program of this checkout, on the device of the tests."""
    return {
        **os.environ,
        **devices.VARIABLES,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }


def _number(ranks: int | None) -> int:
    """So many ranks, and the test is skipped where there are not as many devices; by default two, or one if need be."""
    if ranks is not None and ranks > devices.most_ranks():
        pytest.skip(f"{ranks} ranks have a GPU each, and there are {devices.most_ranks()}")
    return devices.two_ranks() if ranks is None else ranks


def launch(
    *arguments: str, ranks: int | None = None, cwd: Path = ROOT, program: Path = ROOT / "train.py"
) -> subprocess.CompletedProcess[str]:
    """What `deepspeed --num_gpus RANKS PROGRAM ARGUMENTS` does, but for the launcher's own processes and lines."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output.txt"
        forks = [
            Fork(
                *(run_program, str(program), f"--local_rank={rank}", *arguments),
                **{"output": output, "environment": {**environment(), **place}, "cwd": cwd},
            )
            for rank, place in enumerate(places(_number(ranks)))
        ]
        code = wait_for_all(forks)
        return subprocess.CompletedProcess(["deepspeed", str(program), *arguments], code, output.read_text(), None)


def launch_with_deepspeed(*arguments: str, ranks: int | None = None) -> subprocess.CompletedProcess[str]:
    """`deepspeed --num_gpus RANKS train.py ARGUMENTS` itself."""
    command = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", str(_number(ranks))]
    command += ["--master_port", str(free_port()), str(ROOT / "train.py"), *arguments]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=600)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, None)


class Ranks:
    """Ranks without a launcher between them and the test, as srun's tasks are; none outlives the block.

    Args:
        folder: their output is kept there.
        count: how many.
        per_node: how many lie on each node; None: this machine is the only node.
        variables: added to their environment.
    """

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        program: Path = ROOT / "train.py",
        count: int = 2,
        per_node: int | None = None,
        **variables: str,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.outputs = [folder / f"output-{rank}.txt" for rank in range(count)]
        self.processes = []
        for output, place in zip(self.outputs, places(count, per_node), strict=True):
            output.write_text("")
            self.processes.append(
                Fork(
                    *(run_program, str(program), *arguments),
                    **{"output": output, "environment": {**environment(), **place, **variables}, "cwd": ROOT},
                )
            )

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def output(self) -> str:
        """What all have said so far."""
        return "".join(output.read_text() for output in self.outputs)

    def wait(self, seconds: float = 120) -> list[int]:
        """Their exit codes."""
        return [process.wait(seconds) for process in self.processes]

    def wait_for(self, condition: Callable[[], bool], seconds: float = 120) -> None:
        """Wait until `condition` holds; all must be alive."""
        deadline = time.monotonic() + seconds
        while not condition():
            ended = [process for process in self.processes if process.poll() is not None]
            assert not ended and time.monotonic() < deadline, self.output()
            time.sleep(0.02)


def metrics(run: Path) -> list[dict[str, Any]]:
    """Rows of a run's metrics.jsonl without timings."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMINGS} for row in rows]
