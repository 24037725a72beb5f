"""Real launches through the `deepspeed` launcher: of train.py, or of a test's own program."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from diffcse_scale.distributed import free_port

ROOT = Path(__file__).parents[2]
# numbers that say how fast or large a process was, not what it computed
TIMINGS = {"sentences_per_second", "real_tokens_per_second", "peak_memory_gb"}


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
    environment = {
        **os.environ,
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=environment,
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


def metrics(run: Path) -> list[dict[str, Any]]:
    """Rows of a run's metrics.jsonl without timings."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMINGS} for row in rows]
