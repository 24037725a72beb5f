"""Hooks with which one rank fails: `--hook tests.support.failing_hook:Fails`, as $FAILS says."""

from __future__ import annotations

import errno
import os
import signal
import time

import torch

from diffcse_scale.distributed import rank
from diffcse_scale.model_folder import weight_files
from diffcse_scale.training import Hook
from diffcse_scale.training.trainer import Trainer

VARIABLE, AT = "FAILS", 3
FILE_BYTES = 20_000


def _failure() -> tuple[int, str, int]:
    """The rank that fails, how, and after which step; no rank without $FAILS."""
    number, how, *step = os.environ.get(VARIABLE, "-1 NONE").split()
    return int(number), how, int(step[0]) if step else AT


class Fails(Hook):
    """The rank, its fate and the step, as "1 EDQUOT 9": an error, KILL, STOP, or FLIP, of a bit of a weight. Without a
    step it is after step 3. SLOW is at all steps.
    """

    def on_start(self, trainer: Trainer) -> None:
        number, how, _ = _failure()
        if how == "SLOW" and rank() == number:
            trainer.model.encoder.register_forward_pre_hook(lambda *_: time.sleep(0.1))

    def at_pause(self, trainer: Trainer) -> None:
        number, how, step = _failure()
        if trainer.step != step or rank() != number or how == "SLOW":
            return
        if how == "FLIP":
            next(trainer.model.parameters()).data.view(-1).view(torch.int32)[7] ^= 1 << 20
            return
        if how in ("KILL", "STOP"):
            os.kill(os.getpid(), signal.Signals[f"SIG{how}"])
        code = getattr(errno, how)
        raise OSError(code, os.strerror(code), "scratch/file")


class FailsWithSmallFiles(Fails):
    """The same, with weights in files of 20 kB, so that the toy model has as many as a large one."""

    def on_start(self, trainer: Trainer) -> None:
        weight_files.FILE_BYTES = FILE_BYTES
        super().on_start(trainer)
