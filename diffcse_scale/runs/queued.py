"""Finds a run that has not begun because its job waits in SLURM's queue."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

PATIENCE = 10.0  # seconds for SLURM's answer
# job number, state, reason for waiting, folder it was submitted from, name, script with its arguments
FORMAT = "%A|%T|%r|%Z|%j|%o"


def queued(run: Path) -> dict[str, Any] | None:
    """The status of a run with a job in the queue, as in `status.json`; None if the caller has no such job."""
    try:
        asked = ["squeue", "--me", "--noheader", "--format", FORMAT]
        lines = subprocess.run(asked, capture_output=True, text=True, timeout=PATIENCE).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):  # no SLURM here, or it does not answer
        return None
    for line in lines:
        job, state, reason, folder, name, command = line.split("|", 5)
        if (Path(folder) / _output(command.split(), f"runs/{name}-{job}")).resolve() == run.resolve():
            why = "" if reason == "None" else f" ({reason})"
            return {"state": "not started yet", "job": job, "message": f"SLURM says {state.lower()}{why}"}
    return None


def _output(words: list[str], otherwise: str) -> str:
    """The value of the last `--output VALUE` or `--output=VALUE` in a job script's arguments."""
    for word, after in reversed(list(zip(words, [*words[1:], ""], strict=True))):
        if word == "--output" or word.startswith("--output="):
            return after if word == "--output" else word.removeprefix("--output=")
    return otherwise
