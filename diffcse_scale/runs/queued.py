"""A run that has not begun: its job waits in SLURM's queue."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

PATIENCE = 10.0  # seconds for SLURM's answer
# number, state, why it waits, the folder it was submitted from, name, script and its arguments
FORMAT = "%A|%T|%r|%Z|%j|%o"


def queued(run: Path) -> dict[str, Any] | None:
    """What `status.json` of a run would say whose job is in the queue; None where the caller has no such job."""
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
    """What the last --output of a job script's arguments names, which a word of its own or `=` follows."""
    for word, after in reversed(list(zip(words, [*words[1:], ""], strict=True))):
        if word == "--output" or word.startswith("--output="):
            return after if word == "--output" else word.removeprefix("--output=")
    return otherwise
