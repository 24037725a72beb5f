"""A hook with which one rank fails: `--hook tests.support.failing_hook:Fails`, as $FAILS says."""

from __future__ import annotations

import errno
import os
import signal
import time

import torch

from diffcse_scale.distributed import rank
from diffcse_scale.training import Hook
from diffcse_scale.training.trainer import Trainer

VARIABLE, AT = "FAILS", 3


class Fails(Hook):
    """The rank and what befalls it, as "1 EDQUOT": after step 3 an error, KILL, STOP, or FLIP, of a bit of a weight; or
    SLOW, at all steps.
    """

    def on_start(self, trainer: Trainer) -> None:
        number, how = os.environ[VARIABLE].split()
        if how == "SLOW" and rank() == int(number):
            trainer.model.encoder.register_forward_pre_hook(lambda *_: time.sleep(0.1))

    def at_pause(self, trainer: Trainer) -> None:
        number, how = os.environ[VARIABLE].split()
        if trainer.step != AT or rank() != int(number) or how == "SLOW":
            return
        if how == "FLIP":
            next(trainer.model.parameters()).data.view(-1).view(torch.int32)[7] ^= 1 << 20
            return
        if how in ("KILL", "STOP"):
            os.kill(os.getpid(), signal.Signals[f"SIG{how}"])
        code = getattr(errno, how)
        raise OSError(code, os.strerror(code), "scratch/file")
