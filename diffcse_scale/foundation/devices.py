"""Whether this machine has GPUs, and whether torch can use them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from diffcse_scale.foundation.errors import first_line

# a user who sets one of these to an empty value or -1 does not want a GPU
VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
# set by SLURM in a job that requested GPUs
ASKED_FOR = ("SLURM_GPUS", "SLURM_GPUS_ON_NODE", "SLURM_GPUS_PER_NODE", "SLURM_GPUS_PER_TASK", "SLURM_JOB_GPUS")


def device_error() -> str | None:
    """Torch's own message about why it cannot use a GPU; None if it can."""
    import torch

    try:
        torch.cuda.init()
    except (AssertionError, RuntimeError) as error:
        return first_line(error).split(". ")[0].rstrip(".")
    return None if torch.cuda.device_count() else "torch sees no device"


def device_files() -> list[str]:
    """The driver's device files of GPUs."""
    return sorted(map(str, [*Path("/dev").glob("nvidia[0-9]*"), *Path("/dev").glob("kfd")]))


def hidden_by(environ: Mapping[str, str]) -> str | None:
    """The variable with which the user hides all GPUs to compute on the CPU; None if there is none."""
    return next((name for name in VISIBLE if environ.get(name, "0").strip() in ("", "-1")), None)


def left_idle(environ: Mapping[str, str] = os.environ) -> str | None:
    """Evidence (a device file or a variable) of GPUs that torch does not use; None if there is none.

    Also None if the user has chosen the CPU.
    """
    import torch

    if "DS_ACCELERATOR" in environ or hidden_by(environ):
        return None
    if torch.accelerator.is_available():  # CUDA or another vendor's
        return None
    variables = [f"{name}={environ[name]}" for name in ASKED_FOR if environ.get(name, "0") not in ("", "0")]
    return next(iter([*device_files(), *variables]), None)
