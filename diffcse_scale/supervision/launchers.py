"""The launchers that started this process and are responsible for ending it.

Must be imported before anything slow. Otherwise a launcher that dies while Python imports libraries would be missed.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import MutableMapping
from pathlib import Path

import psutil

# programs and modules that end their ranks; when they die, nobody else does
NAMES = ("deepspeed", "deepspeed.launcher.runner", "deepspeed.launcher.launch", "torchrun", "torch.distributed.run")


# the variable in which slurm/node.sh saves CUDA_VISIBLE_DEVICES
JOBS_DEVICES = "DIFFCSE_VISIBLE_DEVICES"


def see_the_jobs_devices(environ: MutableMapping[str, str] = os.environ) -> None:
    """Restore the job's CUDA_VISIBLE_DEVICES. DeepSpeed's launcher counts GPUs from 0, which may be another job's.

    Must be called before torch looks for devices.
    """
    if JOBS_DEVICES in environ:
        environ["CUDA_VISIBLE_DEVICES"] = environ.pop(JOBS_DEVICES)


see_the_jobs_devices()


def _is_launcher(process: psutil.Process) -> bool:
    try:
        program, *words = process.cmdline()
        return process.name() == "slurmstepd" or (
            "python" in Path(program).name and any(Path(word).name in NAMES for word in words[:4])
        )
    except (psutil.Error, ValueError):
        return False


# this process's nearest ancestors that are launchers; the shell that started them may end without consequences
LAUNCHERS = list(itertools.takewhile(_is_launcher, psutil.Process().parents()))


def alive(process: psutil.Process) -> bool:
    """Whether a process is still running; another process with the same PID does not count."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
