"""A hook with which one rank fails: `--hook tests.support.failing_hook:Fails`, as $FAILS says."""

from __future__ import annotations

import errno
import os
import signal

from diffcse_scale.distributed import rank
from diffcse_scale.training import Hook
from diffcse_scale.training.trainer import Trainer

VARIABLE, AT = "FAILS", 3


class Fails(Hook):
    """After step 3: the rank and the name of an error, or KILL, as "1 EDQUOT"."""

    def at_pause(self, trainer: Trainer) -> None:
        number, how = os.environ[VARIABLE].split()
        if trainer.step != AT or rank() != int(number):
            return
        if how == "KILL":
            os.kill(os.getpid(), signal.SIGKILL)
        code = getattr(errno, how)
        raise OSError(code, os.strerror(code), "scratch/file")
