"""A hook that cuts weights into small files, and kills one rank: `--hook tests.support.small_files_hook:SmallFiles`."""

from __future__ import annotations

import os
import signal

from diffcse_scale.distributed import rank
from diffcse_scale.model_folder import weight_files
from diffcse_scale.training import Hook
from diffcse_scale.training.trainer import Trainer

VARIABLE, FILE_BYTES = "KILLED", 20_000


class SmallFiles(Hook):
    """Files of 20 kB, so that the toy model has as many as a large one; $KILLED is "RANK STEP"."""

    def on_start(self, trainer: Trainer) -> None:
        weight_files.FILE_BYTES = FILE_BYTES

    def at_pause(self, trainer: Trainer) -> None:
        if os.environ.get(VARIABLE) == f"{rank()} {trainer.step}":
            os.kill(os.getpid(), signal.SIGKILL)
