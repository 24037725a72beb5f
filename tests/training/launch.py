"""Real launches of train.py, or of a test's own program: through the `deepspeed` launcher, or as srun starts ranks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffcse_scale.distributed import free_port

ROOT = Path(__file__).parents[2]
# numbers that say how fast or large a process was, not what it computed
TIMINGS = {
    "sentences_per_second",
    "real_tokens_per_second",
    "peak_memory_gb",
    "training_seconds",
    "waiting_seconds",
    "checkpoint_seconds",
    "evaluation_seconds",
}


def environment() -> dict[str, str]:
    """For a program of this checkout, on CPUs."""
    return {
        **os.environ,
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }


def launch(
    *arguments: str, ranks: int = 2, cwd: Path = ROOT, program: Path = ROOT / "train.py"
) -> subprocess.CompletedProcess[str]:
    """`deepspeed --num_gpus RANKS PROGRAM ARGUMENTS` in a process group of its own, which is left empty."""
    port = free_port()
    command = [
        str(Path(sys.executable).parent / "deepspeed"),
        "--num_gpus",
        str(ranks),
        "--master_port",
        str(port),
        str(program),
        *arguments,
    ]
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=600)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return subprocess.CompletedProcess(command, process.returncode, output, None)


class Ranks:
    """Two ranks without a launcher between them and the test, as srun's tasks are; none outlives the block.

    Args:
        folder: their output is kept there.
        variables: added to their environment.
    """

    def __init__(self, folder: Path, *arguments: str, program: Path = ROOT / "train.py", **variables: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.outputs = [folder / f"output-{rank}.txt" for rank in range(2)]
        place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        self.processes = []
        for rank, output in enumerate(self.outputs):
            ids = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            with output.open("w") as file:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, "-u", str(program), *arguments],
                        cwd=ROOT,
                        env={**environment(), **place, **ids, **variables},
                        stdout=file,
                        stderr=subprocess.STDOUT,
                    )
                )

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def output(self) -> str:
        """What both have said so far."""
        return "".join(output.read_text() for output in self.outputs)

    def wait(self, seconds: float = 120) -> list[int]:
        """Their exit codes."""
        return [process.wait(seconds) for process in self.processes]

    def wait_for(self, condition: Callable[[], bool], seconds: float = 120) -> None:
        """Wait until `condition` holds; both must be alive."""
        deadline = time.monotonic() + seconds
        while not condition():
            ended = [process.returncode for process in self.processes if process.poll() is not None]
            assert not ended and time.monotonic() < deadline, self.output()
            time.sleep(0.02)


def metrics(run: Path) -> list[dict[str, Any]]:
    """Rows of a run's metrics.jsonl without timings."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMINGS} for row in rows]
