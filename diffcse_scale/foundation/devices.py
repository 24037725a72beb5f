"""Whether this machine has GPUs, and whether torch can use them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from diffcse_scale.foundation.errors import first_line

# who sets one of these to nothing, or to -1, does not want a GPU
VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
# what SLURM says in a job that asked for GPUs
ASKED_FOR = ("SLURM_GPUS", "SLURM_GPUS_ON_NODE", "SLURM_GPUS_PER_NODE", "SLURM_GPUS_PER_TASK", "SLURM_JOB_GPUS")


def device_error() -> str | None:
    """Why torch can use no GPU here, in its own words; None where it can."""
    import torch

    try:
        torch.cuda.init()
    except (AssertionError, RuntimeError) as error:
        return first_line(error).split(". ")[0].rstrip(".")
    return None if torch.cuda.device_count() else "torch sees no device"


def device_files() -> list[str]:
    """The GPUs that a driver shows, as files."""
    return sorted(map(str, [*Path("/dev").glob("nvidia[0-9]*"), *Path("/dev").glob("kfd")]))


def hidden_by(environ: Mapping[str, str]) -> str | None:
    """The variable by which the user has hidden all GPUs, which says that the CPU is meant; None if there is none."""
    return next((name for name in VISIBLE if environ.get(name, "0").strip() in ("", "-1")), None)


def left_idle(environ: Mapping[str, str] = os.environ) -> str | None:
    """What says that GPUs are meant to be used here, where torch uses none: a file or a variable; else None.

    None, too, where the user has said that the CPU is meant.
    """
    import torch

    if "DS_ACCELERATOR" in environ or hidden_by(environ):
        return None
    if torch.accelerator.is_available():  # CUDA's, or another maker's
        return None
    variables = [f"{name}={environ[name]}" for name in ASKED_FOR if environ.get(name, "0") not in ("", "0")]
    return next(iter([*device_files(), *variables]), None)
