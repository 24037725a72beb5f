"""The programs that started this process and would end it. Imported before anything that takes long: one that dies
while Python still imports libraries would not be known otherwise.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import MutableMapping
from pathlib import Path

import psutil

# programs and modules whose end leaves their ranks without anybody who would end them
NAMES = ("deepspeed", "deepspeed.launcher.runner", "deepspeed.launcher.launch", "torchrun", "torch.distributed.run")


# what slurm/node.sh found in CUDA_VISIBLE_DEVICES
JOBS_DEVICES = "DIFFCSE_VISIBLE_DEVICES"


def see_the_jobs_devices(environ: MutableMapping[str, str] = os.environ) -> None:
    """Undo what DeepSpeed's launcher does to a job: it counts GPUs from 0, which may be another job's on its node.

    Before torch looks at devices.
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


# this process's ancestors as far as they are launchers: a shell that started them may go
LAUNCHERS = list(itertools.takewhile(_is_launcher, psutil.Process().parents()))


def alive(process: psutil.Process) -> bool:
    """Whether it has not ended; another with its number does not count."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
