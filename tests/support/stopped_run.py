"""A run that was stopped, made of one that was not."""

from __future__ import annotations

import shutil
from pathlib import Path


def stopped(run: Path, name: str, step: int) -> Path:
    """A copy of a finished run as it was after `step`."""
    copy = run.with_name(name)
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "model")
    (copy / "result.json").unlink()
    for checkpoint in (copy / "checkpoints").glob("step-*"):
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)
    (copy / "checkpoints" / "latest").write_text(f"step-{step:08d}")
    return copy
